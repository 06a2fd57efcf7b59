// FlashAttention-2's forward (Dao 2023, algorithm 1) with mma.sync: one CTA has a tile of query rows of one
// head and walks its keys in rising order, tile edges at multiples of the tile counted from position 0.
//
// Invariants
//  1. A row's arithmetic does not depend on the other rows of its CTA: a tile in which it sees nothing leaves
//     its m, l and o as they are, and the shared branch skips only multiplications by 1.
//  2. Every row of K and V outside the interval of the CTA's rows is 0 in shared memory and never read.
#pragma once

#include "attention/cuda/common/mask.cuh"
#include "attention/cuda/common/philox.cuh"
#include "attention/cuda/common/softmax.cuh"
#include "attention/cuda/common/tile_copy.cuh"
#include "attention/cuda/sm80/prefill/cache_copy.cuh"
#include "attention/cuda/sm80/prefill/config.h"

namespace tessera::attention::cuda::sm80 {

// kCache: K and V are a cache's.
template <DType kType, int kDim, bool kGeneral, bool kCache>
__global__ void __launch_bounds__(forward_config(kType, kDim, kGeneral).threads(),
                                  forward_config(kType, kDim, kGeneral).resident)
    forward_kernel(const __grid_constant__ ForwardParams p) {
  constexpr ForwardConfig kConfig = forward_config(kType, kDim, kGeneral);
  constexpr int kRow = kPitch<kType, kDim>;
  constexpr int kKeys = kConfig.keys, kSlabs = kConfig.slabs, kThreads = kConfig.threads();
  extern __shared__ __align__(128) char shared[];

  const Features& f = p.features;
  const int order = blockIdx.x % p.row_tiles, rest = blockIdx.x / p.row_tiles;
  const int head = rest % p.heads, batch = rest / p.heads, kv_head = head / p.group;
  const Sequence seq = [&] {
    if constexpr (kCache) return sequence_in_cache(f, p.cache, batch);
    return sequence_of(f, batch);
  }();
  const int first = (p.last_first ? p.row_tiles - 1 - order : order) * kConfig.rows();
  if (first >= seq.rows) return;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = first + warp * kSlabs * 16, row = warp_row + lane / 4;
  const int64_t axis = f.cu_seqlens_q != nullptr ? 0 : batch;
  const auto at = [&](const void* data, int64_t batch_stride, int64_t row_stride, int64_t head_stride,
                      int first_row, int of_head) {
    return static_cast<const char*>(data) +
           (axis * batch_stride + first_row * row_stride + of_head * head_stride) * kBytes<kType>;
  };
  const TileCopy<kType, kDim, kConfig.rows(), kThreads> q_copy(
      at(p.q, p.q_batch, p.q_row, p.q_head, seq.first_row, head), p.q_row, p.head_dim);
  const auto keys_copy = [&](const void* data, int64_t batch_stride, int64_t row_stride, int64_t head_stride,
                             int dim) {
    if constexpr (kCache) {
      return CacheCopy<kType, kDim, kKeys, kThreads>(
          p.cache, batch, static_cast<const char*>(data) + kv_head * head_stride * kBytes<kType>,
          batch_stride, row_stride, dim);
    } else {
      return TileCopy<kType, kDim, kKeys, kThreads>(
          at(data, batch_stride, row_stride, head_stride, seq.first_key, kv_head), row_stride, dim);
    }
  };
  const auto k_copy = keys_copy(p.k, p.k_batch, p.k_row, p.k_head, p.head_dim);
  const auto v_copy = keys_copy(p.v, p.v_batch, p.v_row, p.v_head, p.v_head_dim);
  const uint8_t* seen = nullptr;
  if constexpr (kGeneral) {
    if (p.seen != nullptr) {
      seen = p.seen + (int64_t{batch} * (p.heads / p.group) + kv_head) * f.seqlen_k;
    }
  }

  const uint32_t q_tile = shared_address(shared), k_tile = q_tile + kConfig.rows() * kRow,
                 v_tile = k_tile + kKeys * kRow;
  const uint32_t q_lane = lane_rows<kRow>(q_tile + warp * kSlabs * 16 * kRow);
  const uint32_t k_lane = lane_columns<kRow>(k_tile), v_lane = lane_b_permuted<kType, kRow>(v_tile);

  const Interval keys = keys_of_rows(f, seq, first, kConfig.rows());
  const Interval clear = keys_of_all_rows(f, seq, first, kConfig.rows());
  const int begin = keys.begin / kKeys * kKeys;
  const float factor = kGeneral ? 1.0f : f.scale * kLog2E;

  float o[kSlabs][kDim / 2], maximum[kSlabs][2], sum[kSlabs][2];
#pragma unroll
  for (int m = 0; m < kSlabs; ++m) {
#pragma unroll
    for (int e = 0; e < kDim / 2; ++e) o[m][e] = 0.0f;
    maximum[m][0] = maximum[m][1] = kMinusInfinity;
    sum[m][0] = sum[m][1] = 0.0f;
  }

  if (keys.begin < keys.end) {
    q_copy.copy(q_tile, first, 0, seq.rows);
    k_copy.copy(k_tile, begin, keys.begin, keys.end, seen);
    cp_async_commit();
  }
  for (int key = begin; key < keys.end; key += kKeys) {
    cp_async_wait<0>();
    __syncthreads();
    v_copy.copy(v_tile, key, keys.begin, keys.end, seen);
    cp_async_commit();
    float s[kSlabs][kKeys / 2];
#pragma unroll
    for (int m = 0; m < kSlabs; ++m) {
#pragma unroll
      for (int e = 0; e < kKeys / 2; ++e) s[m][e] = 0.0f;
    }
    multiply<kType, kSlabs, kKeys / 16, kDim / kStep<kType>, Stored::k_last, kRow, Stored::k_last, kRow>(
        s, q_lane, k_lane);

    const int column = key + lane % 4 * 2;
    if constexpr (kGeneral) {
#pragma unroll
      for (int m = 0; m < kSlabs; ++m) {
        score_fragment<false>(f, seq, batch, head, row + 16 * m, column, s[m], nullptr);
      }
    } else if (key < clear.begin || key + kKeys > clear.end) {
#pragma unroll
      for (int m = 0; m < kSlabs; ++m) {
        const Interval rows[2] = {keys_of(f, seq, seq.position(row + 16 * m)),
                                  keys_of(f, seq, seq.position(row + 16 * m + 8))};
        hide_outside(s[m], rows, column);
      }
    }

    float rescale[kSlabs][2];
    bool moved = false;
#pragma unroll
    for (int m = 0; m < kSlabs; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = s[m][2 * half];
#pragma unroll
        for (int e = 0; e < kKeys / 2; ++e) {
          if (e / 2 % 2 == half) top = fmaxf(top, s[m][e]);
        }
        top = fmaxf(maximum[m][half], quad_max(top));
        const float base = subtractable(top) * factor;
        moved |= top != maximum[m][half];
        rescale[m][half] = exp2_fast(maximum[m][half] * factor - base);
        maximum[m][half] = top;
        float row_sum = 0.0f;
#pragma unroll
        for (int e = 0; e < kKeys / 2; ++e) {
          if (e / 2 % 2 != half) continue;
          s[m][e] = exp2_fast(fmaf(s[m][e], factor, -base));
          row_sum += s[m][e];
        }
        sum[m][half] = fmaf(sum[m][half], rescale[m][half], row_sum);
      }
    }
    if (__any_sync(0xffffffffu, moved)) {
#pragma unroll
      for (int m = 0; m < kSlabs; ++m) {
#pragma unroll
        for (int e = 0; e < kDim / 2; ++e) o[m][e] *= rescale[m][e / 2 % 2];
      }
    }
    if constexpr (kGeneral) {
      if (f.dropout) {
#pragma unroll
        for (int m = 0; m < kSlabs; ++m) {
#pragma unroll
          for (int pair = 0; pair < kKeys / 32; ++pair) {
            const uint32_t kept = dropout_bits32(f.key, batch, head, row + 16 * m, key / 32 + pair);
#pragma unroll
            for (int e = 0; e < 16; ++e) s[m][16 * pair + e] *= static_cast<float>(kept >> e & 1);
          }
        }
      }
    }

    cp_async_wait<0>();
    __syncthreads();
    if (key + kKeys < keys.end) {
      k_copy.copy(k_tile, key + kKeys, keys.begin, keys.end, seen);
      cp_async_commit();
    }
#pragma unroll
    for (int step = 0; step < kKeys / kStep<kType>; ++step) {
      uint32_t a[kSlabs][4];
#pragma unroll
      for (int m = 0; m < kSlabs; ++m) fragment_of<kType>(a[m], s[m], step);
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) {
        uint32_t b[4];
        load_b_permuted<kType, kRow>(b, v_lane, n, step);
#pragma unroll
        for (int m = 0; m < kSlabs; ++m) {
          mma<kType>(&o[m][8 * n], a[m], b[0], b[1]);
          mma<kType>(&o[m][8 * n + 4], a[m], b[2], b[3]);
        }
      }
    }
  }

  float inverse[kSlabs][2];
#pragma unroll
  for (int m = 0; m < kSlabs; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = quad_sum(sum[m][half]);
      const bool empty = maximum[m][half] == kMinusInfinity;
      inverse[m][half] = empty ? 0.0f : (kGeneral ? f.keep_scale : 1.0f) / total;
      const int of = row + 16 * m + 8 * half;
      if (p.lse != nullptr && lane % 4 == 0 && of < seq.rows) {
        const int64_t all = f.cu_seqlens_q != nullptr ? f.cu_seqlens_q[p.batch] : f.seqlen_q;
        p.lse[(axis * p.heads + head) * all + seq.first_row + of] =
            natural_lse(maximum[m][half] * (kGeneral ? 1.0f : f.scale * kLog2E), total);
      }
    }
  }
  // Rows that see nothing have o = 0 whatever was multiplied: no tile was, or every weight was 0.
  char* out = const_cast<char*>(at(p.o, p.o_batch, p.o_row, p.o_head, seq.first_row + warp_row, head));
  store_rows<kType, kDim, kSlabs>(o, inverse, q_tile + warp * kSlabs * 16 * kRow, out, p.o_row,
                                  seq.rows - warp_row, p.v_head_dim);
}

}  // namespace tessera::attention::cuda::sm80
