// The persistent kernel of decode and of tree attention: two producer warps, eight consumer warps, one block
// an SM.
//
// The producer (producer.cuh) turns pieces into waves of up to eight tasks (unit, row group), describes each
// wave to the consumers in shared memory, and brings its tiles through the ring: first tile of every unit,
// then every second one, ... so that all warps have work at once. A consumer warp walks its unit alone:
// m16n8k16 with keys (then dims) as m and rows as n, so that 1 to 8 rows cost the same; then the wave's
// states are folded in order through shared memory, each row of each piece by a warp.
//
// The start of a call overlaps with the end of the kernels ahead, where those let it (programmatic dependent
// launch): what the first wave is follows from lengths and blocks as they are by then, its first tiles come
// into L2, and behind dependency_wait() they are loaded while lengths and blocks are read again. Only when
// they are the same does what the wave gives count (`verdict`).
//
// Invariants:
//  1. work.h's arithmetic.
//  2. A stage's tile is used by the row groups of its unit; the empty barrier counts eight arrivals, of which
//     each of g groups makes 8 / g.
//  3. What lies in a tile at and behind end_key counts as 0 in V and is replaced in scores: p there is 0, but
//     memory may hold NaN. It is masked in registers, because a unit's row groups read the same stage.
//  4. `merge` is written between merge_free and merge_full; it and `running` are read and folded between
//     merge_full and the next merge_free.
//
// Bytes: K and V of each piece once; q once a unit (from L2); o once. Per tile of 64 keys and 128 dims a warp
// issues 64 mma and 64 ldmatrix.x4, about half of the time that the tile takes to arrive.
#pragma once

#include "attention/cuda/common/ptx.cuh"
#include "attention/cuda/sm90/decode/entry.cuh"
#include "attention/cuda/sm90/decode/producer.cuh"
#include "attention/cuda/sm90/decode/wide.cuh"
#include "attention/cuda/steps/rows.cuh"
#include "attention/cuda/steps/schedule.cuh"
#include "attention/cuda/steps/tile.cuh"

namespace tessera::attention::cuda::sm90 {

// kSmallBoxes: tiles are four boxes of 16 whole rows instead of panels of 64 rows.
template <typename T, int kDim, int kGroups, bool kListed, bool kFeatures, bool kWide, bool kSmallBoxes>
struct Consumer {
  using Shared = DecodeShared<kDim, kGroups, kSmallBoxes>;
  static constexpr int kSteps = kDim / 16;
  static constexpr uint32_t kPanelBytes = (kSmallBoxes ? 16 : kTile) * 128;       // from panel to panel
  static constexpr uint32_t kSliceBytes = kSmallBoxes ? kDim / 64 * 2048 : 2048;  // from 16 rows to the next
  using Math = TileMath<T, kDim, kFeatures, kPanelBytes, kSliceBytes>;
  using Rows = UnitRows<T, kDim, kListed, kFeatures>;
  const DecodeParams& p;
  Shared& shared;
  const int lane, warp;

  __device__ __forceinline__ void run() {
    uint32_t tiles_before = 0;
    uint32_t merges = 0;
    bool was_wide = false;
    for (uint32_t wave = 0;; ++wave) {
      const uint32_t slot = wave % kWaveSlots;
      mbarrier_wait(shared_address(&shared.wave_full[slot]), (wave / kWaveSlots) & 1);
      const Wave& w = shared.wave[slot];
      const int units = w.units;
      if (units == 0) break;
      if constexpr (kWide) {
        const bool is_wide = w.mode >= kWaveWide;
        // `merge` changes its use: every warp is done with the one before.
        if (is_wide != was_wide) named_barrier_sync(1, 32 * kConsumers);
        was_wide = is_wide;
        if (is_wide) {
          WideConsumer<T, kDim, Shared>{p, shared, lane, warp}.walk(w, wave, tiles_before);
          tiles_before += static_cast<uint32_t>(w.unit[0].tiles + (units > 1 ? w.unit[1].tiles : 0));
          arrive_as_warp(shared_address(&shared.wave_empty[slot]), lane);
          continue;
        }
      }
      const int log_groups = w.mode;
      // Made anew in every wave: the wide waves need the registers.
      int lane = this->lane;
      asm volatile("" : "+r"(lane));
      const TileOffsets offsets(lane);
      const Rows rows{p, kDim == 256 ? lane : this->lane};
      const int u = warp >> log_groups, row_group = warp & ((1 << log_groups) - 1);
      const int tiles = lane < units ? w.unit[lane].tiles : 0;
      const unsigned runs = rows.runs_of(w.unit, units);  // by now: behind the walk it would be waited for
      const bool works = u < units && row_group * 8 < w.unit[u].rows;
      float m[2] = {minus_infinity(), minus_infinity()}, l[2] = {0.0f, 0.0f};
      float o[kSteps][4];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.0f;
      uint32_t q[kSteps][2];
      RowView view;
      int first_key = 0, end_key = 0;
      if (u < units) {
        const UnitEntry& e = w.unit[u];
        first_key = e.first_key;
        end_key = e.end_key;
        rows.load_q(e, row_group, q);
        if constexpr (kFeatures) view = rows.view_of(e, row_group);
      }
      int place = 0;
      for (int t = 0; t < kUnitTiles; ++t) {
        const unsigned busy = __ballot_sync(~0u, tiles > t);
        if (busy == 0) break;
        if (u < units && ((busy >> u) & 1) != 0) {
          const int at = place + __popc(busy & ((1u << u) - 1));
          const uint32_t stage = (tiles_before + static_cast<uint32_t>(at)) % Shared::kStages;
          const uint32_t k_full = shared_address(&shared.k_full[slot][at]);
          const uint32_t v_full = shared_address(&shared.v_full[slot][at]);
          const uint32_t phase = (wave / kWaveSlots) & 1;
          if (works) {
            walk_tile(stage, k_full, v_full, phase, first_key + t * kTile, end_key, q, m, l, o, offsets,
                      view);
          } else {
            // Nothing to do, but the copies must have landed before the stage can be written again.
            mbarrier_wait(k_full, phase);
            mbarrier_wait(v_full, phase);
          }
          __syncwarp();
          if (kWarpArrivals > 1 || lane == 0) {
            mbarrier_arrive_many(shared_address(&shared.empty[stage]),
                                 static_cast<uint32_t>(kConsumers >> log_groups));
          }
        }
        place += __popc(busy);
      }
      tiles_before += static_cast<uint32_t>(place);
      if (wave == 0) mbarrier_wait(shared_address(&shared.verdict), 0);
      hand_in(rows, merges, works ? w.unit[u].rows - row_group * 8 : 0, m, l, o);
      fold(rows, merges, w, runs, wave > 0 || shared.guess_was_right != 0);
      ++merges;
      arrive_as_warp(shared_address(&shared.wave_empty[slot]), lane);
    }
  }

  __device__ __forceinline__ void walk_tile(uint32_t stage, uint32_t k_full, uint32_t v_full, uint32_t phase,
                                            int key, int end_key, const uint32_t (&q)[kSteps][2],
                                            float (&m)[2], float (&l)[2], float (&o)[kSteps][4],
                                            const TileOffsets& offsets, const RowView& view) const {
    const Math math{p, lane};
    const uint32_t base = shared_address(shared.stage[stage]);
    float s[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) s[i][0] = s[i][1] = s[i][2] = s[i][3] = 0.0f;
    mbarrier_wait(k_full, phase);
    math.template multiply_keys<0, 4>(s, q, base, offsets);
    uint32_t probability[4][2];
    math.softmax(s, probability, m, l, o, key, end_key, view);
    mbarrier_wait(v_full, phase);
    const uint32_t v = base + Shared::kTileBytes;
    if (math.has_gaps(key, end_key, view)) {
      math.multiply_values_with_gaps(o, probability, v, offsets, key, end_key, view);
    } else {
      math.multiply_values(o, probability, v, offsets);
    }
  }

  // The warp's state of its unit and row group, `rows_of_it` of them, to shared memory.
  __device__ __forceinline__ void hand_in(const Rows& rows, uint32_t merges, int rows_of_it,
                                          const float (&m)[2], float (&l)[2],
                                          const float (&o)[kSteps][4]) const {
    mbarrier_wait(shared_address(&shared.merge_free), (merges & 1) ^ 1);
    Rows::add_residues(l);
    rows.hand_in(shared, warp, rows_of_it, m, l, o);
    arrive_as_warp(shared_address(&shared.merge_full), lane);
  }

  __device__ __forceinline__ void fold(const Rows& rows, uint32_t merges, const Wave& w, unsigned runs,
                                       bool counts) const {
    mbarrier_wait(shared_address(&shared.merge_full), merges & 1);
    if (counts) rows.fold_rows(shared, w.unit, w.units, runs, w.mode, warp, kConsumers);
    arrive_as_warp(shared_address(&shared.merge_free), lane);
  }
};

// With kWide 384 threads: warpgroups 0 and 1 consume, the third gives its registers to them.
template <typename T, int kDim, int kGroups, bool kListed, bool kFeatures, bool kWide, bool kSmallBoxes>
__global__ void __launch_bounds__(kWide ? kWideThreads : kDecodeThreads, 1)
    decode_kernel(const __grid_constant__ DecodeParams p) {
  using Shared = DecodeShared<kDim, kGroups, kSmallBoxes>;
  extern __shared__ __align__(1024) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Left pads and windows would have to be read twice, too.
  const bool guesses = !kFeatures && (kListed || p.batch <= Lengths::kMost);
  // What is far away is asked for before there is anything else to do.
  auto pieces = [&] {
    if constexpr (kListed) {
      return ListedPieces<kFeatures>(p, shared.listed, static_cast<int>(blockIdx.x));
    } else {
      return LengthPieces<kFeatures>(p, guesses ? shared.lengths : nullptr, static_cast<int>(blockIdx.x));
    }
  }();
  int32_t asked = 0, cached = 0, cached_sequence = -1;
  if (warp == kConsumers) {
    pieces.open();
    asked = pieces.ask();
    if (guesses) cached_sequence = pieces.sequence_of_block();
    if (cached_sequence >= 0 && lane * kTile < p.capacity) {
      cached = load_now(p.block_table + cached_sequence * p.table_stride + p.by_page.quotient(lane * kTile));
    }
  }
  p.touch();
  // One lane of each warp a part of the barriers, in straight code: lanes would take turns.
  static_assert(kWaveSlots * kWaveTiles * 2 == 32 * kConsumers);
  if (warp < kConsumers && lane == 0) {
    const uint32_t its = shared_address(&shared.k_full[0][0] + 32 * warp);
#pragma unroll
    for (int i = 0; i < 32; ++i) mbarrier_init(its + 8 * i, 1);
  }
  if (warp == kConsumers && lane == 0) {
    prefetch_tensor_map(&p.k_map);
    prefetch_tensor_map(&p.v_map);
#pragma unroll
    for (int s = 0; s < Shared::kStages; ++s)
      mbarrier_init(shared_address(&shared.empty[s]), kConsumers * kWarpArrivals);
#pragma unroll
    for (int s = 0; s < kWaveSlots; ++s) {
      mbarrier_init(shared_address(&shared.wave_full[s]), kWarpArrivals);
      mbarrier_init(shared_address(&shared.wave_empty[s]), (kConsumers + 1) * kWarpArrivals);
    }
    mbarrier_init(shared_address(&shared.verdict), kWarpArrivals);
    mbarrier_init(shared_address(&shared.merge_full), kConsumers * kWarpArrivals);
    mbarrier_init(shared_address(&shared.merge_free), kConsumers * kWarpArrivals);
  }
  fence_barrier_init();
  __syncthreads();
  // What a plan holds was there before the kernels ahead; everything else is waited for, or guessed.
  if (warp >= kConsumers) {
    if constexpr (kWide) registers_down<104>();
    if (warp == kConsumers) {
      if (!guesses) {
        dependency_wait();
        if constexpr (!kListed) dependency_launch();
        pieces.bring_table_near();
        if (lane == 0) shared.guess_was_right = 1;
        arrive_as_warp(shared_address(&shared.verdict), lane);
      }
      pieces.begin(asked);
      Producer<Shared, kListed, kWide, kFeatures> producer{p, shared, lane};
      producer.run(pieces, guesses, cached, cached_sequence);
    } else if (warp == kConsumers + 1) {
      dependency_wait();
      if constexpr (!kListed) dependency_launch();
      copy_values<Shared, kListed, kFeatures>(p, shared, lane);
    }
    return;
  }
  if constexpr (kWide) registers_up<200>();
  if constexpr (kListed) {
    // The rows of the first piece will be asked for at once.
    const int first = p.piece_first[blockIdx.x];
    if (first < p.piece_first[blockIdx.x + 1]) {
      const Piece* piece = p.pieces + first;
      const int token = lane * p.group < piece->rows ? piece->first_token + lane : piece->first_token;
      near(p.token_list + token);
    }
  }
  if constexpr (!kFeatures) {
    // While the kernels ahead end: the first tiles, a warp each.
    if (guesses && (kListed || warp < Shared::kNear)) {
      mbarrier_wait(shared_address(&shared.wave_full[0]), 0);
      if (warp < shared.wave[0].tiles && (warp < Shared::kNear || shared.wave[0].mode < kWaveWide)) {
        Copier<Shared, kListed, kFeatures>{p, shared, lane}.bring_near(0, warp);
      }
    }
  }
  dependency_wait();
  if constexpr (!kListed) {
    dependency_launch();
  } else if (warp == 0 && lane == 0) {
    if (p.progress != nullptr) {
      store_relaxed(&p.progress[blockIdx.x].warps, 0);
      fence_acquire_release();  // who starts then finds it
    }
    dependency_launch();
  }
  Consumer<T, kDim, kGroups, kListed, kFeatures, kWide, kSmallBoxes> consumer{p, shared, lane, warp};
  consumer.run();
  if constexpr (kListed) {
    static_assert(kConsumers == kHandingWarps);
    if (p.progress != nullptr) {
      __syncwarp();
      int thread;  // read again: nothing is kept for it meanwhile
      asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
      if (thread % 32 == 0) add_release(&p.progress[blockIdx.x].warps, 1);
    }
  }
}

}  // namespace tessera::attention::cuda::sm90
