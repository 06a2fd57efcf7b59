// What the decode kernels walk, and how the arithmetic of a step row is cut.
//
// A step row is one query token of one head in decode or in tree attention. Its arithmetic is fixed by the
// positions of its keys alone (which is why neither batch, sharing, splits nor the number of blocks of a
// grid change its bits):
//  1. A unit is kUnit positions from a multiple of kUnit. It starts from the identity and walks its tiles of
//     kTile keys in order: scores by k16 steps of the tensor cores, a reference maximum that moves only when
//     a tile's own maximum is more than kLazyBound above it, sums of p per residue of the key modulo 8,
//     o by k16 steps in order. mma.m16n8k16 and wgmma give equal bits.
//  2. A segment is kSegmentUnits units from a multiple of that: the left fold of its units' states.
//  3. The row is the left fold of its segments' states. A unit in which a row sees nothing is the identity,
//     and folding the identity changes no bit.
// Work is cut anywhere between units. Who has a whole row folds it and writes o; who has less hands over each
// segment (the first part of one, folded, and then each unit of it apart; or every unit), and combine folds
// those in order.
#pragma once

#include <cstdint>

namespace tessera::attention::cuda::steps {

inline constexpr int kTile = 64;
inline constexpr int kUnit = 256;
inline constexpr int kUnitTiles = kUnit / kTile;
inline constexpr int kSegmentUnits = 4;
inline constexpr float kLazyBound = 8.0f;  // in units of log2: p and its sums stay below 2^8 * keys

// Rows are stacked in groups of 8, the n of mma.m16n8k16; a piece has at most this many groups.
inline constexpr int kMostRowGroups = 4;

// When rows of few items are split over blocks of the grid, in multiples of how many units. Measured on an
// H200: a split pays above a segment (8 items of 4 units take 9.2 us whole and 10.8 us split), and below some
// 16 items by single units.
constexpr int32_t split_grain(int64_t items, int blocks) {
  return items * 8 <= blocks ? 1 : kSegmentUnits;
}
inline constexpr int32_t kSplitAbove = kSegmentUnits;  // units

// Some rows of one kv head over units [first_unit, end_unit) of one block table.
struct alignas(16) Piece {
  int32_t sequence;  // whose block table is walked
  int32_t kv_head;
  int32_t first_unit, end_unit;
  int32_t end_key;  // keys from here on are not there; -1 in a list: the sequence's length
  int32_t
      first_token;  // row r is token (first_row + r) / group behind this one, head (first_row + r) % group
  int32_t first_row;
  int32_t rows;            // at most the kernel's groups times 8
  int32_t partial;         // where row 0 of the first unit goes among the partials; -1: o is written
  int32_t partial_stride;  // from unit to unit
  int32_t flags;
};
inline constexpr int32_t kPieceCutBefore = 1;  // the segment of first_unit begins in another piece
inline constexpr int32_t kPieceShared = 2;     // other blocks of the grid read the same keys soon
inline constexpr int32_t kPieceApart = 4;   // each unit is handed over, so that several can walk them at once
inline constexpr int32_t kPieceHalves = 8;  // of one segment, which it begins: two can walk half of it each

}  // namespace tessera::attention::cuda::steps
