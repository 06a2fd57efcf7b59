// The persistent kernel of decode and of tree attention: one producer warp, eight consumer warps, one block
// an SM.
//
// The producer turns pieces into waves of up to eight tasks (unit, row group), describes each wave to the
// consumers in shared memory, and brings its tiles through the ring: first tile of every unit, then every
// second one, ... so that all warps have work at once. A consumer warp walks its unit alone: m16n8k16 with
// keys (then dims) as m and rows as n, so that 1 to 8 rows cost the same; then the wave's states are folded
// in order through shared memory, warp w taking rows w, w + 8, ...
//
// Invariants:
//  1. work.h's arithmetic.
//  2. A stage's tile is used by the row groups of its unit; the empty barrier counts eight arrivals, of which
//     each of g groups makes 8 / g.
//  3. What lies in a tile at and behind end_key counts as 0 in V and is replaced in scores: p there is 0, but
//     memory may hold NaN. It is masked in registers, because a unit's row groups read the same stage.
//  4. `merge` belongs to the consumers between merge_free and merge_full; `running` row r to warp r % 8.
//
// Bytes: K and V of each piece once; q once a unit (from L2); o once. Per tile of 64 keys and 128 dims a warp
// issues 64 mma and 64 ldmatrix.x4, about half of the time that the tile takes to arrive.
#pragma once

#include "attention/cuda/common/ptx.cuh"
#include "attention/cuda/sm90/decode/entry.cuh"
#include "attention/cuda/sm90/decode/wide.cuh"
#include "attention/cuda/steps/rows.cuh"
#include "attention/cuda/steps/schedule.cuh"
#include "attention/cuda/steps/tile.cuh"

namespace tessera::attention::cuda::sm90 {

// What no policy says, as one: the copies of shared and of private blocks are one instruction.
__device__ __forceinline__ uint64_t policy_evict_normal() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// ---- Producer
// -----------------------------------------------------------------------------------------------

// kAnyDim: the maps are row_map()'s, a box a panel.
template <int kDim, int kGroups, bool kListed, bool kWide, bool kAnyDim>
struct Producer {
  using Shared = DecodeShared<kDim, kGroups>;
  const DecodeParams& p;
  Shared& shared;
  const int lane;
  uint32_t tile = 0;  // tiles issued so far
  uint64_t private_policy, kept_policy;

  template <typename Pieces>
  __device__ __forceinline__ void run(Pieces&& pieces) {
    Piece piece;
    int32_t unit = 0, end = 0;  // of the piece
    for (uint32_t wave = 0;; ++wave) {
      // Lane u: unit (or task) u of the wave.
      Piece own{};
      int32_t own_unit = 0, own_count = 0;
      int units = 0, mode = 0;
      for (;;) {
        if (unit >= end) {
          if (!pieces.next(piece)) break;
          unit = piece.first_unit;
          end = piece.end_unit;
        }
        const int its_mode = mode_of(piece);
        if (units == 0) mode = its_mode;
        const int room = most_units(mode) - units;
        if (its_mode != mode || room == 0) break;
        int taken = 1, count = 1;
        if (is_wide(mode)) {
          count = units_of_task(piece, unit, units == 0 && mode == kWaveWide);
        } else {
          taken = min(room, end - unit);
        }
        if (lane >= units && lane < units + taken) {
          own = piece;
          own_unit = unit + lane - units;
          own_count = count;
        }
        unit += taken * count;
        units += taken;
      }
      // Block ids are asked for first; what else has to be said of the wave is worked out meanwhile.
      const int most_tiles = is_wide(mode) ? kUnitTiles * kSegmentUnits : kUnitTiles;
      const int32_t first_key = own_unit * kUnit;
      const int32_t tiles =
          own_count == 0 ? 0
                         : max(0, min(own_count * kUnitTiles, (own.end_key - first_key + kTile - 1) / kTile));
      const Lookup lookup = look_up(own.sequence, first_key, own.end_key, tiles, most_tiles);
      const int32_t page = p.box_rows == kTile ? lookup.block(p, 0) : 0;
      const uint32_t slot = wave % kWaveSlots;
      mbarrier_wait(shared_address(&shared.wave_empty[slot]), ((wave / kWaveSlots) & 1) ^ 1);
      Wave& out = shared.wave[slot];
      if (lane < kConsumers)
        out.unit[lane] = own_count == 0 ? UnitEntry{} : unit_entry(own, own_unit, own_count);
      if (lane == 0) {
        out.units = units;
        out.mode = mode;
      }
      __syncwarp();
      if (lane == 0) mbarrier_arrive(shared_address(&shared.wave_full[slot]));
      if (units == 0) break;
      if (p.box_rows == kTile) {
        shared.pages[lane * 8] = page;
      } else {
        for (int j = 0; j < kTile >> log_box_rows(); ++j) shared.pages[lane * 8 + j] = lookup.block(p, j);
      }
      __syncwarp();
      if (lane >= __reduce_add_sync(~0u, tiles)) {
        mbarrier_arrive(shared_address(&shared.k_full[slot][lane]));
        mbarrier_arrive(shared_address(&shared.v_full[slot][lane]));
      }
      int place = 0;
      for (int t = 0; t < most_tiles; ++t) {
        unsigned waiting = __ballot_sync(~0u, lane < units && tiles > t);
        while (waiting != 0) {
          const int u = __ffs(static_cast<int>(waiting)) - 1;
          waiting &= waiting - 1;
          const int key = __shfl_sync(~0u, first_key, u) + t * kTile;
          const int end_key = __shfl_sync(~0u, own.end_key, u);
          issue(slot, place++, u * most_tiles + t, key, end_key, __shfl_sync(~0u, own.kv_head, u),
                (__shfl_sync(~0u, own.flags, u) & kPieceShared) != 0);
        }
      }
      __syncwarp();
    }
  }

  static __device__ __forceinline__ bool is_wide(int mode) { return kWide && mode >= kWaveWide; }
  // Above 8 rows each warp would read the whole tile from shared memory for its 8: four of them take 1.5
  // times as long as the tile takes to arrive. But warpgroups do not mask, so private rows stay with the
  // warps.
  static __device__ __forceinline__ int mode_of(const Piece& piece) {
    if (kWide && piece.rows > 8 && (piece.flags & kPieceShared) != 0) {
      return piece.rows > kWideRows ? kWaveWideBoth : kWaveWide;
    }
    return piece.rows <= 8 ? 0 : piece.rows <= 16 ? 1 : 2;
  }
  static __device__ __forceinline__ int most_units(int mode) {
    return !is_wide(mode) ? kConsumers >> mode : mode == kWaveWide ? 2 : 1;
  }
  // Up to the segment's end; of units that go over apart, `half`: as many as leave another warpgroup the
  // rest.
  static __device__ __forceinline__ int32_t units_of_task(const Piece& piece, int32_t unit, bool half) {
    const int32_t apart = apart_end(piece) - unit;
    if (apart > 0) return min(kSegmentUnits, half ? (apart + 1) / 2 : apart);
    return min(piece.end_unit, (unit / kSegmentUnits + 1) * kSegmentUnits) - unit;
  }

  // Lane most_tiles * u + t looks up the blocks of tile t of unit u.
  struct Lookup {
    int32_t sequence, key, end_key;  // no key: nothing to look up
    // Of the tile's box j.
    __device__ __forceinline__ int32_t block(const DecodeParams& p, int j) const {
      const int at = key + j * p.box_rows;
      if (at >= end_key) return 0;
      if (p.block_table != nullptr)
        return __ldg(p.block_table + sequence * p.table_stride + p.by_page.quotient(at));
      return p.block_of != nullptr ? __ldg(p.block_of + sequence) : sequence;
    }
  };
  __device__ __forceinline__ Lookup look_up(int32_t sequence, int32_t first_key, int32_t end_key,
                                            int32_t tiles, int most_tiles) const {
    const int u = lane / most_tiles, t = lane % most_tiles;
    Lookup found;
    found.sequence = __shfl_sync(~0u, sequence, u);
    found.key = __shfl_sync(~0u, first_key, u) + t * kTile;
    const int32_t its_end = __shfl_sync(~0u, end_key, u);
    found.end_key = t < __shfl_sync(~0u, tiles, u) ? its_end : 0;
    return found;
  }

  __device__ __forceinline__ int log_box_rows() const { return 31 - __clz(p.box_rows); }

  // One tile of K and V; the lanes issue a box each.
  __device__ __forceinline__ void issue(uint32_t slot, int place, int looked_up, int key, int end_key,
                                        int kv_head, bool is_shared) {
    const uint32_t stage = tile % Shared::kStages;
    mbarrier_wait(shared_address(&shared.empty[stage]), ((tile / Shared::kStages) & 1) ^ 1);
    ++tile;
    constexpr int kPanels = kDim / 64;
    const int log_rows = log_box_rows();
    const int boxes = (min(kTile, end_key - key) + p.box_rows - 1) >> log_rows;
    // Boxes of whole rows lie one behind the other; boxes of a panel make up panels of the whole tile.
    const bool whole_rows = p.box_panels == kPanels;
    const uint32_t k_full = shared_address(&shared.k_full[slot][place]);
    const uint32_t v_full = shared_address(&shared.v_full[slot][place]);
    if (lane < 2) {
      mbarrier_arrive_expect(lane == 0 ? k_full : v_full,
                             static_cast<uint32_t>((boxes << log_rows) * kDim * 2));
    }
    __syncwarp();
    const uint32_t base = shared_address(shared.stage[stage]);
    if constexpr (!kAnyDim) {
      if (p.box_rows == kTile) {
        if (lane == 0) {
          const int slot_in_page = p.by_page.remainder(key), block = shared.pages[looked_up * 8];
          const uint64_t policy = kListed && is_shared ? kept_policy : private_policy;
          tma_load(base, &p.k_map, k_full, 0, slot_in_page, 0, kv_head, block, policy);
          tma_load(base + Shared::kTileBytes, &p.v_map, v_full, 0, slot_in_page, 0, kv_head, block, policy);
        }
        return;
      }
    }
    for (int i = lane; i < 2 * boxes * (whole_rows ? 1 : kPanels); i += 32) {
      const int is_v = i & 1;
      const int panel = whole_rows ? 0 : (i >> 1) % kPanels, j = whole_rows ? i >> 1 : (i >> 1) / kPanels;
      const uint32_t to = base + static_cast<uint32_t>(is_v * Shared::kTileBytes + panel * (kTile * 128) +
                                                       ((j << log_rows) * (whole_rows ? kPanels : 1)) * 128);
      const int slot_in_page = p.by_page.remainder(key + (j << log_rows));
      const int block = shared.pages[looked_up * 8 + j];
      const CUtensorMap* map = is_v != 0 ? &p.v_map : &p.k_map;
      const uint32_t full = is_v != 0 ? v_full : k_full;
      if constexpr (kAnyDim) {
        tma_load_4d(to, map, full, 64 * panel, slot_in_page, kv_head, block);
      } else {
        tma_load(to, map, full, 0, slot_in_page, panel, kv_head, block,
                 kListed && is_shared ? kept_policy : private_policy);
      }
    }
  }
};

// ---- Consumer
// -----------------------------------------------------------------------------------------------

// kSmallBoxes: tiles are four boxes of 16 whole rows instead of panels of 64 rows.
template <typename T, int kDim, int kGroups, bool kListed, bool kFeatures, bool kWide, bool kSmallBoxes>
struct Consumer {
  using Shared = DecodeShared<kDim, kGroups>;
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
          WideConsumer<T, kDim, Shared>{p, shared, lane, warp}.walk(w, slot, (wave / kWaveSlots) & 1,
                                                                    tiles_before);
          tiles_before += static_cast<uint32_t>(w.unit[0].tiles + (units > 1 ? w.unit[1].tiles : 0));
          __syncwarp();
          if (lane == 0) mbarrier_arrive(shared_address(&shared.wave_empty[slot]));
          continue;
        }
      }
      const int log_groups = w.mode;
      // Made anew in every wave: the wide waves need the registers.
      int lane = this->lane;
      asm volatile("" : "+r"(lane));
      const TileOffsets offsets(lane);
      const Rows rows{p, this->lane};
      const int u = warp >> log_groups, row_group = warp & ((1 << log_groups) - 1);
      const int tiles = lane < units ? w.unit[lane].tiles : 0;
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
          if (lane == 0) {
            mbarrier_arrive_many(shared_address(&shared.empty[stage]),
                                 static_cast<uint32_t>(kConsumers >> log_groups));
          }
        }
        place += __popc(busy);
      }
      tiles_before += static_cast<uint32_t>(place);
      hand_in(rows, merges, works ? w.unit[u].rows - row_group * 8 : 0, m, l, o);
      fold(rows, merges, w);
      ++merges;
      __syncwarp();
      if (lane == 0) mbarrier_arrive(shared_address(&shared.wave_empty[slot]));
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
    __syncwarp();
    if (lane == 0) mbarrier_arrive(shared_address(&shared.merge_full));
  }

  __device__ __forceinline__ void fold(const Rows& rows, uint32_t merges, const Wave& w) const {
    mbarrier_wait(shared_address(&shared.merge_full), merges & 1);
    for (int group = 0; group < 1 << w.mode; ++group) {
      rows.fold_row(shared, w.unit, w.units, w.mode, group * 8 + warp);
    }
    __syncwarp();
    if (lane == 0) mbarrier_arrive(shared_address(&shared.merge_free));
  }
};

// With kWide 384 threads: warpgroups 0 and 1 consume, the third gives its registers to them.
template <typename T, int kDim, int kGroups, bool kListed, bool kFeatures, bool kWide, bool kSmallBoxes>
__global__ void __launch_bounds__(kWide ? kWideThreads : kDecodeThreads, 1)
    decode_kernel(const __grid_constant__ DecodeParams p) {
  using Shared = DecodeShared<kDim, kGroups>;
  extern __shared__ __align__(1024) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  p.touch();
  // One lane of each warp a part of them, in straight code: lanes would take turns.
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
    for (int s = 0; s < Shared::kStages; ++s) mbarrier_init(shared_address(&shared.empty[s]), kConsumers);
#pragma unroll
    for (int s = 0; s < kWaveSlots; ++s) {
      mbarrier_init(shared_address(&shared.wave_full[s]), 1);
      mbarrier_init(shared_address(&shared.wave_empty[s]), kConsumers);
    }
    mbarrier_init(shared_address(&shared.merge_full), kConsumers);
    mbarrier_init(shared_address(&shared.merge_free), kConsumers);
  }
  fence_barrier_init();
  __syncthreads();
  // What a plan holds was there before the kernel ahead; everything else is waited for.
  if (warp >= kConsumers) {
    if constexpr (kWide) registers_down<56>();
    if (warp > kConsumers) return;
    Producer<kDim, kGroups, kListed, kWide, kFeatures> producer{
        p, shared, lane, 0, policy_evict_first(), policy_evict_normal()};
    if constexpr (kListed) {
      ListedPieces<kFeatures> pieces(p, shared.listed, static_cast<int>(blockIdx.x));
      dependency_wait();
      dependency_launch();
      pieces.begin();
      producer.run(pieces);
    } else {
      dependency_wait();
      dependency_launch();
      producer.run(LengthPieces<kFeatures>(p, static_cast<int>(blockIdx.x)));
    }
  } else {
    if constexpr (kWide) registers_up<224>();
    if constexpr (kListed) {
      // The rows of the first piece will be asked for at once.
      const int first = p.piece_first[blockIdx.x];
      if (first < p.piece_first[blockIdx.x + 1]) {
        const Piece* piece = p.pieces + first;
        const int token = lane * p.group < piece->rows ? piece->first_token + lane : piece->first_token;
        near(p.token_list + token);
      }
    }
    dependency_wait();
    dependency_launch();
    Consumer<T, kDim, kGroups, kListed, kFeatures, kWide, kSmallBoxes> consumer{p, shared, lane, warp};
    consumer.run();
  }
}

}  // namespace tessera::attention::cuda::sm90
