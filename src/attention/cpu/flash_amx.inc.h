// The attention kernel on matrix tiles (AMX): one tile of 64 keys against stacked query rows, 16 at a time.
// bf16 storage; q and p are rounded to bf16, as for AVX512_BF16. The rows' arithmetic around the two products
// is that of tile_kernel.inc.h.
//
// A block of 16 rows goes through three stages: scores (4 sums of 16 x 16 over head_dim), softmax, values (4
// sums of 16 x 16 over the keys, for each 64 columns of V). While softmax takes the rows of block i, the tile
// unit is given, between rows, the scores of block i + 1 and the values of block i - 1, which nothing waits
// for; scores and probabilities therefore have two buffers each. What that gains and what else was tried is
// in docs/decisions/isa-levels.md.
//
// Law 1: an element of C depends on its own row of A and column of B only, and the order of its additions is
// the instruction's. What a block skips (keys behind the last that any of its rows sees) would add exact
// zeros.
//
// Tiles are whole: rows of the last block, the last elements of head_dim, and the last keys of V are copied
// to padded memory first when 16 or 32 does not divide them.
#pragma once

#include "attention/cpu/amx_tiles.inc.h"
#include "attention/cpu/tile_kernel.inc.h"

namespace tessera::attention {
inline namespace TESSERA_SIMD_NAMESPACE {

struct AmxScratch {
  alignas(64) float scores[2][kTileSide * kKeyTile];
  alignas(64) uint16_t rounded[2][kTileSide * kKeyTile];
  alignas(64) uint32_t k_tail[kTileSide * kKeyTile];  // last steps of K, zeros behind them
  alignas(64) uint8_t dropout[kTileSide * kKeyTile];
};
// Behind it: v_tail [32 key pairs][v_width] words, q_tail [2][16][whole_steps] bf16, o_tail [16][v_width]
// f32.
struct AmxTails {
  char* v;
  uint16_t* q;
  float* o;
  AmxTails(void* scratch, int head_dim, int v_width) {
    v = static_cast<char*>(scratch) + sizeof(AmxScratch);
    q = reinterpret_cast<uint16_t*>(v + int64_t{kKeyTile} / 2 * v_width * 4);
    o = reinterpret_cast<float*>(q + 2 * kTileSide * whole_steps(head_dim));
  }
};

struct MultiplyTiles {
  static constexpr bool kCoarse = true;
};

// What a walk's blocks share.
struct AmxWalk {
  const ItemRows& rows;
  const TilePair& tile;
  AmxScratch& scratch;
  AmxTails tails;
  const char* k;
  const char* k_last;  // of the last step of kTileElements of head_dim: `k`'s own, or the padded copy
  const char* v[2];    // of the first and the last 32 keys
  int steps;           // of head_dim
  int64_t v_bytes;     // between rows of V
  Stream stream;
};

// 16 rows, or the rest of them.
struct AmxBlock {
  int row = 0, count = 0;  // count 0: there is none
  int keys = 0;            // the keys behind these are seen by none of the rows
  bool whole = false;      // all keys of the tile are seen by all rows
  int buffer = 0;          // of scores and probabilities
  const uint16_t* q = nullptr;
};

// The first block of 16 at or behind `row` of which a row sees a key of the tile.
TESSERA_VEC AmxBlock next_block(const AmxWalk& w, int row, int end_row, int buffer) {
  AmxBlock block;
  const int64_t first = w.tile.first_key;
  for (; row < end_row; row += kTileSide) {
    const int count = end_row - row < kTileSide ? end_row - row : kTileSide;
    int64_t end = 0;
    bool whole = true;
    for (int r = row; r < row + count; ++r) {
      whole &= w.rows.first_key[r] <= first && w.rows.end_key[r] >= first + kKeyTile;
      if (w.rows.first_key[r] < first + kKeyTile && w.rows.end_key[r] > end) end = w.rows.end_key[r];
    }
    if (end <= first) continue;
    const int64_t keys = end - first < w.tile.valid ? end - first : w.tile.valid;
    const int width = whole_steps(w.rows.head_dim);
    const uint16_t* q = static_cast<const uint16_t*>(w.rows.q) + int64_t{row} * width;
    if (count < kTileSide) {
      uint16_t* copy = w.tails.q + buffer * kTileSide * width;
      std::memcpy(copy, q, sizeof(uint16_t) * static_cast<size_t>(count) * static_cast<size_t>(width));
      q = copy;
    }
    return {row, count, static_cast<int>(keys), whole, buffer, q};
  }
  return block;
}

// The scores' unit `unit` of w.steps. kPrefetch: K comes from memory.
template <int count, bool kPrefetch>
TESSERA_VEC void score_columns(const AmxWalk& w, const AmxBlock& block, int unit) {
  const char* k = unit + 1 < w.steps ? w.k + unit * (kTileElements / 2 * kKeyTile * 4) : w.k_last;
  if constexpr (kPrefetch) {
    const char* at = w.k + unit * (kTileElements / 2 * kKeyTile * 4);
    const int lines =
        (w.rows.head_dim - unit * kTileElements < kTileElements ? w.rows.head_dim - unit * kTileElements
                                                                : kTileElements) /
        2 * kKeyTile * 4 / 64;
    for (int line = 0; line < lines; ++line) {
      prefetch_near(Stream::ahead(w.stream, at + line * 64, kNear));
      prefetch_near(Stream::ahead(w.stream, at + line * 64, kFar));
    }
  }
  if (unit == 0) zero_sums<count>();
  multiply_row<count>(block.q + unit * kTileElements, int64_t{2} * whole_steps(w.rows.head_dim), k,
                      kKeyTile * 4);
  if (unit + 1 == w.steps) store_sums<count>(w.scratch.scores[block.buffer], kKeyTile * 4);
}
template <bool kPrefetch>
TESSERA_VEC void score_unit(const AmxWalk& w, const AmxBlock& block, int unit) {
  if (block.keys > 32) return score_columns<4, kPrefetch>(w, block, unit);
  if (block.keys > 16) return score_columns<2, kPrefetch>(w, block, unit);
  score_columns<1, kPrefetch>(w, block, unit);
}

// The values' unit: column tiles [4 * unit, 4 * unit + count) of O.
template <int count, bool kPrefetch>
TESSERA_VEC void value_columns(const AmxWalk& w, const AmxBlock& block, float* o, int64_t o_bytes,
                               int column) {
  const uint16_t* p = w.scratch.rounded[block.buffer];
  const int64_t at = int64_t{column} * 4;
  load_sums<count>(o + column, o_bytes);
  for (int half = 0; half == 0 || (half == 1 && block.keys > 32); ++half) {
    if constexpr (kPrefetch) {
      for (int step = 0; step < kTileSide; ++step) {
        for (int line = 0; line < count; ++line) {
          const char* from = w.k + int64_t{w.rows.head_dim} * kKeyTile * 2 +
                             (half * kTileSide + step) * w.v_bytes + at + line * 64;
          prefetch_near(Stream::ahead(w.stream, from, kNear));
          prefetch_near(Stream::ahead(w.stream, from, kFar));
        }
      }
    }
    multiply_row<count>(p + half * kTileElements, kKeyTile * 2, w.v[half] + at, w.v_bytes);
  }
  store_sums<count>(o + column, o_bytes);
}
template <bool kPrefetch>
TESSERA_VEC void value_unit(const AmxWalk& w, const AmxBlock& block, int unit) {
  const int v_width = w.rows.v_width, column = unit * 64;
  float* o = w.rows.segment.o + int64_t{block.row} * v_width;
  const bool partial = block.count < kTileSide;
  const size_t bytes = sizeof(float) * static_cast<size_t>(block.count) * static_cast<size_t>(v_width);
  if (partial) {
    if (unit == 0) std::memcpy(w.tails.o, o, bytes);
    o = w.tails.o;
  }
  const int64_t o_bytes = int64_t{v_width} * 4;
  switch (v_width - column) {
    case 16:
      value_columns<1, kPrefetch>(w, block, o, o_bytes, column);
      break;
    case 32:
      value_columns<2, kPrefetch>(w, block, o, o_bytes, column);
      break;
    case 48:
      value_columns<3, kPrefetch>(w, block, o, o_bytes, column);
      break;
    default:
      value_columns<4, kPrefetch>(w, block, o, o_bytes, column);
  }
  if (partial && column + 64 >= v_width) {
    std::memcpy(w.rows.segment.o + int64_t{block.row} * v_width, w.tails.o, bytes);
  }
}

template <bool kFeatured>
TESSERA_VEC void softmax_of(const AmxWalk& w, const AmxBlock& block, int r) {
  float* scores = w.scratch.scores[block.buffer] + r * kKeyTile;
  uint16_t* rounded = w.scratch.rounded[block.buffer] + r * kKeyTile;
  const int row = block.row + r;
  if (w.rows.softcap > 0 || w.rows.slope != nullptr) transform_scores(scores, w.rows, row, w.tile.first_key);
  if constexpr (kFeatured) mask_scores(scores, w.rows, row, w.tile.first_key);
  if (block.whole) {
    softmax_row<MultiplyTiles, false>(scores, rounded, w.rows, row, w.tile.first_key);
  } else {
    softmax_row<MultiplyTiles, true>(scores, rounded, w.rows, row, w.tile.first_key);
  }
}

template <bool kFeatured>
TESSERA_VEC void drop_block(const AmxWalk& w, const AmxBlock& block) {
  if constexpr (kFeatured) {
    if (w.rows.features->dropout == nullptr) return;
    uint16_t* rounded = w.scratch.rounded[block.buffer];
    int r = 0;
    for (; r + 4 <= block.count; r += 4) {
      drop<4>(w.scratch.dropout, w.rows, block.row + r, w.tile.first_key, nullptr, rounded + r * kKeyTile,
              true);
    }
    for (; r < block.count; ++r) {
      drop<1>(w.scratch.dropout, w.rows, block.row + r, w.tile.first_key, nullptr, rounded + r * kKeyTile,
              true);
    }
  }
}

// K's last step and V's last keys in whole tiles.
TESSERA_VEC AmxWalk start_walk(const ItemRows& rows, const TilePair& tile) {
  AmxScratch& scratch = *static_cast<AmxScratch*>(rows.scratch);
  const int64_t k_bytes = int64_t{2} * kKeyTile * rows.head_dim, v_row = int64_t{4} * rows.v_width;
  const char* v = tile.data + k_bytes;
  const uintptr_t end = reinterpret_cast<uintptr_t>(v) + static_cast<uintptr_t>(kKeyTile / 2 * v_row);
  const char* next = tile.next != nullptr ? tile.next : tile.data;
  AmxWalk w{rows,
            tile,
            scratch,
            AmxTails(rows.scratch, rows.head_dim, rows.v_width),
            tile.data,
            nullptr,
            {v, v + kTileSide * v_row},
            whole_steps(rows.head_dim) / kTileElements,
            v_row,
            {end, reinterpret_cast<uintptr_t>(next) - end}};
  constexpr int kStepBytes = kTileElements / 2 * kKeyTile * 4;
  w.k_last = tile.data + int64_t{w.steps - 1} * kStepBytes;
  if (const int rest = rows.head_dim % kTileElements; rest != 0) {
    const size_t bytes = static_cast<size_t>(rest) * kKeyTile * 2;
    std::memcpy(scratch.k_tail, w.k_last, bytes);
    std::memset(reinterpret_cast<char*>(scratch.k_tail) + bytes, 0, kStepBytes - bytes);
    w.k_last = reinterpret_cast<const char*>(scratch.k_tail);
  }
  if (tile.valid < kKeyTile) {
    const int half = tile.valid > 32 ? 1 : 0, keys = tile.valid - half * 32;
    char* copy = w.tails.v;
    std::memcpy(copy, w.v[half], static_cast<size_t>((keys + 1) / 2 * v_row));
    std::memset(copy + (keys + 1) / 2 * v_row, 0, static_cast<size_t>((kTileSide - (keys + 1) / 2) * v_row));
    if (keys % 2 != 0) {
      char* last = copy + keys / 2 * v_row;
      for (int d = 0; d < rows.v_width; d += kLanes)
        store_i32(last + d * 4, keep_low(load_i32(last + d * 4)));
    }
    w.v[half] = copy;
  }
  return w;
}

template <bool kFeatured>
void walk_amx(const ItemRows& rows, int first_row, int count, const TilePair& tile) {
  const AmxWalk w = start_walk(rows, tile);
  const int end_row = first_row + count, value_units = (rows.v_width + 63) / 64;
  AmxBlock now = next_block(w, first_row, end_row, 0), before;
  if (now.count == 0) return;
  // The first block takes the pair from memory and fetches just ahead of itself.
  for (int unit = 0; unit < w.steps; ++unit) score_unit<true>(w, now, unit);
  bool first = true;
  while (now.count > 0) {
    const AmxBlock next = next_block(w, now.row + kTileSide, end_row, 1 - now.buffer);
    if (tile.next != nullptr && !first) {
      const int64_t pair_bytes = static_cast<int64_t>(w.stream.end - reinterpret_cast<uintptr_t>(w.k));
      prefetch_part(tile, pair_bytes, (now.row - first_row) / kTileSide - 1, (count - 1) / kTileSide);
    }
    // Between the rows of this block: the next one's scores in the first half, the last one's values in the
    // second.
    int score = 0, value = 0;
    for (int r = 0; r < kTileSide; ++r) {
      if (r < now.count) softmax_of<kFeatured>(w, now, r);
      if (r < kTileSide / 2) {
        for (; next.count > 0 && score < (r + 1) * w.steps / (kTileSide / 2); ++score)
          score_unit<false>(w, next, score);
      } else {
        const int due = (r + 1 - kTileSide / 2) * value_units / (kTileSide / 2);
        for (; before.count > 0 && value < due; ++value) value_unit<false>(w, before, value);
      }
    }
    drop_block<kFeatured>(w, now);
    if (first) {
      for (int unit = 0; unit < value_units && next.count == 0; ++unit) value_unit<true>(w, now, unit);
      if (next.count == 0) return;
      first = false;
    }
    before = now;
    now = next;
  }
  for (int unit = 0; unit < value_units; ++unit) value_unit<false>(w, before, unit);
}

// ---- the functions of the table ----

inline int64_t query_bytes_amx(int head_dim) {
  return int64_t{2} * whole_steps(head_dim);
}
inline int64_t scratch_bytes_amx(int head_dim, int v_width) {
  return static_cast<int64_t>(sizeof(AmxScratch)) + int64_t{kKeyTile} / 2 * v_width * 4 +
         int64_t{2} * 2 * kTileSide * whole_steps(head_dim) + int64_t{4} * kTileSide * v_width;
}
inline void pack_query_amx(const float* q, int head_dim, float scale, void* packed) {
  uint16_t* to = static_cast<uint16_t*>(packed);
  for (int d = 0; d < whole_steps(head_dim); d += kLanes) {
    const int left = head_dim - d < 0 ? 0 : head_dim - d;
    store_bf16(to + d, load_n(q + d, left < kLanes ? left : kLanes) * set1(scale));
  }
}

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::attention
