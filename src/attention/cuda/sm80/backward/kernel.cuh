// FlashAttention-2's backward (Dao 2023, algorithm 2) with mma.sync. A CTA has a tile of keys of one kv head,
// keeps its dk and dv in registers and walks the query rows that see it, of every query head of the group:
//   s = q k^T   dp = do v^T   p = exp2(s - lse)   ds = p (dp - delta)
//   dv += p^T do   dq += ds k   dk += ds^T q
//
// dq is the sum over key tiles, in f32 in global memory (L2). Invariants
//  1. The order in which key tiles add to a tile of rows is fixed (Step::place). visits[tile] counts those
//     that are done; a CTA waits for its place.
//  2. Nobody waits for ever. With windows or causal, key tiles add in rising order and tickets rise with
//     them, so a CTA only waits for those that began before it. Without, CTA n of a group (`together` tiles,
//     which fit the device at the same time; groups add one after the other) walks round the rows from a
//     start that rises with n, and at each row tile the CTAs come in falling order from the last whose start
//     is not past it: a CTA waits for one that came there at an earlier step, or at the same step with a
//     higher number.
//  3. At every step the CTAs stand at different rows, so they hardly wait. With windows or causal, walks go
//     from the last row that sees the tile to the first: a CTA that began later stays behind.
//  4. What no row of the tile sees is 0 in shared memory; a hidden element's p and ds are exactly 0.
#pragma once

#include "attention/cuda/common/arrive.cuh"
#include "attention/cuda/common/mask.cuh"
#include "attention/cuda/common/philox.cuh"
#include "attention/cuda/common/softmax.cuh"
#include "attention/cuda/common/tile_copy.cuh"
#include "attention/cuda/sm80/backward/steps.cuh"

namespace tessera::attention::cuda::sm80 {

// From sm_90 on the L2 adds dq, which saves the reading of the sums so far.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
inline constexpr bool kAddsInMemory = true;
__device__ __forceinline__ void add4(float4* to, const float* x) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x[0]), "f"(x[1]),
               "f"(x[2]), "f"(x[3])
               : "memory");
}
#else
inline constexpr bool kAddsInMemory = false;
__device__ __forceinline__ void add4(float4*, const float*) {}
#endif

template <DType kType, int kDim, BackwardTiles kTiles>
__global__ void __launch_bounds__(backward_config(kType, kDim, kTiles).threads(), 1)
    backward_kernel(const __grid_constant__ BackwardParams p) {
  constexpr BackwardConfig kConfig = backward_config(kType, kDim, kTiles);
  constexpr bool kGeneral = kTiles != BackwardTiles::plain;
  constexpr int kThreads = kConfig.threads(), kRows = kConfig.rows, kKeys = kConfig.keys;
  constexpr int kRow = kPitch<kType, kDim>, kScoreRow = kPitch<kType, kKeys>;
  // Slabs of 16 and pairs of 8 columns of each product, per warp.
  constexpr int kScoreM = kRows / kConfig.score_warps / 16;
  constexpr int kScoreColumns = kKeys / (kConfig.warps / kConfig.score_warps), kScoreN = kScoreColumns / 16;
  constexpr int kGradientM = kKeys / kConfig.gradient_warps / 16;
  constexpr int kGradientColumns = kDim / (kConfig.warps / kConfig.gradient_warps);
  constexpr int kGradientN = kGradientColumns / 16;
  constexpr int kQueryM = kRows / kConfig.query_warps / 16;
  constexpr int kQueryColumns = kDim / (kConfig.warps / kConfig.query_warps), kQueryN = kQueryColumns / 16;
  static_assert(kScoreM > 0 && kScoreN * 16 == kScoreColumns && kGradientN * 16 == kGradientColumns &&
                kQueryN * 16 == kQueryColumns && kGradientM > 0 && kQueryM > 0);
  static_assert(16 + sizeof(Steps<kRows, kKeys>) <= kStepBytes);
  extern __shared__ __align__(128) char shared[];

  const Features& f = p.features;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t k_tile = shared_address(shared), v_tile = k_tile + kKeys * kRow,
                 q_tile = v_tile + kKeys * kRow, do_tile = q_tile + kConfig.q_stages * kRows * kRow,
                 p_tile = do_tile + kRows * kRow, ds_tile = p_tile + kRows * kScoreRow;
  // Row statistics of the rows of q: lse2 and delta, two stages.
  const uint32_t stats = ds_tile + kRows * kScoreRow, rows_free = stats + 4 * kRows * 4;
  Steps<kRows, kKeys>& plan = *reinterpret_cast<Steps<kRows, kKeys>*>(shared + (rows_free - k_tile) + 16);

  if (threadIdx.x == 0) {
    plan.ticket = atomicAdd(p.ticket, 1u);
    mbarrier_init(rows_free, kConfig.warps * kWarpArrivals);
  }
  __syncthreads();
  const Place place = place_of(p, static_cast<int>(plan.ticket));
  const int tile = place.tile, kv_head = place.kv_head, batch = place.batch;
  const int group = p.heads / p.kv_heads;
  const Sequence seq = sequence_of(f, batch);
  const int first_key = tile * kKeys;
  if (first_key >= seq.length) return;

  const int64_t axis = f.cu_seqlens_q != nullptr ? 0 : batch;
  const auto at = [&](const void* data, int64_t batch_stride, int64_t row_stride, int64_t head_stride,
                      int first_row, int of_head) {
    return const_cast<char*>(static_cast<const char*>(data)) +
           (axis * batch_stride + first_row * row_stride + of_head * head_stride) * kBytes<kType>;
  };
  // Rows before this see nothing by their intervals.
  const int first_row = max(0, seq.leftpad - f.right - seq.shift);
  const Interval keys{max(seq.leftpad, seq.position(first_row) - f.left), seq.keys};
  const int steps = Steps<kRows, kKeys>::count_steps(f, seq, tile) * group;
  if (steps > 0) {
    const uint8_t* seen = nullptr;
    if constexpr (kGeneral) {
      if (p.seen != nullptr) seen = p.seen + (int64_t{batch} * p.kv_heads + kv_head) * f.seqlen_k;
    }
    const TileCopy<kType, kDim, kKeys, kThreads> k_copy(
        at(p.k, p.k_batch, p.k_row, p.k_head, seq.first_key, kv_head), p.k_row, p.head_dim);
    const TileCopy<kType, kDim, kKeys, kThreads> v_copy(
        at(p.v, p.v_batch, p.v_row, p.v_head, seq.first_key, kv_head), p.v_row, p.v_head_dim);
    k_copy.copy(k_tile, first_key, keys.begin, keys.end, seen);
    v_copy.copy(v_tile, first_key, keys.begin, keys.end, seen);
  }
  if (threadIdx.x == 0 && steps > 0) {
    const int head = kv_head * group;
    plan.begin_walk(f, seq, tile, p.together, first_row);
    plan.first_head = head;
    plan.first_tile = (batch * p.heads + head) * p.row_tiles;
    plan.q = at(p.q, p.q_batch, p.q_row, p.q_head, seq.first_row, head);
    plan.dout = at(p.dout, p.dout_batch, p.dout_row, p.dout_head, seq.first_row, head);
    plan.template next<kType>(p, seq, 0);
    plan.template next<kType>(p, seq, 1);
  }
  __syncthreads();

  const auto load_rows = [&](const void* data, int64_t row_stride, int dim, uint32_t to,
                             const Step& at_step) {
    const uint8_t* sees = nullptr;
    if constexpr (kGeneral) {
      if (p.seen != nullptr) sees = p.sees + int64_t{at_step.tile} * kRows;
    }
    const TileCopy<kType, kDim, kRows, kThreads> copy(data, row_stride, dim);
    copy.copy(to, 0, at_step.begin, at_step.end, sees);
  };
  const auto load_q = [&](int step) {
    const Step& next = plan.step[step % 4];
    load_rows(next.q, p.q_row, p.head_dim, q_tile + (kConfig.q_stages == 2 ? step % 2 * kRows * kRow : 0),
              next);
    if (threadIdx.x < kRows / 2) {
      const int chunk = threadIdx.x % (kRows / 4) * 4;
      const bool second = threadIdx.x >= kRows / 4;
      cp_async_16(stats + (step % 2 * 2 * kRows + second * kRows + chunk) * 4,
                  (second ? p.delta : p.lse2) + int64_t{next.tile} * kRows + chunk, true);
    }
  };
  const auto load_do = [&](int step) {
    const Step& next = plan.step[step % 4];
    load_rows(next.dout, p.dout_row, p.v_head_dim, do_tile, next);
  };

  float dk[kGradientM][8 * kGradientN], dv[kGradientM][8 * kGradientN];
#pragma unroll
  for (int m = 0; m < kGradientM; ++m) {
#pragma unroll
    for (int e = 0; e < 8 * kGradientN; ++e) dk[m][e] = dv[m][e] = 0.0f;
  }

  if (steps > 0) {
    load_q(0);
    load_do(0);
    cp_async_commit();
  }

  // This warp's parts of the products.
  const int score_row = warp % kConfig.score_warps * kScoreM * 16,
            score_column = warp / kConfig.score_warps * kScoreColumns;
  const int gradient_row = warp % kConfig.gradient_warps * kGradientM * 16,
            gradient_column = warp / kConfig.gradient_warps * kGradientColumns;
  const int query_row = warp % kConfig.query_warps * kQueryM * 16,
            query_column = warp / kConfig.query_warps * kQueryColumns;
  const uint32_t k_lane = lane_columns<kRow>(k_tile + score_column * kRow),
                 v_lane = lane_columns<kRow>(v_tile + score_column * kRow),
                 do_lane = lane_rows<kRow>(do_tile + score_row * kRow);
  const float factor = f.scale * kLog2E;

  for (int step = 0; step < steps; ++step) {
    const Step& now = plan.step[step % 4];
    const uint32_t q_now = q_tile + (kConfig.q_stages == 2 ? step % 2 * kRows * kRow : 0);
    cp_async_wait<0>();
    __syncthreads();
    // Errands of single threads, on warps of different schedulers, and here: a warp that is late now catches
    // up in the products, while near the next barrier all others would wait for it (8 %).
    uint32_t visited = 0;
    if (threadIdx.x == 0) visited = load_acquire(p.visits + now.tile);
    if (threadIdx.x == kThreads - 1 && step > 0) add_release(p.visits + plan.step[(step - 1) % 4].tile, 1);
    if (threadIdx.x == 32 && step + 2 < steps) plan.template next<kType>(p, seq, step + 2);
    if (kConfig.q_stages == 2 && step + 1 < steps) {
      load_q(step + 1);
      cp_async_commit();
    }

    float s[kScoreM][8 * kScoreN], dp[kScoreM][8 * kScoreN];
#pragma unroll
    for (int m = 0; m < kScoreM; ++m) {
#pragma unroll
      for (int e = 0; e < 8 * kScoreN; ++e) s[m][e] = dp[m][e] = 0.0f;
    }
    multiply<kType, kScoreM, kScoreN, kDim / kStep<kType>, Stored::k_last, kRow, Stored::k_last, kRow>(
        s, lane_rows<kRow>(q_now + score_row * kRow), k_lane);
    float lse2[kScoreM][2], delta[kScoreM][2];
    const uint32_t stats_now = stats + (step % 2 * 2 * kRows + score_row + lane / 4) * 4;
#pragma unroll
    for (int m = 0; m < kScoreM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        lse2[m][half] = __uint_as_float(load_shared32(stats_now + (16 * m + 8 * half) * 4));
        delta[m][half] = __uint_as_float(load_shared32(stats_now + (kRows + 16 * m + 8 * half) * 4));
      }
    }
    const int row = now.row + score_row + lane / 4, column = first_key + score_column + lane % 4 * 2;
    if constexpr (kGeneral) {
      multiply<kType, kScoreM, kScoreN, kDim / kStep<kType>, Stored::k_last, kRow, Stored::k_last, kRow>(
          dp, do_lane, v_lane);
#pragma unroll
      for (int m = 0; m < kScoreM; ++m) {
        uint32_t kept[(kScoreColumns + 31) / 32];
#pragma unroll
        for (int pair = 0; pair < (kScoreColumns + 31) / 32; ++pair) kept[pair] = 0xffffffffu;
        if (f.dropout) {
          const int from = first_key + score_column;
#pragma unroll
          for (int pair = 0; pair < (kScoreColumns + 31) / 32; ++pair) {
            kept[pair] = dropout_bits32(f.key, batch, now.head, row + 16 * m, from / 32 + pair);
            // A warp of 16 columns has half of a pair.
            if (kScoreColumns == 16 && from / 16 % 2 == 1) kept[pair] >>= 8;
          }
#pragma unroll
          for (int e = 0; e < 8 * kScoreN; ++e) {
            dp[m][e] = kept[e / 16] >> (e % 16) & 1 ? dp[m][e] * f.keep_scale : 0.0f;
          }
        }
#pragma unroll
        for (int e = 0; e < 8 * kScoreN; ++e) dp[m][e] -= delta[m][e / 2 % 2];
        score_fragment<true>(f, seq, batch, now.head, row + 16 * m, column, s[m], dp[m]);
#pragma unroll
        for (int e = 0; e < 8 * kScoreN; ++e) {
          const bool hidden = s[m][e] == kMinusInfinity;
          const float x = exp2_fast(s[m][e] - lse2[m][e / 2 % 2]);
          dp[m][e] = hidden ? 0.0f : x * dp[m][e];
          s[m][e] = kept[e / 16] >> (e % 16) & 1 ? x : 0.0f;
        }
      }
    } else {
      if (now.masked) {
#pragma unroll
        for (int m = 0; m < kScoreM; ++m) {
          const Interval of_rows[2] = {keys_of(f, seq, seq.position(row + 16 * m)),
                                       keys_of(f, seq, seq.position(row + 16 * m + 8))};
          hide_outside(s[m], of_rows, column);
        }
      }
#pragma unroll
      for (int m = 0; m < kScoreM; ++m) {
#pragma unroll
        for (int e = 0; e < 8 * kScoreN; ++e) {
          s[m][e] = exp2_fast(fmaf(s[m][e], factor, -lse2[m][e / 2 % 2]));
          dp[m][e] = -delta[m][e / 2 % 2];
        }
      }
      multiply<kType, kScoreM, kScoreN, kDim / kStep<kType>, Stored::k_last, kRow, Stored::k_last, kRow>(
          dp, do_lane, v_lane);

#pragma unroll
      for (int m = 0; m < kScoreM; ++m) {
#pragma unroll
        for (int e = 0; e < 8 * kScoreN; ++e) dp[m][e] *= s[m][e];
      }
    }
#pragma unroll
    for (int m = 0; m < kScoreM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t to = (score_row + 16 * m + 8 * half + lane / 4) * kScoreRow +
                            (score_column + lane % 4 * 2) * kBytes<kType>;
#pragma unroll
        for (int n = 0; n < 2 * kScoreN; ++n) {
          const int e = 4 * n + 2 * half;
          if constexpr (kType == DType::f32) {
            store_shared64(p_tile + to + n * 32, __float_as_uint(s[m][e]), __float_as_uint(s[m][e + 1]));
            store_shared64(ds_tile + to + n * 32, __float_as_uint(dp[m][e]), __float_as_uint(dp[m][e + 1]));
          } else {
            store_shared32(p_tile + to + n * 16, pack2<kType>(s[m][e], s[m][e + 1]));
            store_shared32(ds_tile + to + n * 16, pack2<kType>(dp[m][e], dp[m][e + 1]));
          }
        }
      }
    }
    if (threadIdx.x == 0) {
      while (visited != now.place) visited = load_acquire(p.visits + now.tile);
    }
    __syncthreads();

    multiply<kType, kGradientM, kGradientN, kRows / kStep<kType>, Stored::k_first, kScoreRow, Stored::k_first,
             kRow>(dv, lane_a<kType, Stored::k_first, kScoreRow>(p_tile + gradient_row * kBytes<kType>),
                   lane_b<kType, Stored::k_first, kRow>(do_tile + gradient_column * kBytes<kType>));
    arrive_as_warp(rows_free, lane);  // this warp is done with do

    float dq[kQueryM][8 * kQueryN];
#pragma unroll
    for (int m = 0; m < kQueryM; ++m) {
#pragma unroll
      for (int e = 0; e < 8 * kQueryN; ++e) dq[m][e] = 0.0f;
    }
    multiply<kType, kQueryM, kQueryN, kKeys / kStep<kType>, Stored::k_last, kScoreRow, Stored::k_first, kRow>(
        dq, lane_rows<kScoreRow>(ds_tile + query_row * kScoreRow),
        lane_b<kType, Stored::k_first, kRow>(k_tile + query_column * kBytes<kType>));
    constexpr int kSums = kQueryM * 2 * kQueryN;
    float4* const sums =
        reinterpret_cast<float4*>(p.dq_sums) + int64_t{now.tile} * (kRows * kDim / 4) + threadIdx.x;
    const bool begun = now.place != 0;
    float4 before[kSums];
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      before[i] = !kAddsInMemory && begun ? __ldcg(sums + i * kThreads) : float4{};
    }
    if (step + 1 < steps) {
      while (!mbarrier_passed(rows_free, step & 1)) {
      }
      load_do(step + 1);
      cp_async_commit();
    }
    // dq leaves between parts of dk: all at once, it would stand in the way of the next step's loads (4 %).
    // Nothing loads past it, so parts are as long as they may.
    constexpr int kParts = kRows / kStep<kType> < 4 ? kRows / kStep<kType> : 4, kPartRows = kRows / kParts;
    static_assert(kPartRows % kStep<kType> == 0);
    const uint32_t dk_a = lane_a<kType, Stored::k_first, kScoreRow>(ds_tile + gradient_row * kBytes<kType>),
                   dk_b = lane_b<kType, Stored::k_first, kRow>(q_now + gradient_column * kBytes<kType>);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      multiply<kType, kGradientM, kGradientN, kPartRows / kStep<kType>, Stored::k_first, kScoreRow,
               Stored::k_first, kRow>(dk, dk_a + part * kPartRows * kScoreRow,
                                      dk_b + part * kPartRows * kRow);
#pragma unroll
      for (int i = part * kSums / kParts; i < (part + 1) * kSums / kParts; ++i) {
        const float* const x = &dq[i / (2 * kQueryN)][i % (2 * kQueryN) * 4];
        const float4& y = before[i];
        if (kAddsInMemory && begun) {
          add4(sums + i * kThreads, x);
        } else {
          __stcg(sums + i * kThreads, float4{y.x + x[0], y.y + x[1], y.z + x[2], y.w + x[3]});
        }
      }
    }
    if (kConfig.q_stages == 1 && step + 1 < steps) {
      __syncthreads();
      load_q(step + 1);
      cp_async_commit();
    }
  }

  // Out through the places of k and v.
  __syncthreads();
  if (threadIdx.x == kThreads - 1 && steps > 0) add_release(p.visits + plan.step[(steps - 1) % 4].tile, 1);
  const auto put = [&](const float(&c)[kGradientM][8 * kGradientN], float scale, uint32_t to) {
#pragma unroll
    for (int m = 0; m < kGradientM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t row = to + (gradient_row + 16 * m + 8 * half + lane / 4) * kRow +
                             (gradient_column + lane % 4 * 2) * kBytes<kType>;
#pragma unroll
        for (int n = 0; n < 2 * kGradientN; ++n) {
          const float x = c[m][4 * n + 2 * half] * scale, y = c[m][4 * n + 2 * half + 1] * scale;
          if constexpr (kType == DType::f32) {
            store_shared64(row + n * 32, __float_as_uint(x), __float_as_uint(y));
          } else {
            store_shared32(row + n * 16, pack2<kType>(x, y));
          }
        }
      }
    }
  };
  put(dk, f.scale, k_tile);
  put(dv, kGeneral ? f.keep_scale : 1.0f, v_tile);
  __syncthreads();
  const int count = min(kKeys, seq.length - first_key);
  copy_out<kType, kDim, kKeys, kThreads>(
      k_tile, at(p.dk, p.dk_batch, p.dk_row, p.dk_head, seq.first_key + first_key, kv_head), p.dk_row, count,
      p.head_dim);
  copy_out<kType, kDim, kKeys, kThreads>(
      v_tile, at(p.dv, p.dv_batch, p.dv_row, p.dv_head, seq.first_key + first_key, kv_head), p.dv_row, count,
      p.v_head_dim);
}

// Before: lse2, delta and sees of every padded row, counters to 0. Eight lanes a row.
template <DType kType>
__global__ void __launch_bounds__(256)
    backward_prepare_kernel(const __grid_constant__ BackwardParams p, int padded_rows) {
  const Features& f = p.features;
  const int64_t index = int64_t{blockIdx.x} * 32 + threadIdx.x / 8;
  const int lane = threadIdx.x % 8;
  const int64_t thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (thread < int64_t{p.batch} * p.heads * p.row_tiles) p.visits[thread] = 0;
  if (thread == 0) *p.ticket = 0;
  if (padded_rows == 0) return;
  // A block's rows are of one head: tiles are a multiple of 32 rows.
  const uint32_t blocks = static_cast<uint32_t>(padded_rows) / 32, of = blockIdx.x / blocks;
  const int row = static_cast<int>((blockIdx.x - of * blocks) * 32 + threadIdx.x / 8);
  const int batch = static_cast<int>(of / p.heads), head = static_cast<int>(of - batch * p.heads);
  float lse = kMinusInfinity, sum = 0.0f;
  if (batch < p.batch) {
    const Sequence seq = sequence_of(f, batch);
    const int64_t axis = f.cu_seqlens_q != nullptr ? 0 : batch;
    if (row < seq.rows) {
      const int64_t all = f.cu_seqlens_q != nullptr ? f.cu_seqlens_q[p.batch] : f.seqlen_q;
      lse = p.lse[(axis * p.heads + head) * all + seq.first_row + row];
    }
    if (lse != kMinusInfinity) {
      const auto at = [&](const void* data, int64_t batch_stride, int64_t row_stride, int64_t head_stride) {
        return static_cast<const char*>(data) +
               (axis * batch_stride + (seq.first_row + row) * row_stride + head * head_stride) *
                   kBytes<kType>;
      };
      const char* o = at(p.o, p.o_batch, p.o_row, p.o_head);
      const char* dout = at(p.dout, p.dout_batch, p.dout_row, p.dout_head);
      for (int byte = lane * 16; byte < p.v_head_dim * kBytes<kType>; byte += 8 * 16) {
        const uint4 x = *reinterpret_cast<const uint4*>(o + byte);
        const uint4 y = *reinterpret_cast<const uint4*>(dout + byte);
        const uint32_t a[4] = {x.x, x.y, x.z, x.w}, b[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if constexpr (kType == DType::f32) {
            // do as the products take it: where a row sees one key, delta is dp.
            sum = fmaf(__uint_as_float(a[i]), __uint_as_float(round_tf32(__uint_as_float(b[i]))), sum);
          } else {
            sum = fmaf(unpack_low<kType>(a[i]), unpack_low<kType>(b[i]), sum);
            sum = fmaf(unpack_high<kType>(a[i]), unpack_high<kType>(b[i]), sum);
          }
        }
      }
    }
  }
#pragma unroll
  for (int i = 1; i < 8; i *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
  if (lane == 0 && batch < p.batch) {
    const bool sees = lse != kMinusInfinity;
    p.lse2[index] = sees ? lse * kLog2E : -kMinusInfinity;
    p.delta[index] = sum;
    p.sees[index] = sees;
  }
}

// After: dq = scale * dq_sums, in the tensor's type. One CTA a row tile, threads as in backward_kernel.
template <DType kType, int kDim, BackwardTiles kTiles>
__global__ void __launch_bounds__(backward_config(kType, kDim, kTiles).threads())
    backward_finish_kernel(const __grid_constant__ BackwardParams p) {
  constexpr BackwardConfig kConfig = backward_config(kType, kDim, kTiles);
  constexpr int kThreads = kConfig.threads(), kRows = kConfig.rows;
  constexpr int kQueryM = kRows / kConfig.query_warps / 16;
  constexpr int kQueryColumns = kDim / (kConfig.warps / kConfig.query_warps), kEights = kQueryColumns / 8;
  extern __shared__ __align__(128) char shared[];
  const Features& f = p.features;
  const int row_tile = blockIdx.x % p.row_tiles, rest = blockIdx.x / p.row_tiles;
  const int head = rest % p.heads, batch = rest / p.heads;
  const Sequence seq = sequence_of(f, batch);
  const int first = row_tile * kRows;
  if (first >= seq.rows) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t tile = shared_address(shared);
  const bool begun = p.visits[blockIdx.x] != 0;
  const float4* sums =
      reinterpret_cast<const float4*>(p.dq_sums) + int64_t{blockIdx.x} * (kRows * kDim / 4) + threadIdx.x;
  constexpr int kRow = kPitch<kType, kDim>;
#pragma unroll
  for (int i = 0; i < kQueryM * kEights; ++i) {
    const float4 x = begun ? __ldcg(sums + i * kThreads) : float4{0, 0, 0, 0};
    const uint32_t to =
        tile + (warp % kConfig.query_warps * kQueryM * 16 + i / kEights * 16 + lane / 4) * kRow +
        (warp / kConfig.query_warps * kQueryColumns + i % kEights * 8 + lane % 4 * 2) * kBytes<kType>;
    if constexpr (kType == DType::f32) {
      store_shared64(to, __float_as_uint(x.x * f.scale), __float_as_uint(x.y * f.scale));
      store_shared64(to + 8 * kRow, __float_as_uint(x.z * f.scale), __float_as_uint(x.w * f.scale));
    } else {
      store_shared32(to, pack2<kType>(x.x * f.scale, x.y * f.scale));
      store_shared32(to + 8 * kRow, pack2<kType>(x.z * f.scale, x.w * f.scale));
    }
  }
  __syncthreads();
  const int64_t axis = f.cu_seqlens_q != nullptr ? 0 : batch;
  char* out = static_cast<char*>(p.dq) +
              (axis * p.dq_batch + (seq.first_row + first) * p.dq_row + head * p.dq_head) * kBytes<kType>;
  copy_out<kType, kDim, kRows, kThreads>(tile, out, p.dq_row, min(kRows, seq.rows - first), p.head_dim);
}

}  // namespace tessera::attention::cuda::sm80
