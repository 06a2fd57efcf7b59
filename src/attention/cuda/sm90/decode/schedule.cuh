// How the lengths of a step, read on the device, become each block's share of the work. Every warp that asks
// computes the same answer from the same lengths, so nothing is stored, and a captured graph stays valid
// while lengths grow.
//
// Items are (sequence, kv head, block of rows) in that order. Whole mode: item j goes to the block in whose
// share of the total cost it begins; contiguous, so that a block keeps walking one table. Split mode (few
// items): the units of all items in one line are cut into equal shares, each cut moved to the nearest
// multiple of `grain` units of its item.
#pragma once

#include "attention/cuda/sm90/decode/params.h"
#include "attention/cuda/sm90/decode/state.cuh"

namespace tessera::attention::cuda::sm90 {

// What beginning and finishing an item costs, in tiles.
inline constexpr int32_t kItemCost = 2;

struct Extent {  // of the keys that some row of a sequence may see
  int32_t keys;
  int32_t first_unit, units;  // units >= 1: rows that see nothing are written too
};

template <bool kFeatures>
__device__ __forceinline__ Extent extent_of(const DecodeParams& p, int b) {
  const int32_t before = p.seqlens != nullptr ? __ldg(p.seqlens + b) : p.seqlen;
  Extent e;
  e.keys = max(0, min(before + p.appended, p.capacity));
  e.first_unit = 0;
  if constexpr (kFeatures) {
    int32_t first = p.features.leftpad != nullptr ? __ldg(p.features.leftpad + b) : 0;
    if (p.features.window_left >= 0) first = max(first, e.keys - p.tokens - p.features.window_left);
    first = max(0, min(first, e.keys - 1));
    e.first_unit = first / kUnit;
  }
  e.units = max(1, (e.keys + kUnit - 1) / kUnit - e.first_unit);
  return e;
}

struct Cut {
  int32_t item;
  int32_t unit;  // of the item's units
};

// The host has checked that every sum here fits 31 bits.
template <bool kFeatures>
struct Schedule {
  const DecodeParams& p;
  int blocks;                       // of the grid
  int32_t total;                    // cost
  int32_t share_floor, share_rest;  // the first share_rest blocks get one more
  bool split;
  int32_t grain;

  __device__ __forceinline__ int items_of_sequence() const { return p.kv_heads * p.row_blocks; }
  __device__ __forceinline__ int32_t cost(const Extent& e) const {
    return split ? e.units : (e.keys + kTile - 1) / kTile + kItemCost;
  }

  // By a whole warp.
  __device__ __forceinline__ Schedule(const DecodeParams& params, int blocks_in)
      : p(params), blocks(blocks_in), split(false), grain(kSegmentUnits) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int32_t tiles = 0, units = 0, most = 0;
    for (int b = lane; b < p.batch; b += 32) {
      const Extent e = extent_of<kFeatures>(p, b);
      tiles += cost(e);
      units += e.units;
      most = max(most, e.units);
    }
    tiles = __reduce_add_sync(~0u, tiles);
    units = __reduce_add_sync(~0u, units);
    if (p.may_split != 0) {
      // Measured on an H200: below some 16 items a split pays from two units on, else above a segment.
      most = __reduce_max_sync(~0u, most);
      grain = p.batch * items_of_sequence() * 8 <= blocks ? 1 : kSegmentUnits;
      split = most > (grain == 1 ? 2 : kSegmentUnits);
    }
    total = (split ? units : tiles) * items_of_sequence();
    share_floor = total / blocks;
    share_rest = total - share_floor * blocks;
  }

  // The first position of block i's share, on the line of cost.
  __device__ __forceinline__ int32_t share(int i) const { return share_floor * i + min(i, share_rest); }
  // The last block whose share begins at or before `position`.
  __device__ __forceinline__ int block_at(int32_t position) const {
    const int32_t large = (share_floor + 1) * share_rest;
    if (position < large || share_floor == 0) return position / (share_floor + 1);
    return share_rest + (position - large) / share_floor;
  }
  __device__ __forceinline__ int32_t moved_to_grain(const Extent& e, int32_t unit) const {
    const int32_t moved = (e.first_unit + unit + grain / 2) / grain * grain - e.first_unit;
    return max(0, min(moved, e.units));
  }

  // Where block i's work begins. By a whole warp.
  __device__ __forceinline__ Cut begin(int i) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int32_t at = share(i);
    const int per = items_of_sequence();
    if (at >= total) return {p.batch * per, 0};
    int32_t before = 0;
    for (int first = 0; first < p.batch; first += 32) {
      const int b = first + lane;
      Extent e{0, 0, 1};
      int32_t c = 1, sum = 0;
      if (b < p.batch) {
        e = extent_of<kFeatures>(p, b);
        c = cost(e);
        sum = c * per;
      }
      for (int offset = 1; offset < 32; offset <<= 1) {
        const int32_t other = __shfl_up_sync(~0u, sum, offset);
        if (lane >= offset) sum += other;
      }
      const unsigned found = __ballot_sync(~0u, b < p.batch && at < before + sum);
      if (found != 0) {
        const int source = __ffs(static_cast<int>(found)) - 1;
        const int32_t rest = at - (before + sum - c * per);
        int32_t item = b * per, unit = 0;
        if (split) {
          item += rest / c;
          unit = moved_to_grain(e, rest % c);
        } else {
          item += (rest + c - 1) / c;
        }
        return {__shfl_sync(~0u, item, source), __shfl_sync(~0u, unit, source)};
      }
      before += __shfl_sync(~0u, sum, 31);
    }
    return {p.batch * per, 0};
  }

  // The position of sequence b's first item. By a whole warp.
  __device__ __forceinline__ int32_t position(int b) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int32_t sum = 0;
    for (int s = lane; s < b; s += 32) sum += cost(extent_of<kFeatures>(p, s));
    return __reduce_add_sync(~0u, sum) * items_of_sequence();
  }
};

// Pieces of a block's share of a decode, one after the other; every lane of the producer warp holds the same.
template <bool kFeatures>
struct LengthPieces {
  const DecodeParams& p;
  Cut at, end;
  int32_t grain;
  int loaded = -1;  // the sequence of `extent`
  Extent extent;

  __device__ __forceinline__ LengthPieces(const DecodeParams& params, int block, int blocks) : p(params) {
    const Schedule<kFeatures> schedule(p, blocks);
    at = schedule.begin(block);
    end = schedule.begin(block + 1);
    grain = schedule.grain;
  }
  __device__ __forceinline__ bool next(Piece& piece) {
    while (at.item < end.item || (at.item == end.item && at.unit < end.unit)) {
      const int32_t item = at.item;
      const int row_block = item % p.row_blocks, pair = item / p.row_blocks;
      const int b = pair / p.kv_heads;
      if (b != loaded) {
        extent = extent_of<kFeatures>(p, b);
        loaded = b;
      }
      const int32_t first = at.unit;
      const int32_t last = at.item == end.item ? min(end.unit, extent.units) : extent.units;
      at = {at.item + 1, 0};
      if (first >= last) continue;
      const int rows = p.tokens * p.group;
      piece.sequence = b;
      piece.kv_head = pair - b * p.kv_heads;
      piece.first_unit = extent.first_unit + first;
      piece.end_unit = extent.first_unit + last;
      piece.end_key = extent.keys;
      piece.first_token = b * p.tokens;
      piece.first_row = row_block * p.piece_rows;
      piece.rows = min(p.piece_rows, rows - piece.first_row);
      const bool whole = first == 0 && last == extent.units;
      piece.partial = whole ? -1 : (item * p.units_most + first) * p.piece_rows;
      piece.partial_stride = p.piece_rows;
      piece.flags = first > 0 ? kPieceCutBefore : 0;
      return true;
    }
    return false;
  }
};

// Pieces of the host's list.
struct ListedPieces {
  const DecodeParams& p;
  int at, end;
  __device__ __forceinline__ ListedPieces(const DecodeParams& params, int block, int)
      : p(params), at(__ldg(params.piece_first + block)), end(__ldg(params.piece_first + block + 1)) {}
  __device__ __forceinline__ bool next(Piece& piece) {
    if (at >= end) return false;
    piece = p.pieces[at++];
    // The end of a sequence is where it is by now.
    if (piece.end_key < 0) piece.end_key = extent_of<false>(p, piece.sequence).keys;
    return true;
  }
};

}  // namespace tessera::attention::cuda::sm90
