// The attention kernel over rows as they lie in a caller's cache, for few query rows: one tile of 64 keys,
// nothing packed. Compiled once per ISA beside tile_kernel.inc.h, whose sequence of operations it keeps: a
// score is one accumulator over d in rising order, an output column one accumulator over the keys in rising
// order, with the same multiplications of the same values. So its bits are those of the tiles.
//
// Cost: packing a tile through memory and reading it back costs about as much as one block of query rows
// makes of it. Here K is transposed in registers, kLanes keys and four words at a time, and used at once; a
// step of V is a row (or two, interleaved in registers, where pairs of bf16 are multiplied) as it is. Bytes:
// every row once a register block of query rows, from the cache below after the first.
//
// Memory is fastest when it is asked in the order in which it lies, and there the heads of a key are
// neighbours: so the heads of a tile take kRowsTogether keys in turn, and each step fetches as many lines of
// what comes later (row_runs.h) as it reads itself. On a Zen 5 core with 41 GB/s, bf16, 8 heads of 128: every
// head a tile at a time 20 GB/s, in turn 29.
#pragma once

#include "attention/cpu/row_vectors.inc.h"
#include "attention/cpu/tile_kernel.inc.h"

namespace tessera::attention {
inline namespace TESSERA_SIMD_NAMESPACE {

// Columns of one row, each by load_at(element).
template <int columns, typename Load>
TESSERA_VEC void row_columns(const char* row, int element_bytes, F32 (&out)[columns], Load&& load_at) {
#pragma GCC unroll 8
  for (int n = 0; n < columns; ++n) out[n] = load_at(row + n * kLanes * element_bytes);
}

// How rows of one dtype give T's operands. key_parts: of a word of kLanes keys, in rising d. values: one step
// of V from `row` on, `columns` vectors of it.
struct RowsOfF32 {
  using T = MultiplyF32;
  static constexpr int kElementBytes = 4;
  TESSERA_VEC void key_parts(I32 word, F32 (&parts)[1]) { parts[0] = as_f32(word); }
  template <int columns>
  TESSERA_VEC void values(const char* row, int64_t, F32 (&out)[columns]) {
    row_columns(row, kElementBytes, out,
                [](const char* at) { return load(reinterpret_cast<const float*>(at)); });
  }
};

struct RowsOfF16 {
  using T = MultiplyF32;
  static constexpr int kElementBytes = 2;
  TESSERA_VEC void key_parts(I32 word, F32 (&parts)[2]) { split_halves(word, parts); }
  template <int columns>
  TESSERA_VEC void values(const char* row, int64_t, F32 (&out)[columns]) {
    row_columns(row, kElementBytes, out,
                [](const char* at) { return load_f16(reinterpret_cast<const uint16_t*>(at)); });
  }
};

// A pair of keys split is one key after the other: a row of V is widened as it is.
struct RowsOfSplit {
  using T = MultiplySplit;
  static constexpr int kElementBytes = 2;
  TESSERA_VEC void key_parts(I32 word, F32 (&parts)[2]) {
    parts[0] = low_bf16(word);
    parts[1] = high_bf16(word);
  }
  template <int columns>
  TESSERA_VEC void values(const char* row, int64_t, F32 (&out)[columns]) {
    row_columns(row, kElementBytes, out,
                [](const char* at) { return load_bf16(reinterpret_cast<const uint16_t*>(at)); });
  }
};

#if defined(__AVX512BF16__)
struct RowsOfPairs {
  using T = MultiplyPairs;
  static constexpr int kElementBytes = 2;
  TESSERA_VEC void key_parts(I32 word, I32 (&parts)[1]) { parts[0] = word; }
  template <int columns>
  TESSERA_VEC void values(const char* row, int64_t row_bytes, I32 (&out)[columns]) {
    static_assert(columns == 1 || columns % 2 == 0);
    if constexpr (columns == 1) {
      const auto sixteen = [](const char* at) {
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
      };
      out[0].v = _mm512_or_si512(sixteen(row), _mm512_slli_epi32(sixteen(row + row_bytes), 16));
    } else {
#pragma GCC unroll 8
      for (int n = 0; n < columns; n += 2) {
        interleave_rows(row + n * 32, row + row_bytes + n * 32, reinterpret_cast<I32(&)[2]>(out[n]));
      }
    }
  }
};
#endif

// Brings near as many lines as are read.
template <int lines>
TESSERA_VEC void fetch_both(RowsAhead& ahead) {
  fetch<lines>(ahead.far);
  if (ahead.near.run != nullptr) fetch<lines>(ahead.near);
}

// scores [rows][kKeyTile] of kLanes keys from k on = q.k. words: of 4 bytes in a row of K.
template <class R, int rows>
__attribute__((noinline)) void score_rows(const typename R::T::A* q, int64_t q_stride, const char* k,
                                          int64_t row_bytes, int words, float* scores, RowsAhead& ahead_in) {
  using T = typename R::T;
  constexpr int kParts = std::is_same_v<R, RowsOfF32> || T::kCoarse ? 1 : 2;
  constexpr int kWordElements = 4 / R::kElementBytes;
  RowsAhead ahead = ahead_in;
  F32 acc[rows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) acc[r] = zero();
  for (int word = 0; word < words; word += 4) {
    fetch_both<kLanes / 4>(ahead);
    I32 keys[4];
    transpose_words(k + word * 4, row_bytes, keys);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      typename T::Operand parts[kParts];
      R::key_parts(keys[i], parts);
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part) {
        const typename T::A* a = q + (word + i) * kWordElements + part;
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
          acc[r] = T::multiply_add(T::coefficient(a + r * q_stride), parts[part], acc[r]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) store(scores + r * kKeyTile, acc[r]);
  ahead_in = ahead;
}

// o [rows][columns * kLanes] += p * V over the first `keys` rows of v.
template <class R, int rows, int columns>
TESSERA_VEC void weigh_rows(const typename R::T::A* p, const char* v, int64_t row_bytes, int keys, float* o,
                            int64_t o_stride, RowsAhead& ahead) {
  using T = typename R::T;
  constexpr int kStep = T::kCoarse ? 2 : 1;  // keys
  constexpr int kBytes = kStep * columns * kLanes * R::kElementBytes;
  F32 acc[rows][columns];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < columns; ++n) acc[r][n] = load(o + r * o_stride + n * kLanes);
  }
  int key = 0;
  for (; key + kStep <= keys; key += kStep) {
    if constexpr (kBytes >= 64) {
      fetch_both<kBytes / 64>(ahead);
    } else if (key % (64 / kBytes) == 0) {
      fetch_both<1>(ahead);
    }
    typename T::Operand operands[columns];
    R::template values<columns>(v, row_bytes, operands);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const typename T::Coefficient coefficient = T::coefficient(p + r * kKeyTile + key);
#pragma GCC unroll 8
      for (int n = 0; n < columns; ++n) acc[r][n] = T::multiply_add(coefficient, operands[n], acc[r][n]);
    }
    v += kStep * row_bytes;
  }
#if defined(__AVX512BF16__)
  if constexpr (kStep == 2) {
    if (key < keys) {
      I32 operands[columns];
      R::template values<columns>(v, 0, operands);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const I32 coefficient = T::coefficient(p + r * kKeyTile + key);
#pragma GCC unroll 8
        for (int n = 0; n < columns; ++n)
          acc[r][n] = T::multiply_add(coefficient, keep_low(operands[n]), acc[r][n]);
      }
    }
  }
#endif
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < columns; ++n) store(o + r * o_stride + n * kLanes, acc[r][n]);
  }
}

// The same over all columns.
template <class R, int rows>
__attribute__((noinline)) void weigh_columns(const typename R::T::A* p, const char* v, int64_t row_bytes,
                                             int keys, float* o, int v_width, RowsAhead& ahead_in) {
  constexpr int kVectors = register_columns(rows), kColumns = kVectors * kLanes;
  RowsAhead ahead = ahead_in;
  int d = 0;
  for (; d + kColumns <= v_width; d += kColumns) {
    weigh_rows<R, rows, kVectors>(p, v + d * R::kElementBytes, row_bytes, keys, o + d, v_width, ahead);
  }
  for (; d < v_width; d += kLanes) {
    weigh_rows<R, rows, 1>(p, v + d * R::kElementBytes, row_bytes, keys, o + d, v_width, ahead);
  }
  ahead_in = ahead;
}

// body.operator()<count>() for count from 1 to kRegisterRows.
template <class Body>
TESSERA_VEC void with_rows(int count, Body&& body) {
  constexpr int kFive = kRegisterRows < 5 ? 1 : 5, kSix = kRegisterRows < 6 ? 1 : 6;
  switch (count) {
    case 1:
      return body.template operator()<1>();
    case 2:
      return body.template operator()<2>();
    case 3:
      return body.template operator()<3>();
    case 4:
      return body.template operator()<4>();
    case 5:
      return body.template operator()<kFive>();
    case 6:
      return body.template operator()<kSix>();
  }
}

// A register block of query rows: row to row + count, which see keys before `keys` of the tile.
struct RowBlock {
  int row, count, keys;
  bool whole;  // each sees all of it
};

template <class R>
void walk_rows_of(const ItemRows* heads, int head_count, int count, const TileRows& tile, RowsAhead& ahead) {
  using T = typename R::T;
  using A = typename T::A;
  constexpr int kGroup = kRowsTogether;
  static_assert(kGroup % kLanes == 0);
  const ItemRows& first = heads[0];
  for (int row = 0; row < count; row += kRegisterRows) {
    RowBlock block = {row, count - row < kRegisterRows ? count - row : kRegisterRows, 0, true};
    int64_t end = 0;
    for (int r = row; r < row + block.count; ++r) {
      block.whole &= first.first_key[r] <= tile.first_key && first.end_key[r] >= tile.first_key + kKeyTile;
      if (first.first_key[r] < tile.first_key + kKeyTile && first.end_key[r] > end) end = first.end_key[r];
    }
    if (end <= tile.first_key) continue;
    block.keys = static_cast<int>(end - tile.first_key < kKeyTile ? end - tile.first_key : kKeyTile);

    for (int key = 0; key < kKeyTile; key += kGroup) {
      for (int h = 0; h < head_count; ++h) {
        const A* q = static_cast<const A*>(heads[h].q) + int64_t{row} * first.head_dim;
        const char* k = tile.k + h * tile.k_head_bytes + key * tile.k_row_bytes;
        float* scores = static_cast<Scratch*>(heads[h].scratch)->scores + key;
        with_rows(block.count, [&]<int rows>() {
          for (int i = 0; i < kGroup; i += kLanes) {
            score_rows<R, rows>(q, first.head_dim, k + i * tile.k_row_bytes, tile.k_row_bytes,
                                first.head_dim * R::kElementBytes / 4, scores + i, ahead);
          }
        });
      }
    }
    for (int h = 0; h < head_count; ++h) {
      Scratch& scratch = *static_cast<Scratch*>(heads[h].scratch);
      for (int r = 0; r < block.count; ++r) {
        float* scores = scratch.scores + r * kKeyTile;
        uint16_t* rounded = scratch.rounded + r * kKeyTile;
        if (first.softcap > 0 || first.slope != nullptr)
          transform_scores(scores, heads[h], row + r, tile.first_key);
        if (block.whole) {
          softmax_row<T, false>(scores, rounded, heads[h], row + r, tile.first_key);
        } else {
          softmax_row<T, true>(scores, rounded, heads[h], row + r, tile.first_key);
        }
      }
    }
    for (int key = 0; key < block.keys; key += kGroup) {
      const int keys = block.keys - key < kGroup ? block.keys - key : kGroup;
      for (int h = 0; h < head_count; ++h) {
        const A* p = probabilities(*static_cast<Scratch*>(heads[h].scratch), static_cast<const A*>(nullptr));
        const char* v = tile.v + h * tile.v_head_bytes + key * tile.v_row_bytes;
        float* o = heads[h].segment.o + int64_t{row} * first.v_width;
        with_rows(block.count, [&]<int rows>() {
          weigh_columns<R, rows>(p + key, v, tile.v_row_bytes, keys, o, first.v_width, ahead);
        });
      }
    }
  }
}

inline void walk_rows_f32(const ItemRows* heads, int head_count, int count, const TileRows& tile,
                          RowsAhead& ahead) {
  if (tile.halves) return walk_rows_of<RowsOfF16>(heads, head_count, count, tile, ahead);
  walk_rows_of<RowsOfF32>(heads, head_count, count, tile, ahead);
}

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::attention
