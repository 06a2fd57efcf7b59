// How the lengths of a step, read on the device, become each block's share of the work. Every warp that asks
// computes the same answer from the same lengths, so nothing is stored, and a captured graph stays valid
// while lengths grow.
//
// Items are (sequence, kv head, block of rows) in that order. Whole mode: item j goes to the block in whose
// share of the total cost it begins; contiguous, so that a block keeps walking one table. Split mode (few
// items): the units of all items in one line are cut into equal shares, each cut moved to the nearest
// multiple of `grain` units of its item.
#pragma once

#include "attention/cuda/steps/params.h"
#include "attention/cuda/steps/state.cuh"

namespace tessera::attention::cuda::steps {

// What beginning and finishing an item costs, in tiles.
inline constexpr int32_t kItemCost = 2;

struct Extent {  // of the keys that some row of a sequence may see
  int32_t keys;
  int32_t first_unit, units;  // units >= 1: rows that see nothing are written too
};

// `before`: keys of sequence b in front of those that the call adds.
template <bool kFeatures>
__device__ __forceinline__ Extent extent_from(const DecodeParams& p, int b, int32_t before) {
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

template <bool kFeatures>
__device__ __forceinline__ Extent extent_of(const DecodeParams& p, int b) {
  return extent_from<kFeatures>(p, b, p.seqlens != nullptr ? __ldg(p.seqlens + b) : p.seqlen);
}

// The lengths of a step as a kernel finds them while those before it still run, in shared memory. What
// follows from them is a guess until is_true(), behind dependency_wait(), has read them again. Only lengths
// of the device are kept.
struct Lengths {
  static constexpr int kMost = 256;
  const DecodeParams& p;
  int32_t* kept;  // [kMost], or null: read where they are

  // By a whole warp, with what ask() gave.
  __device__ __forceinline__ void read(int32_t asked) const {
    if (kept == nullptr || p.seqlens == nullptr) return;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    __syncwarp();
    if (lane < p.batch) kept[lane] = asked;
#pragma unroll 1
    for (int b = lane + 32; b < p.batch; b += 32) kept[b] = load_now(p.seqlens + b);
    __syncwarp();
  }
  // The lane's first length: on its way while others are asked for.
  __device__ __forceinline__ int32_t ask() const {
    const int b = static_cast<int>(threadIdx.x) % 32;
    return kept != nullptr && p.seqlens != nullptr && b < p.batch ? load_now(p.seqlens + b) : 0;
  }
  // Of the lane's lengths.
  __device__ __forceinline__ bool is_true(int32_t asked) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (kept == nullptr || p.seqlens == nullptr || lane >= p.batch) return true;
    bool same = kept[lane] == asked;
#pragma unroll 1
    for (int b = lane + 32; b < p.batch; b += 32) same &= kept[b] == load_now(p.seqlens + b);
    return same;
  }
  template <bool kFeatures>
  __device__ __forceinline__ Extent extent(int b) const {
    if (kept == nullptr || p.seqlens == nullptr) return extent_of<kFeatures>(p, b);
    return extent_from<kFeatures>(p, b, kept[b]);
  }
};

struct Cut {
  int32_t item;
  int32_t unit;  // of the item's units
};

// The host has checked that every sum here fits 31 bits.
template <bool kFeatures>
struct Schedule {
  const DecodeParams& p;
  const Lengths lengths;
  const int lane;
  Extent first_extent;              // of sequence `lane`
  int32_t total;                    // cost
  int32_t share_floor, share_rest;  // the first share_rest blocks get one more
  bool split;
  int32_t grain;

  __device__ __forceinline__ int blocks() const { return static_cast<int>(p.by_blocks.value); }
  __device__ __forceinline__ int items_of_sequence() const { return p.kv_heads * p.row_blocks; }
  __device__ __forceinline__ int32_t cost(const Extent& e) const {
    return split ? e.units : (e.keys + kTile - 1) / kTile + kItemCost;
  }
  __device__ __forceinline__ Extent extent(int b) const {
    return b == lane ? first_extent : lengths.extent<kFeatures>(b);
  }

  // By a whole warp.
  __device__ __forceinline__ Schedule(const Lengths& lengths_in, int lane_in)
      : p(lengths_in.p),
        lengths(lengths_in),
        lane(lane_in),
        first_extent{0, 0, 1},
        split(false),
        grain(kSegmentUnits) {
    if (lane < p.batch) first_extent = lengths.extent<kFeatures>(lane);
    int32_t tiles = 0, units = 0, most = 0;
#pragma unroll 1
    for (int b = lane; b < p.batch; b += 32) {
      const Extent e = extent(b);
      tiles += cost(e);
      units += e.units;
      most = max(most, e.units);
    }
    tiles = __reduce_add_sync(~0u, tiles);
    if (p.may_split != 0) {
      units = __reduce_add_sync(~0u, units);
      most = __reduce_max_sync(~0u, most);
      grain = split_grain(p.batch * items_of_sequence(), blocks());
      split = most > kSplitAbove;
    }
    if (one_each()) return;
    total = (split ? units : tiles) * items_of_sequence();
    share_floor = p.by_blocks.quotient(total);
    share_rest = total - share_floor * blocks();
  }

  // The first position of block i's share, on the line of cost.
  __device__ __forceinline__ int32_t share(int i) const {
    return share_floor * i + min(i, share_rest);
  }
  // The last block whose share begins at or before `position`.
  __device__ __forceinline__ int block_at(int32_t position) const {
    const int32_t large = (share_floor + 1) * share_rest;
    if (position < large || share_floor == 0) return position / (share_floor + 1);
    return share_rest + (position - large) / share_floor;
  }
  __device__ __forceinline__ int32_t moved_to_grain(const Extent& e, int32_t unit) const {
    const int32_t at = e.first_unit + unit + grain / 2;
    const int32_t moved = (grain == 1 ? at : at / kSegmentUnits * kSegmentUnits) - e.first_unit;
    return max(0, min(moved, e.units));
  }

  // Whole items, at most one for a block: what they cost does not matter.
  __device__ __forceinline__ bool one_each() const {
    return !split && p.batch * items_of_sequence() <= blocks();
  }

  // Where block i's work begins and ends: items that begin before its share, and what of the one there is
  // before it. By a whole warp, a lane a sequence.
  __device__ __forceinline__ void bounds(int i, Cut& begin, Cut& end) const {
    const int per = items_of_sequence();
    begin = end = {0, 0};
    if (one_each()) {
      begin.item = min(i, p.batch * per);
      end.item = min(i + 1, p.batch * per);
      return;
    }
    const int32_t from = share(i), to = share(i + 1);
    int32_t before = 0;
#pragma unroll 1
    for (int first = 0; first < p.batch; first += 32) {
      const int b = first + lane;
      Extent e{0, 0, 1};
      int32_t c = 0;
      if (b < p.batch) {
        e = extent(b);
        c = cost(e);
      }
      int32_t sum = c * per;
      for (int offset = 1; offset < 32; offset <<= 1) {
        const int32_t other = __shfl_up_sync(~0u, sum, offset);
        if (lane >= offset) sum += other;
      }
      const int32_t start = before + sum - c * per;
      count(from - start, c, per, e, begin);
      count(to - start, c, per, e, end);
      before += __shfl_sync(~0u, sum, 31);
      if (before > to) break;
    }
  }

  // The position of sequence b's first item. By a whole warp.
  __device__ __forceinline__ int32_t position(int b) const {
    int32_t sum = 0;
    for (int s = lane; s < b; s += 32) sum += cost(extent(s));
    return __reduce_add_sync(~0u, sum) * items_of_sequence();
  }

 private:
  // Adds the chunk's items that begin in front of a place, which lies `rest` behind the lane's first item.
  __device__ __forceinline__ void count(int32_t rest, int32_t c, int per, const Extent& e, Cut& cut) const {
    int32_t items = 0, unit = 0;
    if (rest > 0 && c > 0) {
      const uint32_t to = static_cast<uint32_t>(rest) + (split ? 0u : static_cast<uint32_t>(c - 1));
      items = static_cast<int32_t>(min(to / static_cast<uint32_t>(c), static_cast<uint32_t>(per)));
      const int32_t into = rest - items * c;
      if (split && items < per && into > 0) unit = moved_to_grain(e, into);
    }
    cut.item += __reduce_add_sync(~0u, items);
    if (split) cut.unit += __reduce_add_sync(~0u, unit);
  }
};

// Pieces of a block's share of a decode, one after the other; every lane of the producer warp holds the same.
template <bool kFeatures>
struct LengthPieces {
  const DecodeParams& p;
  const Lengths lengths;
  const int block;
  Cut at, end;
  int loaded = -1;  // the sequence of `extent`
  Extent extent;
  Piece piece;

  // By a whole warp, as everything here.
  __device__ __forceinline__ LengthPieces(const DecodeParams& params, int32_t* kept, int block_in)
      : p(params), lengths{params, kept}, block(block_in) {}
  __device__ __forceinline__ void open() const {}
  __device__ __forceinline__ int32_t ask() const { return lengths.ask(); }
  __device__ __forceinline__ bool is_true(int32_t asked) const { return lengths.is_true(asked); }
  // The table's first entries, where equal lengths would put this block.
  __device__ __forceinline__ void bring_table_near() const {
    if (p.block_table == nullptr) return;
    const int guess = p.by_blocks.quotient(block * p.batch);
    const int entry = p.by_page.quotient(static_cast<int>(threadIdx.x) % 32 * kTile);
    if (entry < p.table_stride) near(p.block_table + guess * p.table_stride + entry);
  }
  // Whose blocks this block of the grid reads first, if all lengths are equal and nothing is split; or -1.
  __device__ __forceinline__ int32_t sequence_of_block() const {
    if (p.block_table == nullptr || p.may_split != 0) return -1;
    const auto items = static_cast<uint32_t>(p.batch * p.kv_heads * p.row_blocks);
    const uint32_t before = static_cast<uint32_t>(block) * items + p.by_blocks.value - 1;
    const auto item = static_cast<int32_t>(min(before / p.by_blocks.value, items - 1));
    return p.by_kv_heads.quotient(p.by_row_blocks.quotient(item));
  }
  // From the first piece on, by the lengths of now: what ask() has given, and more.
  __device__ __forceinline__ void begin(int32_t asked) {
    lengths.read(asked);
    loaded = -1;
    Schedule<kFeatures>(lengths, static_cast<int>(threadIdx.x) % 32).bounds(block, at, end);
  }
  __device__ __forceinline__ const Piece& current() const { return piece; }
  // The next one becomes the current one.
  __device__ __forceinline__ bool next() {
    while (at.item < end.item || (at.item == end.item && at.unit < end.unit)) {
      const int32_t item = at.item;
      const int pair = p.by_row_blocks.quotient(item), row_block = item - pair * p.row_blocks;
      const int b = p.by_kv_heads.quotient(pair);
      if (b != loaded) {
        extent = lengths.extent<kFeatures>(b);
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

// Pieces of the host's list, fetched 32 at a time. The list is the plan's and does not change: the first are
// fetched before the kernels ahead have ended, and only where their sequences end may be a guess by then.
template <bool kFeatures>
struct ListedPieces {
  const DecodeParams& p;
  Piece* fetched;  // [32] in shared memory
  const int first;
  int at, end;
  int first_fetched = 0, end_fetched = 0;
  bool asks = false;        // find_ends() has asked for the length of piece `lane` of those fetched
  int32_t keys_before = 0;  // what it found

  // By a whole warp, as everything here.
  __device__ __forceinline__ ListedPieces(const DecodeParams& params, Piece* memory, int block)
      : p(params),
        fetched(memory),
        first(params.piece_first[block]),
        at(first),
        end(params.piece_first[block + 1]) {}
  __device__ __forceinline__ void open() {
    fetch();
    // Where the first pieces' blocks are listed may be no further than memory when they are asked for.
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (p.block_table == nullptr || lane >= 8 || first + lane >= end_fetched) return;
    const int64_t entry = p.by_page.quotient(fetched[lane].first_unit * kUnit);
    if (entry < p.table_stride) near_in_l2(p.block_table + fetched[lane].sequence * p.table_stride + entry);
  }
  __device__ __forceinline__ int32_t ask() const {
    return asks ? load_now(p.seqlens + fetched[static_cast<int>(threadIdx.x) % 32].sequence) : 0;
  }
  __device__ __forceinline__ bool is_true(int32_t asked) const {
    // Behind 32 pieces of nothing it is not known.
    return first_fetched == first && (!asks || asked == keys_before);
  }
  // Where the first pieces' blocks are listed.
  __device__ __forceinline__ void bring_table_near() const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int piece = lane / 4, unit = 2 * (lane % 4);
    if (p.block_table == nullptr || first + piece >= end_fetched) return;
    const Piece& its = fetched[piece];
    if (its.first_unit + unit >= its.end_unit) return;
    const int64_t entry = p.by_page.quotient((its.first_unit + unit) * kUnit);
    if (entry < p.table_stride) near(p.block_table + its.sequence * p.table_stride + entry);
  }
  __device__ __forceinline__ int32_t sequence_of_block() const { return -1; }
  // From the first piece on, by the lengths of now.
  __device__ __forceinline__ void begin(int32_t) {
    if (at != first) {
      at = first;
      __syncwarp();
      fetch();
    }
    find_ends();
  }
  __device__ __forceinline__ const Piece& current() const { return fetched[at - 1 - first_fetched]; }
  __device__ __forceinline__ bool next() {
    while (at < end) {
      if (at >= end_fetched) {
        __syncwarp();
        fetch();
        find_ends();
      }
      ++at;
      if (current().first_unit < current().end_unit) return true;
    }
    return false;
  }

 private:
  __device__ __forceinline__ void fetch() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (at + lane < end) fetched[lane] = p.pieces[at + lane];
    __syncwarp();
    first_fetched = at;
    end_fetched = min(end, at + 32);
  }
  // The end of a sequence is where it is by now; whole rows begin and end where their keys do.
  __device__ __forceinline__ void find_ends() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    __syncwarp();
    asks = false;
    if (at + lane < end && fetched[lane].end_key < 0) {
      Piece& mine = fetched[lane];
      asks = p.seqlens != nullptr;
      keys_before = asks ? load_now(p.seqlens + mine.sequence) : p.seqlen;
      const Extent e = extent_from<kFeatures>(p, mine.sequence, keys_before);
      mine.end_key = e.keys;
      if (mine.partial < 0) {
        mine.first_unit = e.first_unit;
        mine.end_unit = e.first_unit + e.units;
      } else {
        mine.end_unit = min(mine.end_unit, (e.keys + kUnit - 1) / kUnit);
      }
    }
    __syncwarp();
  }
};

}  // namespace tessera::attention::cuda::steps
