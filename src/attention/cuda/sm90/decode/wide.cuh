// Consumers of shared runs with many rows: a warpgroup holds 64 rows and walks whole tiles by wgmma, S = Q
// K^T with Q in registers, O += P V with P in registers. Per row the same additions in the same order as the
// warp code of steps/tile.cuh (work.h), so equal bits: sums of p are kept apart for each residue of the key
// modulo 8, and wgmma adds up a k16 step as mma.m16n8k16 does.
//
// A task is up to a segment of units for up to 64 rows (or 128: then both warpgroups walk the same tiles).
// Its units' states are folded into the segment's, which waits in shared memory, each thread's values where
// only that thread reads them; or the warpgroups walk half of a segment each, and the second folds the
// first's state before its own (kUnitHalves); or every unit's state is handed over (kUnitEach), where the
// segment begins in another piece. Runs are whole units, so there is nothing to mask.
#pragma once

#include "attention/cuda/common/tile.cuh"
#include "attention/cuda/common/wgmma.cuh"
#include "attention/cuda/sm90/decode/entry.cuh"
#include "attention/cuda/steps/state.cuh"

namespace tessera::attention::cuda::sm90 {

template <typename T, int kDim, typename Shared>
struct WideConsumer {
  static constexpr int kSteps = kDim / 16;
  static constexpr int kValues = kDim / 2;                       // of O in a thread
  static constexpr uint32_t kHalfIsThere = 2, kHalfIsTaken = 3;  // named barriers
  const DecodeParams& p;
  Shared& shared;
  const int lane, warp;  // of the consumers

  // Where tile t of task u lies in a wave whose tasks are walked in turns.
  static __device__ __forceinline__ uint32_t tile_in_wave(int first, int second, int u, int t) {
    return static_cast<uint32_t>(min(t, first) + min(t, second) + (u == 1 && first > t ? 1 : 0));
  }

  __device__ __forceinline__ void walk(const Wave& w, uint32_t wave, uint32_t tiles_before) {
    const uint32_t slot = wave % kWaveSlots, phase = (wave / kWaveSlots) & 1;
    const int warpgroup = warp / 4;
    const bool both = w.mode == kWaveWideBoth;
    const int u = both ? 0 : warpgroup;
    if (u >= w.units) return;
    const UnitEntry& e = w.unit[u];
    const int first_tiles = w.unit[0].tiles, second_tiles = w.units > 1 ? w.unit[1].tiles : 0;
    const int first_row = both ? warpgroup * kWideRows : 0;
    uint32_t q[kSteps][4];
    load_q(e, first_row, q);

    const uint32_t stages = shared_address(shared.stage[0]);
    const int units = e.tiles / kUnitTiles;
    bool counts = true;
    float o[kValues], s[32];
    float m[2], l[2][2];
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
        const uint64_t k_descriptor = descriptor_k_major(base);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          Wgmma<T, 64, 0>::rs(s, q[i], k_descriptor + descriptor_k_step<kTile>(i), i > 0 ? 1u : 0u);
        }
        wgmma_commit();
        if (t > 0) {
          wgmma_wait<1>();  // the tile before is used up
          release(last_stage, both);
        }
        wgmma_wait<0>();
        softmax(t > 0, s, o, m, l);
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
      wgmma_wait<0>();
      release(last_stage, both);
      float sum[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        sum[h] = __fadd_rn(l[h][0], l[h][1]);
        sum[h] = __fadd_rn(sum[h], __shfl_xor_sync(~0u, sum[h], 1));
        sum[h] = __fadd_rn(sum[h], __shfl_xor_sync(~0u, sum[h], 2));
      }
      if (wave == 0 && unit == 0) {
        mbarrier_wait(shared_address(&shared.verdict), 0);
        counts = shared.guess_was_right != 0;
      }
      // Read where it is needed: the tiles leave no register for it.
      const int32_t flags = *const_cast<const volatile int32_t*>(&e.flags);
      if ((flags & kUnitEach) != 0) {
        if (counts) hand_over(e, e.partial + unit * e.partial_stride, first_row, o, m, sum);
        continue;
      }
      const bool last = unit == units - 1, halves = (flags & kUnitHalves) != 0;
      if (halves && last && warpgroup == 1) {
        take_half(unit > 0, o, m, sum);
      } else if (unit > 0) {
        fold(o, m, sum);
      }
      if (!last || (halves && warpgroup == 0)) {
        keep(o, m, sum);
        if (last) give_half();
      } else if (counts) {
        hand_over(e, e.partial, first_row, o, m, sum);
      }
    }
  }

  // The thread's part of a warpgroup's segment: values 4 i to 4 i + 3 at [128 * i].
  __device__ __forceinline__ float4* segment_of(int warpgroup) const {
    return shared.wide_segment(warpgroup) + (warp % 4) * 32 + lane;
  }
  // (m, l) of its row h.
  __device__ __forceinline__ float2& segment_ml(int warpgroup, int h) const {
    return shared.wide_segment_ml(warpgroup)[(warp % 4) * 16 + lane / 4 + 8 * h];
  }

  __device__ __forceinline__ void release(uint32_t stage, bool both) const {
    if (kWarpArrivals > 1 || lane == 0)
      mbarrier_arrive_many(shared_address(&shared.empty[stage]), both ? 1u : 2u);
  }

  // A fragments of rows [first_row, first_row + 64) of the task, zeros behind its rows.
  __device__ __forceinline__ void load_q(const UnitEntry& e, int first_row, uint32_t (&q)[kSteps][4]) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = first_row + (warp % 4) * 16 + lane / 4 + 8 * h;
      if (r < e.rows) {
        const int token = __ldg(p.token_list + e.first_token + p.by_group.quotient(e.first_row + r));
        const int head = e.kv_head * p.group + p.by_group.remainder(e.first_row + r);
        const int batch = p.by_tokens.quotient(token);
        const char* from = static_cast<const char*>(p.q.data) +
                           2 * (batch * p.q.batch_stride + (token - batch * p.tokens) * p.q.row_stride +
                                head * p.q.head_stride + 2 * (lane % 4));
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          q[i][h] = __ldg(reinterpret_cast<const uint32_t*>(from + 32 * i));
          q[i][2 + h] = __ldg(reinterpret_cast<const uint32_t*>(from + 32 * i + 16));
        }
      } else {
#pragma unroll
        for (int i = 0; i < kSteps; ++i) q[i][h] = q[i][2 + h] = 0;
      }
    }
  }

  // s becomes p; lane holds rows g = lane / 4 (h = 0) and g + 8 (h = 1), keys 8 i + 2 (lane % 4) + c.
  // `begun`: o holds something.
  __device__ __forceinline__ void softmax(bool begun, float (&s)[32], float (&o)[kValues], float (&m)[2],
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
      if (begun) {
#pragma unroll
        for (int i = 0; i < kValues; ++i) o[i] = __fmul_rn(o[i], keep[(i / 2) % 2]);
      }
    }
    const float reference[2] = {m[0] == minus_infinity() ? 0.0f : m[0],
                                m[1] == minus_infinity() ? 0.0f : m[1]};
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      s[i] = exp2_fast(__fsub_rn(s[i], reference[(i / 2) % 2]));
      l[(i / 2) % 2][i % 2] = __fadd_rn(l[(i / 2) % 2][i % 2], s[i]);
    }
  }

  // The state is the segment's up to here.
  __device__ __forceinline__ void keep(const float (&o)[kValues], const float (&m)[2],
                                       const float (&l)[2]) const {
    __syncwarp();  // (m, l) of before has been read
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (lane % 4 == 0) segment_ml(warp / 4, h) = make_float2(m[h], l[h]);
    }
    float4* to = segment_of(warp / 4);
#pragma unroll
    for (int i = 0; i < kValues / 4; ++i)
      to[128 * i] = make_float4(o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3]);
    __syncwarp();
  }

  // (m, l) and what comes behind it: (m, l) becomes both, the factors are those of their o.
  static __device__ __forceinline__ FoldFactors fold_sums(float2 before, float& m, float& l) {
    const FoldFactors f = fold_factors(before.x, m);
    m = f.m;
    l = __fmaf_rn(l, f.take, __fmul_rn(before.y, f.keep));
    return f;
  }

  // The same of four values, two of each row.
  static __device__ __forceinline__ void fold_four(const float4& before, const FoldFactors (&f)[2],
                                                   float* o) {
    const float x[4] = {before.x, before.y, before.z, before.w};
#pragma unroll
    for (int c = 0; c < 4; ++c) o[c] = __fmaf_rn(o[c], f[c / 2].take, __fmul_rn(x[c], f[c / 2].keep));
  }

  // The segment, then the unit's state: that becomes both.
  __device__ __forceinline__ void fold(float (&o)[kValues], float (&m)[2], float (&l)[2]) const {
    FoldFactors f[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) f[h] = fold_sums(segment_ml(warp / 4, h), m[h], l[h]);
    const float4* from = segment_of(warp / 4);
#pragma unroll
    for (int i = 0; i < kValues / 4; ++i) {
      fold_four(from[128 * i], f, o + 4 * i);
    }
  }

  // The first half of a segment, which this warpgroup has kept, to the one that walks the second.
  __device__ __forceinline__ void give_half() const {
    named_barrier_arrive(kHalfIsThere, 32 * kConsumers);
    named_barrier_sync(kHalfIsTaken, 32 * kConsumers);
  }
  // The first half, then a unit that this warpgroup has kept (or none), then the unit's state: that becomes
  // all.
  __device__ __forceinline__ void take_half(bool kept, float (&o)[kValues], float (&m)[2],
                                            float (&l)[2]) const {
    named_barrier_sync(kHalfIsThere, 32 * kConsumers);
    FoldFactors first[2], second[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float2 ml = segment_ml(0, h);
      first[h] = {0.0f, 0.0f, 0.0f};
      if (kept) {
        float2 next = segment_ml(1, h);
        first[h] = fold_sums(ml, next.x, next.y);
        ml = next;
      }
      second[h] = fold_sums(ml, m[h], l[h]);
    }
    const float4 *half = segment_of(0), *unit = segment_of(1);
#pragma unroll
    for (int i = 0; i < kValues / 4; ++i) {
      float4 before = half[128 * i];
      if (kept) {
        const float4 next = unit[128 * i];
        float both[4] = {next.x, next.y, next.z, next.w};
        fold_four(before, first, both);
        before = make_float4(both[0], both[1], both[2], both[3]);
      }
      fold_four(before, second, o + 4 * i);
    }
    named_barrier_arrive(kHalfIsTaken, 32 * kConsumers);
  }

  __device__ __forceinline__ void hand_over(const UnitEntry& e, int64_t partial, int first_row,
                                            const float (&o)[kValues], const float (&m)[2],
                                            const float (&l)[2]) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = first_row + (warp % 4) * 16 + lane / 4 + 8 * h;
      if (r >= e.rows) continue;
      const int64_t at = partial + r;
      if (lane % 4 == 0) p.partial_ml[at] = make_float2(m[h], l[h]);
      float* to = p.partial_o + at * kDim + 2 * (lane % 4);
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        *reinterpret_cast<float2*>(to + 8 * i) = make_float2(o[4 * i + 2 * h], o[4 * i + 2 * h + 1]);
      }
    }
  }
};

}  // namespace tessera::attention::cuda::sm90
