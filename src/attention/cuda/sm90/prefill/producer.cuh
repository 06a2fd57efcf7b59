// The forward kernel's producers: one thread brings tiles of Q and K to shared memory by TMA, one of another
// warp V. Where sequences lie in pages they are two warps, whose lanes look up a block's pages at once; and
// as a thread issues a box in some 150 cycles, two more take every other box.
#pragma once

#include <cstdint>

#include "attention/cuda/common/pipe.cuh"
#include "attention/cuda/common/ptx.cuh"
#include "attention/cuda/sm90/prefill/config.h"
#include "attention/cuda/sm90/prefill/schedule.h"

namespace tessera::attention::cuda::sm90 {

template <typename C>
struct PrefillShared {
  uint32_t base;
  // A warpgroup's Q buffers are stages of one ring: group * kQBuffers + buffer.
  __device__ __forceinline__ uint32_t q(uint32_t stage) const { return base + stage * C::kQBytes; }
  __device__ __forceinline__ uint32_t o(int group) const {
    return base + (C::kOInQ ? 0 : C::kO) + group * C::kQBytes;
  }
  __device__ __forceinline__ uint32_t k(uint32_t stage) const { return base + C::kK + stage * C::kTileBytes; }
  __device__ __forceinline__ uint32_t v(uint32_t stage) const { return base + C::kV + stage * C::kTileBytes; }
  __device__ __forceinline__ Ring k_ring() const { return {base + C::kBarriers}; }
  __device__ __forceinline__ Ring v_ring() const { return {base + C::kBarriers + 16 * C::kStages}; }
  __device__ __forceinline__ Ring q_ring() const { return {base + C::kBarriers + 32 * C::kStages}; }
  __device__ __forceinline__ Ring tile_ring() const { return {base + kTiles}; }
  // The two tiles on their way.
  __device__ __forceinline__ uint32_t tile(uint32_t stage) const { return base + kTiles + 32 + 4 * stage; }
  static constexpr uint32_t kTiles = C::kBarriers + 32 * C::kStages + 16 * C::kGroups * C::kQBuffers;

  __device__ __forceinline__ int load_tile(uint32_t stage) const {
    int value;
    asm volatile("ld.shared.s32 %0, [%1];" : "=r"(value) : "r"(tile(stage)) : "memory");
    return value;
  }
  __device__ __forceinline__ void store_tile(uint32_t stage, int value) const {
    asm volatile("st.shared.s32 [%0], %1;" ::"r"(tile(stage)), "r"(value) : "memory");
  }
};

// Of rows [first, last] of a tile's head.
template <typename C>
__device__ __forceinline__ KeyBlocks blocks_of(const PrefillParams& p, const Sequence& rows, int first,
                                               int last) {
  return key_blocks<C::BN, C::kSight, C::kForm>(p, rows, row_at<C::kForm>(p, first),
                                                row_at<C::kForm>(p, last));
}

// What a producer brings: V, else Q and K. A thread's role or, where there are pages, a warp's; one that
// helps takes every other box of keys.
struct ThreadRole {
  bool values;
  static constexpr bool helps = false, pages = false;
};
template <bool kValues, bool kHelps>
struct PagesRole {
  static constexpr bool values = kValues, helps = kHelps, pages = true;
};

template <typename C, typename Role>
struct PrefillProducer {
  static constexpr int BN = C::BN, kGroups = C::kGroups, kPanels = C::kPanels;
  static constexpr bool kPages = Role::pages, kGrouped = C::kForm == Form::grouped;
  using Params = typename C::Params;
  const Params& p;
  const PrefillShared<C>& shared;
  const Role role;
  const int lane;

  // Whoever arrives and copies.
  __device__ __forceinline__ bool leads() const { return !kPages || lane == 0; }

  // The tile after `tile`, or p.tiles. The counter's last fetch of a launch sets it back to 0: of `tiles`
  // fetches in all, because every block's first tile is its own number and each block fetches until it gets
  // one past the end.
  __device__ __forceinline__ int fetch() const {
    int next = 0;
    if (leads()) {
      const int fetched = atomicAdd(p.next_tile, 1);
      if (fetched == p.tiles - 1) *p.next_tile = 0;
      next = at_most(fetched + static_cast<int>(gridDim.x), p.tiles);
    }
    return kPages ? __shfl_sync(0xffffffffu, next, 0) : next;
  }

  // Of the lane's box of a block: its page, and its first slot in there.
  struct Box {
    int page = 0, slot = 0;
  };
  __device__ __forceinline__ Box box_of(const Sequence& sequence, int block, int batch) const {
    Box box;
    if constexpr (kPages) {
      const int inside = lane * p.box_rows, key = block * BN + inside;
      if (inside >= BN || key >= sequence.keys) return box;
      const int index = static_cast<int>(p.page.quotient(static_cast<uint32_t>(key)));
      box.page = at_most(at_least(p.block_table[int64_t{batch} * p.table_stride + index], 0), p.pages - 1);
      box.slot = key - index * static_cast<int>(p.page.divisor);
    }
    return box;
  }

  // Keys [block * BN, + BN) of the sequence to a tile. Pages past the last key are not looked up: their rows
  // stay as they are, and are masked. A helper arrives also where it has no box: neither of the two may be
  // rounds behind the other, or it would take a stage that is in use for a free one.
  __device__ __forceinline__ void load_keys(const Sequence& sequence, const CUtensorMap* map, uint32_t tile,
                                            uint32_t full, int block, int kv_head, const Box& mine) const {
    if constexpr (kPages) {
      const int present =
          at_most(at_least((sequence.keys - block * BN + p.box_rows - 1) / p.box_rows, 0), BN / p.box_rows);
      const int boxes = role.helps ? present / 2 : (present + 1) / 2;
      if (leads()) mbarrier_arrive_expect(full, boxes * p.box_rows * kPanels * 128);
#pragma unroll 1
      for (int box = role.helps ? 1 : 0; box < present; box += 2) {
        const int page = __shfl_sync(0xffffffffu, mine.page, box);
        const int slot = __shfl_sync(0xffffffffu, mine.slot, box);
        if (leads()) {
#pragma unroll
          for (int panel = 0; panel < kPanels; ++panel) {
            tma_load_4d(tile + panel * (BN * 128) + box * p.box_rows * 128, map, full, 64 * panel, slot,
                        kv_head, page);
          }
        }
      }
    } else {
      mbarrier_arrive_expect(full, C::kTileBytes);
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) {
        tma_load_4d(tile + panel * (BN * 128), map, full, 64 * panel, sequence.k_first + block * BN, kv_head,
                    sequence.k_batch);
      }
    }
  }

  __device__ __forceinline__ void load_queries(const TileIndex& index, const Sequence& rows, int first,
                                               uint32_t buffer, uint32_t phase) const {
#pragma unroll 1
    for (int group = 0; group < kGroups; ++group) {
      const uint32_t stage = group * C::kQBuffers + buffer;
      shared.q_ring().acquire(stage, phase);
      shared.q_ring().expect(stage,
                             kGrouped ? p.positions.divisor * p.group.divisor * (kPanels * 128) : C::kQBytes);
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) {
        const int row = rows.q_first + row_at<C::kForm>(p, first + 64 * group);
        tma_load_4d(shared.q(stage) + panel * (64 * 128), &p.q, shared.q_ring().full(stage), 64 * panel,
                    kGrouped ? index.head : row, kGrouped ? row : index.head, rows.q_batch);
      }
    }
  }

  __device__ __forceinline__ void run() const {
    RingPosition<C::kStages> at;
    RingPosition<2> tiles;
    RingPosition<C::kQBuffers> q_at;
    for (int tile = static_cast<int>(blockIdx.x); tile < p.tiles;) {
      const TileIndex index = tile_index<C::kDynamic, kGrouped>(p, tile);
      const Sequence rows = sequence<C::kForm>(p, index.batch);
      const int first = index.m * C::kRows, count = row_count<C::kForm>(p, rows);
      if (C::kForm == Form::dense || first < count) {
        const KeyBlocks blocks = blocks_of<C>(p, rows, first, at_most(first + C::kRows, count) - 1);
        if (!role.values && !role.helps) {
          if (leads()) load_queries(index, rows, first, q_at.stage, q_at.phase);
          q_at.next();
        }
        const Ring ring = role.values ? shared.v_ring() : shared.k_ring();
        const CUtensorMap* const map = role.values ? &p.v : &p.k;
        const uint32_t tiles_at = role.values ? shared.v(0) : shared.k(0);
#pragma unroll 1
        for (int block = blocks.high - 1; block >= blocks.low; --block) {
          const Box box = box_of(rows, block, index.batch);  // on its way while the stage is waited for
          ring.acquire(at.stage, at.phase);
          if constexpr (kPages) __syncwarp();
          load_keys(rows, map, tiles_at + at.stage * C::kTileBytes, ring.full(at.stage), block, index.kv_head,
                    box);
          at.next();
        }
      }
      if constexpr (C::kDynamic) {
        if (role.values || role.helps) {
          shared.tile_ring().wait(tiles.stage, tiles.phase);
          tile = shared.load_tile(tiles.stage);
          if constexpr (kPages) __syncwarp();
          if (leads()) shared.tile_ring().release(tiles.stage);
        } else {
          tile = fetch();
          shared.tile_ring().acquire(tiles.stage, tiles.phase);
          if (leads()) {
            shared.store_tile(tiles.stage, tile);
            mbarrier_arrive(shared.tile_ring().full(tiles.stage));
          }
        }
        tiles.next();
      } else {
        tile += static_cast<int>(gridDim.x);
      }
    }
  }
};

}  // namespace tessera::attention::cuda::sm90
