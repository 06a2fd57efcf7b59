// Consumers of shared runs with many rows: a warpgroup holds 64 rows and walks whole tiles by wgmma, S = Q
// K^T with Q in registers, O += P V with P in registers. Per row the same additions in the same order as the
// warp code of steps/tile.cuh (work.h), so equal bits: sums of p are kept apart for each residue of the key
// modulo 8, and wgmma adds up a k16 step as mma.m16n8k16 does.
//
// A task is up to a segment of units for up to 64 rows (or 128: then both warpgroups walk the same tiles).
// Its units' states are folded into the segment's, which waits in shared memory, each thread's values where
// only that thread reads them; or every unit's state is handed over (kUnitEach), so that two warpgroups can
// walk one segment. Runs are whole units, so there is nothing to mask.
#pragma once

#include "attention/cuda/common/tile.cuh"
#include "attention/cuda/common/wgmma.cuh"
#include "attention/cuda/sm90/decode/entry.cuh"
#include "attention/cuda/steps/state.cuh"

namespace tessera::attention::cuda::sm90 {

template <typename T, int kDim, typename Shared>
struct WideConsumer {
  static constexpr int kSteps = kDim / 16;
  static constexpr int kValues = kDim / 2;  // of O in a thread
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
    const bool each = (e.flags & kUnitEach) != 0;
    bool counts = true;
    float o[kValues], s[32];
    float segment_m[2], segment_l[2], m[2], l[2][2];
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
      if (each) {
        if (counts) hand_over(e, e.partial + unit * e.partial_stride, first_row, o, m, sum);
        continue;
      }
      if (unit == 0) {
        segment_m[0] = m[0], segment_m[1] = m[1];
        segment_l[0] = sum[0], segment_l[1] = sum[1];
      } else {
        fold(segment_m, segment_l, o, m, sum);
      }
      if (unit == units - 1) {
        if (counts) hand_over(e, e.partial, first_row, o, segment_m, segment_l);
      } else {
        float4* to = mine();
#pragma unroll
        for (int i = 0; i < kValues / 4; ++i)
          to[128 * i] = make_float4(o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3]);
      }
    }
  }

  // The thread's part of its warpgroup's segment: values 4 i to 4 i + 3 at [128 * i].
  __device__ __forceinline__ float4* mine() const {
    return shared.wide_segment(warp / 4) + (warp % 4) * 32 + lane;
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

  // The unit's state into the segment's: o becomes the segment's.
  __device__ __forceinline__ void fold(float (&segment_m)[2], float (&segment_l)[2], float (&o)[kValues],
                                       const float (&m)[2], const float (&sum)[2]) const {
    float keep[2], take[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const FoldFactors f = fold_factors(segment_m[h], m[h]);
      segment_m[h] = f.m;
      segment_l[h] = __fmaf_rn(sum[h], f.take, __fmul_rn(segment_l[h], f.keep));
      keep[h] = f.keep;
      take[h] = f.take;
    }
    const float4* from = mine();
#pragma unroll
    for (int i = 0; i < kValues / 4; ++i) {
      const float4 x = from[128 * i];
      o[4 * i] = __fmaf_rn(o[4 * i], take[0], __fmul_rn(x.x, keep[0]));
      o[4 * i + 1] = __fmaf_rn(o[4 * i + 1], take[0], __fmul_rn(x.y, keep[0]));
      o[4 * i + 2] = __fmaf_rn(o[4 * i + 2], take[1], __fmul_rn(x.z, keep[1]));
      o[4 * i + 3] = __fmaf_rn(o[4 * i + 3], take[1], __fmul_rn(x.w, keep[1]));
    }
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
