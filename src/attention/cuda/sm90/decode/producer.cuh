// The producers of the decode kernel. One warp turns pieces into waves, describes each wave to the consumers,
// and writes down its copies; it issues those of K, and a second warp those of V: an issue takes hundreds of
// cycles, and tiles that lie in L2 arrive as fast.
#pragma once

#include "attention/cuda/common/ptx.cuh"
#include "attention/cuda/sm90/decode/entry.cuh"

namespace tessera::attention::cuda::sm90 {

// What no policy says, as one: the copies of shared and of private blocks are one instruction.
__device__ __forceinline__ uint64_t policy_evict_normal() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Issues the copies of tiles, in order, into the stages of the ring. kAnyDim: the maps are row_map()'s, a box
// a panel.
template <typename Shared, bool kListed, bool kAnyDim>
struct Copier {
  static constexpr int kDim = Shared::kDim;
  static constexpr int kPanels = kDim / 64;
  const DecodeParams& p;
  Shared& shared;
  const int lane;
  const uint64_t private_policy = policy_evict_first(), kept_policy = policy_evict_normal();
  uint32_t stage = 0, round = 0;

  __device__ __forceinline__ uint64_t policy(const WaveTile& c) const {
    return kListed && c.is_shared != 0 ? kept_policy : private_policy;
  }
  __device__ __forceinline__ int boxes(const WaveTile& c) const {
    return kAnyDim || p.box_panels != kPanels ? c.boxes * kPanels : c.boxes;
  }
  // Box i of a tile of several: boxes of whole rows lie one behind the other, boxes of a panel make up panels
  // of the whole tile.
  struct Box {
    uint32_t offset;
    int panel, slot_in_page, block;
  };
  __device__ __forceinline__ Box box(uint32_t slot, int place, const WaveTile& c, int i) const {
    const bool whole_rows = p.box_panels == kPanels;
    const int panel = whole_rows ? 0 : i % kPanels, j = whole_rows ? i : i / kPanels;
    return {static_cast<uint32_t>(panel * (kTile * 128) + j * p.box_rows * (whole_rows ? kPanels : 1) * 128),
            panel, p.by_page.remainder(c.key + j * p.box_rows), shared.blocks[slot][place][j]};
  }

  // K (0) or V (1) of a tile of a wave.
  template <int kIsV>
  __device__ __forceinline__ void copy(uint32_t slot, int place) {
    const WaveTile c = shared.copies[slot][place];
    mbarrier_wait(shared_address(&shared.empty[stage]), (round & 1) ^ 1);
    const uint32_t to =
        shared_address(shared.stage[stage]) + static_cast<uint32_t>(kIsV * Shared::kTileBytes);
    if (++stage == Shared::kStages) {
      stage = 0;
      ++round;
    }
    const uint32_t full =
        shared_address(kIsV != 0 ? &shared.v_full[slot][place] : &shared.k_full[slot][place]);
    const CUtensorMap* map = kIsV != 0 ? &p.v_map : &p.k_map;
    if constexpr (!kAnyDim) {
      if (p.box_rows == kTile) {
        if (lane == 0) {
          mbarrier_arrive_expect(full, static_cast<uint32_t>(Shared::kTileBytes));
          tma_load(to, map, full, 0, c.slot_in_page, 0, c.kv_head, c.block, policy(c));
        }
        return;
      }
    }
    if (lane == 0) mbarrier_arrive_expect(full, static_cast<uint32_t>(c.boxes * p.box_rows * kDim * 2));
    __syncwarp();
    for (int i = lane; i < boxes(c); i += 32) {
      const Box b = box(slot, place, c, i);
      if constexpr (kAnyDim) {
        tma_load_4d(to + b.offset, map, full, 64 * b.panel, b.slot_in_page, c.kv_head, b.block);
      } else {
        tma_load(to + b.offset, map, full, 0, b.slot_in_page, b.panel, c.kv_head, b.block, policy(c));
      }
    }
  }

  // A tile's K and V into L2 alone.
  __device__ __forceinline__ void bring_near(uint32_t slot, int place) const {
    if constexpr (!kAnyDim) {
      const WaveTile c = shared.copies[slot][place];
      if (p.box_rows == kTile) {
        if (lane == 0) {
          tma_near(&p.k_map, 0, c.slot_in_page, 0, c.kv_head, c.block, policy(c));
          tma_near(&p.v_map, 0, c.slot_in_page, 0, c.kv_head, c.block, policy(c));
        }
        return;
      }
#pragma unroll 1
      for (int i = lane; i < boxes(c); i += 32) {
        const Box b = box(slot, place, c, i);
        tma_near(&p.k_map, 0, b.slot_in_page, b.panel, c.kv_head, b.block, policy(c));
        tma_near(&p.v_map, 0, b.slot_in_page, b.panel, c.kv_head, b.block, policy(c));
      }
    }
  }
};

template <typename Shared, bool kListed, bool kWide, bool kAnyDim>
struct Producer {
  const DecodeParams& p;
  Shared& shared;
  const int lane;
  Piece piece{};              // the current one
  int32_t unit = 0, end = 0;  // of it: what comes next

  // The units (or tasks) of a wave: lane u has the u-th.
  struct Gathered {
    Piece piece{};
    int32_t unit = 0, count = 0;
    int units = 0, mode = 0;
  };

  // `guesses`: called while the kernels ahead may still run. Then the first wave is found from lengths and
  // blocks as they are by now, and the consumers are told. Behind dependency_wait() its tiles are loaded, and
  // only then it is seen whether lengths and blocks are the same. If not, `guess_was_right` says so before
  // the consumers give away what they found, and everything begins anew.
  //
  // `cached`: lane i's block of key i * kTile of sequence `cached_sequence`.
  template <typename Pieces>
  __device__ __forceinline__ void run(Pieces& pieces, bool guesses, int32_t cached, int32_t cached_sequence) {
    Copier<Shared, kListed, kAnyDim> copier{p, shared, lane};
    const int boxes = p.box_rows == kTile ? 1 : kTile >> (31 - __clz(p.box_rows));
    for (uint32_t wave = 0;; ++wave) {
      const Gathered found = gather(pieces);
      const int most_tiles = is_wide(found.mode) ? kUnitTiles * kSegmentUnits : kUnitTiles;
      const int32_t first_key = found.unit * kUnit;
      const int32_t tiles =
          found.count == 0
              ? 0
              : max(0, min(found.count * kUnitTiles, (found.piece.end_key - first_key + kTile - 1) / kTile));
      // Lane most_tiles * u + t has tile t of unit u. Block ids are asked for first; what else has to be said
      // of the wave is worked out meanwhile.
      const int u = lane / most_tiles, t = lane % most_tiles;
      Looked looked;
      looked.sequence = __shfl_sync(~0u, found.piece.sequence, u);
      looked.key = __shfl_sync(~0u, first_key, u) + t * kTile;
      looked.end_key = __shfl_sync(~0u, found.piece.end_key, u);
      const bool exists = t < __shfl_sync(~0u, tiles, u) && lane < found.units * most_tiles;
      if (!exists) looked.end_key = 0;
      int32_t block = 0;
      if (boxes == 1) {
        const bool is_cached = looked.sequence == cached_sequence && looked.key < 32 * kTile;
        if (guesses && __all_sync(~0u, is_cached || !exists)) {
          block = __shfl_sync(~0u, cached, looked.key / kTile % 32);
        } else {
          block = looked.block(p, 0, guesses);
        }
      }
      const int32_t kv_head = __shfl_sync(~0u, found.piece.kv_head, u);
      const int32_t is_shared = __shfl_sync(~0u, found.piece.flags, u) & kPieceShared;
      const int32_t all_tiles = __reduce_add_sync(~0u, tiles);
      int place = 0;  // tiles go first tile of every unit, then every second one, ...
#pragma unroll
      for (int i = 0; i < kConsumers; ++i) {
        const int count = __shfl_sync(~0u, tiles, i);
        place += min(count, t) + (i < u && count > t ? 1 : 0);
      }
      const uint32_t slot = wave % kWaveSlots;
      mbarrier_wait(shared_address(&shared.wave_empty[slot]), ((wave / kWaveSlots) & 1) ^ 1);
      Wave& out = shared.wave[slot];
      if (lane < kConsumers)
        out.unit[lane] = found.count == 0 ? UnitEntry{} : unit_entry(found.piece, found.unit, found.count);
      if (lane == 0) {
        out.units = found.units;
        out.mode = found.mode;
        out.tiles = all_tiles;
      }
      if (exists) {
        WaveTile c;
        c.key = looked.key;
        c.slot_in_page = p.by_page.remainder(looked.key);
        c.kv_head = kv_head;
        c.block = block;
        c.is_shared = is_shared;
        c.boxes = (min(kTile, looked.end_key - looked.key) + p.box_rows - 1) >> (31 - __clz(p.box_rows));
        shared.copies[slot][place] = c;
        if (boxes > 1) {
          for (int j = 0; j < boxes; ++j) shared.blocks[slot][place][j] = looked.block(p, j, guesses);
        } else if (kAnyDim) {  // boxes of a panel
          shared.blocks[slot][place][0] = block;
        }
      }
      // That there is nothing to do is no guess.
      if (found.units > 0 || !guesses) arrive_as_warp(shared_address(&shared.wave_full[slot]), lane);
      __syncwarp();
      if (found.units == 0 && !guesses) break;
      const bool was_guess = guesses;
      int32_t asked = 0, block_now = 0;
      if (was_guess) {
        guesses = false;
        dependency_wait();
        if constexpr (!kListed) dependency_launch();
        asked = pieces.ask();
        if (boxes == 1) block_now = looked.block(p, 0, true);
      }
      if (found.units > 0 && lane >= all_tiles) {
        mbarrier_arrive(shared_address(&shared.k_full[slot][lane]));
        mbarrier_arrive(shared_address(&shared.v_full[slot][lane]));
      }
      int next = 0;
      const int at_once = was_guess ? min(all_tiles, Shared::kAtOnce) : all_tiles;
      for (; next < at_once; ++next) copier.template copy<0>(slot, next);
      if (was_guess) {
        bool same = block_now == block || !exists || boxes > 1;
        if (boxes > 1 && exists) {
          for (int j = 0; j < boxes; ++j) same &= looked.block(p, j, true) == shared.blocks[slot][place][j];
        }
        const bool was_right = __all_sync(~0u, same && pieces.is_true(asked));
        if (lane == 0) {
          // Of nothing nobody was told: the truth will be the first wave.
          shared.guess_was_right = was_right || found.units == 0 ? 1 : 0;
        }
        arrive_as_warp(shared_address(&shared.verdict), lane);
        for (; next < all_tiles; ++next) copier.template copy<0>(slot, next);
        if (found.units == 0) --wave;
        if (!was_right) {
          unit = end = 0;
          pieces.begin(pieces.ask());
        }
      }
      __syncwarp();
    }
  }

 private:
  // A tile's blocks.
  struct Looked {
    int32_t sequence, key, end_key;
    // Of box j; `now`: as memory has it while others may write it.
    __device__ __forceinline__ int32_t block(const DecodeParams& p, int j, bool now) const {
      const int at = key + j * p.box_rows;
      if (at >= end_key) return 0;
      const int32_t* from;
      if (p.block_table != nullptr) {
        from = p.block_table + sequence * p.table_stride + p.by_page.quotient(at);
      } else if (p.block_of != nullptr) {
        from = p.block_of + sequence;
      } else {
        return sequence;
      }
      return now ? load_now(from) : __ldg(from);
    }
  };

  template <typename Pieces>
  __device__ __forceinline__ Gathered gather(Pieces& pieces) {
    Gathered found;
    for (;;) {
      if (unit >= end) {
        if (!pieces.next()) break;
        piece = pieces.current();
        unit = piece.first_unit;
        end = piece.end_unit;
      }
      const int its_mode = mode_of(piece);
      if (found.units == 0) found.mode = its_mode;
      const int room = most_units(found.mode) - found.units;
      if (its_mode != found.mode || room == 0) break;
      const bool halves = is_wide(its_mode) && (piece.flags & kPieceHalves) != 0;
      if (halves && unit == piece.first_unit && found.units > 0) break;  // both in one wave
      int taken = 1, count = 1;
      if (is_wide(found.mode)) {
        count = units_of_task(piece, unit, halves, found.units == 0 && found.mode == kWaveWide);
      } else {
        taken = min(room, end - unit);
      }
      if (lane >= found.units && lane < found.units + taken) {
        found.piece = piece;
        found.unit = unit + lane - found.units;
        found.count = count;
      }
      unit += taken * count;
      found.units += taken;
    }
    return found;
  }

  static __device__ __forceinline__ bool is_wide(int mode) {
    return kWide && mode >= kWaveWide;
  }
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
  // Up to the segment's end; `half` of units that another warpgroup takes the rest of.
  static __device__ __forceinline__ int32_t units_of_task(const Piece& piece, int32_t unit, bool halves,
                                                          bool half) {
    const int32_t apart = (halves ? piece.end_unit : apart_end(piece)) - unit;
    if (apart > 0) return min(kSegmentUnits, half ? (apart + 1) / 2 : apart);
    return min(piece.end_unit, (unit / kSegmentUnits + 1) * kSegmentUnits) - unit;
  }
};

// The warp that copies V, wave by wave behind the producer.
template <typename Shared, bool kListed, bool kAnyDim>
__device__ __forceinline__ void copy_values(const DecodeParams& p, Shared& shared, int lane) {
  Copier<Shared, kListed, kAnyDim> copier{p, shared, lane};
  for (uint32_t wave = 0;; ++wave) {
    const uint32_t slot = wave % kWaveSlots;
    mbarrier_wait(shared_address(&shared.wave_full[slot]), (wave / kWaveSlots) & 1);
    if (shared.wave[slot].units == 0) break;
    const int tiles = shared.wave[slot].tiles;
    for (int place = 0; place < tiles; ++place) copier.template copy<1>(slot, place);
    arrive_as_warp(shared_address(&shared.wave_empty[slot]), lane);
  }
}

}  // namespace tessera::attention::cuda::sm90
