// A unit of a piece, or several that one warpgroup walks as a task: what whoever walks it has to know.
#pragma once

#include "attention/cuda/steps/work.h"

namespace tessera::attention::cuda::steps {

struct UnitEntry {
  int32_t tiles;
  int32_t first_key, end_key;
  int32_t rows;  // of the piece
  int32_t first_token, first_row;
  int32_t kv_head;
  int32_t flags;
  int32_t partial;  // first row, with kUnitApart
  int32_t partial_stride;
  int32_t sequence;
  int32_t unused;
};
inline constexpr int32_t kUnitStartsSegment = 1;
inline constexpr int32_t kUnitEndsSegment = 2;
inline constexpr int32_t kUnitStartsRow = 4;  // with ends: the segment is the row's first
inline constexpr int32_t kUnitApart = 8;      // with ends: the segment's state is handed over
inline constexpr int32_t kUnitEndsRow = 16;   // o is written
inline constexpr int32_t kUnitEach = 32;  // of several units each goes over, partial_stride behind the last
// The unit is folded with nothing before it.
__device__ __forceinline__ bool begins_anew(int32_t unit_flags) {
  return (unit_flags & kUnitStartsSegment) != 0 && (unit_flags & (kUnitStartsRow | kUnitApart)) != 0;
}
inline constexpr int32_t kUnitHalves = 64;  // the wave's two tasks are one segment

// Up to which unit of a piece each goes over apart: behind a cut inside a segment the rest of that segment,
// and all of a piece that says so.
__device__ __forceinline__ int32_t apart_end(const Piece& piece) {
  if ((piece.flags & kPieceApart) != 0) return piece.end_unit;
  return (piece.flags & kPieceCutBefore) != 0
             ? (piece.first_unit + kSegmentUnits - 1) / kSegmentUnits * kSegmentUnits
             : piece.first_unit;
}

// Of `count` units from `unit` on.
__device__ __forceinline__ UnitEntry unit_entry(const Piece& piece, int32_t unit, int count) {
  UnitEntry e{};
  e.first_key = unit * kUnit;
  e.end_key = piece.end_key;
  e.tiles = max(0, min(count * kUnitTiles, (piece.end_key - e.first_key + kTile - 1) / kTile));
  e.rows = piece.rows;
  e.first_token = piece.first_token;
  e.first_row = piece.first_row;
  e.kv_head = piece.kv_head;
  e.sequence = piece.sequence;
  const bool apart = unit < apart_end(piece);
  const bool last = unit == piece.end_unit - 1;
  const int32_t segment = unit / kSegmentUnits * kSegmentUnits;
  int32_t start = max(segment, piece.first_unit);
  if (apart) start = unit;
  const bool ends = apart || last || unit % kSegmentUnits == kSegmentUnits - 1;
  e.flags = (unit == start ? kUnitStartsSegment : 0) | (ends ? kUnitEndsSegment : 0);
  if (piece.partial >= 0) {
    e.flags |= kUnitApart | (apart && count > 1 ? kUnitEach : 0) |
               ((piece.flags & kPieceHalves) != 0 ? kUnitHalves : 0);
    e.partial_stride = piece.partial_stride;
    e.partial = piece.partial + (start - piece.first_unit) * piece.partial_stride;
  } else {
    if (start == piece.first_unit) e.flags |= kUnitStartsRow;
    if (last) e.flags |= kUnitEndsRow;
  }
  return e;
}

}  // namespace tessera::attention::cuda::steps
