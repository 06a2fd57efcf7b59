// Consumers of shared runs with many rows: a warpgroup holds 64 rows and walks whole tiles by wgmma, S = Q
// K^T with Q and K in shared memory, O += P V with P in registers. Per row the same additions in the same
// order as the warp code of kernel.cuh (work.h), so equal bits: sums of p are kept apart for each residue of
// the key modulo 8, and wgmma adds up a k16 step as mma.m16n8k16 does.
//
// A task is up to a segment of units for up to 64 rows (or 128: then both warpgroups walk the same tiles).
// Every unit's O is folded into the segment's, both in registers; the segment is handed over. Runs are whole
// units, so there is nothing to mask.
#pragma once

#include "attention/cuda/common/tile.cuh"
#include "attention/cuda/common/wgmma.cuh"
#include "attention/cuda/sm90/decode/entry.cuh"
#include "attention/cuda/steps/state.cuh"

namespace tessera::attention::cuda::sm90 {

inline constexpr int kWideRows = 64;  // of a warpgroup

template <typename T, int kDim, typename Shared>
struct WideConsumer {
  static constexpr int kSteps = kDim / 16;
  const DecodeParams& p;
  Shared& shared;
  const int lane, warp;  // of the consumers

  // Where tile t of task u lies in a wave whose tasks are walked in turns.
  static __device__ __forceinline__ uint32_t tile_in_wave(int first, int second, int u, int t) {
    return static_cast<uint32_t>(min(t, first) + min(t, second) + (u == 1 && first > t ? 1 : 0));
  }

  __device__ __forceinline__ void walk(const Wave& w, uint32_t slot, uint32_t phase, uint32_t tiles_before) {
    const int warpgroup = warp / 4;
    const bool both = w.mode == kWaveWideBoth;
    const int u = both ? 0 : warpgroup;
    if (u >= w.units) return;
    const UnitEntry& e = w.unit[u];
    const int first_tiles = w.unit[0].tiles, second_tiles = w.units > 1 ? w.unit[1].tiles : 0;
    const int first_row = both ? warpgroup * kWideRows : 0;
    unsigned char* q = shared.wide_q(warpgroup);
    load_q(e, first_row, q, warpgroup);

    const uint32_t stages = shared_address(shared.stage[0]);
    float segment[kDim / 2], o[kDim / 2], s[32];
    float segment_m[2], segment_l[2], m[2], l[2][2];
    const int units = e.tiles / kUnitTiles;
#pragma unroll 1
    for (int unit = 0; unit < units; ++unit) {
      m[0] = m[1] = minus_infinity();
      l[0][0] = l[0][1] = l[1][0] = l[1][1] = 0.0f;
      uint32_t last_stage = 0;
#pragma unroll 1
      for (int t = 0; t < kUnitTiles; ++t) {
        const uint32_t place = tile_in_wave(first_tiles, second_tiles, u, unit * kUnitTiles + t);
        const uint32_t stage = (tiles_before + place) % Shared::kStages;
        const uint32_t base = stages + stage * Shared::kStageBytes;
        mbarrier_wait(shared_address(&shared.k_full[slot][place]), phase);
        uint32_t q_address = shared_address(q);
        asm volatile("" : "+r"(q_address));  // else its eight descriptors take registers all the time
        const uint64_t q_descriptor = descriptor_k_major(q_address);
        const uint64_t k_descriptor = descriptor_k_major(base);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          Wgmma<T, 64, 0>::ss(s, q_descriptor + descriptor_k_step<kWideRows>(i),
                              k_descriptor + descriptor_k_step<kTile>(i), i > 0 ? 1u : 0u);
        }
        wgmma_commit();
        if (t > 0) {
          wgmma_wait<1>();  // the tile before is used up
          release(last_stage, both);
        }
        wgmma_wait<0>();
        softmax(s, o, m, l);
        uint32_t probability[4][4];
#pragma unroll
        for (int step = 0; step < 4; ++step) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            // Registers 0 and 1: rows g and g + 8, keys 16 step + 2 (lane % 4); 2 and 3: 8 keys on.
            const int at = 8 * step + 4 * (i / 2) + 2 * (i % 2);
            probability[step][i] = pack2<T>(s[at], s[at + 1]);
          }
        }
        mbarrier_wait(shared_address(&shared.v_full[slot][place]), phase);
        const uint64_t v_descriptor = descriptor_mn_major<kTile>(base + Shared::kTileBytes);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          Wgmma<T, kDim, 1>::rs(o, probability[step], v_descriptor + descriptor_mn_step(step),
                                step > 0 || t > 0 ? 1u : 0u);
        }
        wgmma_commit();
        last_stage = stage;
      }
      // Folding with the next scores in flight would overlap more, but needs more registers than there are.
      wgmma_wait<0>();
      release(last_stage, both);
      fold_unit(unit == 0, segment, segment_m, segment_l, o, m, l);
    }
    hand_over(e, first_row, segment, segment_m, segment_l);
  }

  __device__ __forceinline__ void release(uint32_t stage, bool both) const {
    if (lane == 0) mbarrier_arrive_many(shared_address(&shared.empty[stage]), both ? 1u : 2u);
  }

  // Rows [first_row, first_row + 64) of the task, zeros behind its rows; two threads a row, all loads at
  // once.
  __device__ __forceinline__ void load_q(const UnitEntry& e, int first_row, unsigned char* q,
                                         int warpgroup) const {
    constexpr int kGroups = kDim / 16;  // 16-byte groups of a thread
    const int thread = (warp % 4) * 32 + lane;
    const int row = thread / 2, half = thread % 2;
    const int r = first_row + row;
    uint4 values[kGroups];
    if (r < e.rows) {
      const int token = __ldg(p.token_list + e.first_token + p.by_group.quotient(e.first_row + r));
      const int head = e.kv_head * p.group + p.by_group.remainder(e.first_row + r);
      const int batch = p.by_tokens.quotient(token);
      const char* from = static_cast<const char*>(p.q.data) +
                         2 * (batch * p.q.batch_stride + (token - batch * p.tokens) * p.q.row_stride +
                              head * p.q.head_stride + half * (kDim / 2));
#pragma unroll
      for (int i = 0; i < kGroups; ++i) values[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
    } else {
#pragma unroll
      for (int i = 0; i < kGroups; ++i) values[i] = make_uint4(0, 0, 0, 0);
    }
    named_barrier_sync(2 + static_cast<uint32_t>(warpgroup), 128);  // the task before has read its q
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      *reinterpret_cast<uint4*>(q + swizzled_offset<kWideRows>(row, half * kGroups + i)) = values[i];
    }
    fence_async_shared();
    named_barrier_sync(2 + static_cast<uint32_t>(warpgroup), 128);
  }

  // s becomes p; lane holds rows g = lane / 4 (h = 0) and g + 8 (h = 1), keys 8 i + 2 (lane % 4) + c.
  __device__ __forceinline__ void softmax(float (&s)[32], float (&o)[kDim / 2], float (&m)[2],
                                          float (&l)[2][2]) const {
    float most[2] = {minus_infinity(), minus_infinity()};
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      s[i] = __fmul_rn(s[i], p.scale_log2);
      most[(i / 2) % 2] = fmaxf(most[(i / 2) % 2], s[i]);
    }
    if (__any_sync(~0u, most[0] > m[0] + kLazyBound || most[1] > m[1] + kLazyBound)) {
      float keep[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], 1));
        most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], 2));
        const bool moves = most[h] > m[h] + kLazyBound;
        keep[h] = moves ? exp2_fast(__fsub_rn(m[h], most[h])) : 1.0f;
        if (moves) m[h] = most[h];
        l[h][0] = __fmul_rn(l[h][0], keep[h]);
        l[h][1] = __fmul_rn(l[h][1], keep[h]);
      }
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) o[i] = __fmul_rn(o[i], keep[(i / 2) % 2]);
    }
    const float reference[2] = {m[0] == minus_infinity() ? 0.0f : m[0],
                                m[1] == minus_infinity() ? 0.0f : m[1]};
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      s[i] = exp2_fast(__fsub_rn(s[i], reference[(i / 2) % 2]));
      l[(i / 2) % 2][i % 2] = __fadd_rn(l[(i / 2) % 2][i % 2], s[i]);
    }
  }

  __device__ __forceinline__ void fold_unit(bool first, float (&segment)[kDim / 2], float (&segment_m)[2],
                                            float (&segment_l)[2], float (&o)[kDim / 2], const float (&m)[2],
                                            const float (&l)[2][2]) const {
    float keep[2], take[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = __fadd_rn(l[h][0], l[h][1]);
      sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 1));
      sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 2));
      if (first) {
        segment_m[h] = m[h];
        segment_l[h] = sum;
      } else {
        const FoldFactors f = fold_factors(segment_m[h], m[h]);
        segment_m[h] = f.m;
        segment_l[h] = __fmaf_rn(sum, f.take, __fmul_rn(segment_l[h], f.keep));
        keep[h] = f.keep;
        take[h] = f.take;
      }
    }
    if (first) {
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) segment[i] = o[i];
    } else {
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) {
        segment[i] = __fmaf_rn(o[i], take[(i / 2) % 2], __fmul_rn(segment[i], keep[(i / 2) % 2]));
      }
    }
  }

  __device__ __forceinline__ void hand_over(const UnitEntry& e, int first_row,
                                            const float (&segment)[kDim / 2], const float (&m)[2],
                                            const float (&l)[2]) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = first_row + (warp % 4) * 16 + lane / 4 + 8 * h;
      if (r >= e.rows) continue;
      const int64_t at = e.partial + r;
      if (lane % 4 == 0) p.partial_ml[at] = make_float2(m[h], l[h]);
      float* to = p.partial_o + at * kDim + 2 * (lane % 4);
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        *reinterpret_cast<float2*>(to + 8 * i) =
            make_float2(segment[4 * i + 2 * h], segment[4 * i + 2 * h + 1]);
      }
    }
  }
};

}  // namespace tessera::attention::cuda::sm90
