// The backward kernel of the CPU: one tile of 64 keys against a block of query rows. Compiled once per ISA.
//
// All five products are one small matrix product, C [rows][columns] (+)= A [rows][steps] * B [steps][columns]
// with strides for the rows and the steps of A, so that p^T and ds^T are read from p and ds as they lie:
//   s  = q    * k^T    C [block][64]    A by rows       B packed once a segment
//   dp = dout * v^T    C [block][64]    A by rows       B packed once a segment
//   dv += p^T * dout   C [64][v_width]  A by columns    steps are rows of the block
//   dk += ds^T * q     C [64][k_width]  A by columns    steps are rows of the block
//   dq += ds * k       C [block][k_width]  A by rows    steps are keys
// A step is one element (f32) or a pair of them (bf16), 4 bytes of A and 4 bytes a column of B: a "word".
//
// A block of 72 rows (144 of bf16) keeps p, ds (18 KB each) and the columns of dout or q that one pass over
// them needs in L1, and is whole register tiles. k^T, v^T, k, dk and dv of a tile (16 KB each at head_dim 64)
// come from L2 once a block, which 72 rows hide.
//
// bf16 pairs are for machines where vdpbf16ps is fast; there p and ds are rounded to bf16 before they are
// multiplied, as o's product with p is in forward. Elsewhere bf16 and f16 are unpacked to f32 once a block
// and once a segment.
//
// Rows of a block are in the order of their tokens, so what they see moves only forward: where a mask cuts
// the tile, each register tile takes only the columns, and each reduction only the steps, that some row of it
// sees. What is left out would add zeros.
//
// REQUIRES (speed only): FTZ and DAZ set.
#pragma once

#include "attention/cpu/backward_kernel.h"
#include "attention/cpu/dropout.inc.h"
#include "attention/cpu/pack_kernels.inc.h"
#include "attention/problem.h"
#include "simd/vec_math.h"

namespace tessera::attention {
inline namespace TESSERA_SIMD_NAMESPACE {

using namespace simd;

inline constexpr float kLog2e = 1.4426950408889634f;
inline constexpr int kTileRows = kLanes == 4 ? 4 : 6;      // of a register tile
inline constexpr int kTileVectors = kLanes == 16 ? 4 : 2;  // and its columns in vectors
inline constexpr int kRowsAhead = 8;                       // fetched while one is packed

// How words are multiplied.
struct DotF32 {
  static constexpr int kDepth = 1;                          // elements of a word
  static constexpr int kBlockRows = kLanes == 4 ? 64 : 72;  // whole register tiles, an even number
  using Coefficient = F32;
  using Operand = F32;
  TESSERA_VEC Coefficient coefficient(const uint32_t* a) {
    float x;
    __builtin_memcpy(&x, a, sizeof x);
    return set1(x);
  }
  TESSERA_VEC Operand operand(const uint32_t* b) { return load(reinterpret_cast<const float*>(b)); }
  TESSERA_VEC F32 multiply_add(Coefficient a, Operand b, F32 c) { return fma(a, b, c); }
};

#if defined(__AVX512BF16__)
struct DotPairs {
  static constexpr int kDepth = 2;
  static constexpr int kBlockRows = 144;
  using Coefficient = I32;
  using Operand = I32;
  TESSERA_VEC Coefficient coefficient(const uint32_t* a) {
    int32_t pair;
    __builtin_memcpy(&pair, a, sizeof pair);
    return set1_i32(pair);
  }
  TESSERA_VEC Operand operand(const uint32_t* b) { return load_i32(b); }
  TESSERA_VEC F32 multiply_add(Coefficient a, Operand b, F32 c) { return dot2_bf16(c, a, b); }
};
#endif

// kAdjacent: rows of A lie side by side (a_row is not read). Strides in words.
template <class T, int rows, int columns, bool kAdjacent, bool kAccumulate>
__attribute__((noinline)) void product(const uint32_t* a, int64_t a_row, int64_t a_step, const uint32_t* b,
                                       int64_t b_step, int steps, float* c, int64_t c_row) {
  F32 acc[rows][columns];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < columns; ++n) acc[r][n] = kAccumulate ? load(c + r * c_row + n * kLanes) : zero();
  }
  for (int step = 0; step < steps; ++step) {
    typename T::Operand operands[columns];
#pragma GCC unroll 8
    for (int n = 0; n < columns; ++n) operands[n] = T::operand(b + n * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const typename T::Coefficient coefficient = T::coefficient(kAdjacent ? a + r : a + r * a_row);
#pragma GCC unroll 8
      for (int n = 0; n < columns; ++n) acc[r][n] = T::multiply_add(coefficient, operands[n], acc[r][n]);
    }
    a += a_step;
    b += b_step;
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < columns; ++n) store(c + r * c_row + n * kLanes, acc[r][n]);
  }
}

// `width` columns, a multiple of 16.
template <class T, int rows, bool kAdjacent, bool kAccumulate>
TESSERA_VEC void product_columns(const uint32_t* a, int64_t a_row, int64_t a_step, const uint32_t* b,
                                 int64_t b_step, int steps, float* c, int64_t c_row, int width) {
  constexpr int kColumns = kTileVectors * kLanes;
  int d = 0;
  for (; d + kColumns <= width; d += kColumns) {
    product<T, rows, kTileVectors, kAdjacent, kAccumulate>(a, a_row, a_step, b + d, b_step, steps, c + d,
                                                           c_row);
  }
  if constexpr (kColumns > 16) {
    switch ((width - d) / 16) {
      case 3:
        return product<T, rows, 3, kAdjacent, kAccumulate>(a, a_row, a_step, b + d, b_step, steps, c + d,
                                                           c_row);
      case 2:
        return product<T, rows, 2, kAdjacent, kAccumulate>(a, a_row, a_step, b + d, b_step, steps, c + d,
                                                           c_row);
      case 1:
        return product<T, rows, 1, kAdjacent, kAccumulate>(a, a_row, a_step, b + d, b_step, steps, c + d,
                                                           c_row);
    }
  }
}

// ---- where things lie ----

TESSERA_VEC int64_t words(int rows, int width) {
  return int64_t{rows} * width;
}

// A tile of a segment. B operands: k_columns = k^T, v_columns = v^T, k_steps = k with keys as steps.
template <class T>
struct TileMemory {
  uint32_t *k_columns, *v_columns, *k_steps;
  float *dk, *dv;

  static int64_t size(const BackwardShape& shape) {
    const int k_width = shape.k_width, v_width = shape.v_width;
    return words(shape.head_dim / T::kDepth, kKeyTile) + words(shape.v_head_dim / T::kDepth, kKeyTile) +
           words(kKeyTile / T::kDepth, k_width) + words(kKeyTile, k_width) + words(kKeyTile, v_width);
  }
  TileMemory(const BackwardShape& shape, const BackwardTile& tile) {
    const int k_width = shape.k_width;
    k_columns = static_cast<uint32_t*>(tile.segment) + tile.index * size(shape);
    v_columns = k_columns + words(shape.head_dim / T::kDepth, kKeyTile);
    k_steps = v_columns + words(shape.v_head_dim / T::kDepth, kKeyTile);
    dk = reinterpret_cast<float*>(k_steps + words(kKeyTile / T::kDepth, k_width));
    dv = dk + words(kKeyTile, k_width);
  }
};

// A block of rows. A operands: q, dout, ds by rows, p, ds_steps by columns; B operands: q_steps, dout_steps.
// In f32 the two forms of a matrix are one.
template <class T>
struct BlockMemory {
  uint32_t *q, *dout, *q_steps, *dout_steps, *p, *ds, *ds_steps;
  int64_t q_row, dout_row, ds_row;  // strides of the A operands by rows
  float* dq;
  float *s, *dp;  // f32: p and ds themselves; pairs: of a register tile of rows

  static constexpr bool kBoth = T::kDepth > 1;
  static int64_t size(const BackwardShape& shape) {
    const int k_width = shape.k_width, v_width = shape.v_width;
    const int64_t one = words(T::kBlockRows / T::kDepth, k_width + v_width + 2 * kKeyTile);
    const int64_t other = words(T::kBlockRows / T::kDepth, k_width + v_width + kKeyTile);
    return one + (kBoth ? other + 2 * words(kTileRows, kKeyTile) : 0) + words(T::kBlockRows, k_width);
  }
  BlockMemory(const BackwardShape& shape, const BackwardRows& rows) {
    const int k_width = shape.k_width, v_width = shape.v_width;
    uint32_t* at = static_cast<uint32_t*>(rows.memory);
    const auto take = [&](int width) {
      uint32_t* taken = at;
      at += words(T::kBlockRows / T::kDepth, width);
      return taken;
    };
    q = take(k_width);
    dout = take(v_width);
    p = take(kKeyTile);
    ds = take(kKeyTile);
    q_steps = kBoth ? take(k_width) : q;
    dout_steps = kBoth ? take(v_width) : dout;
    ds_steps = kBoth ? take(kKeyTile) : ds;
    q_row = k_width / T::kDepth;
    dout_row = v_width / T::kDepth;
    ds_row = kKeyTile / T::kDepth;
    dq = reinterpret_cast<float*>(at);
    s = kBoth ? dq + words(T::kBlockRows, k_width) : reinterpret_cast<float*>(p);
    dp = kBoth ? s + words(kTileRows, kKeyTile) : reinterpret_cast<float*>(ds);
  }
};

// ---- rows in and out ----

TESSERA_VEC F32 load_typed(const char* from, DType dtype, int d) {
  if (dtype == DType::f32) return load(reinterpret_cast<const float*>(from) + d);
  if (dtype == DType::bf16) return load_bf16(reinterpret_cast<const uint16_t*>(from) + d);
  return load_f16(reinterpret_cast<const uint16_t*>(from) + d);
}
TESSERA_VEC void store_typed(char* to, DType dtype, int d, F32 x) {
  if (dtype == DType::f32) return store(reinterpret_cast<float*>(to) + d, x);
  if (dtype == DType::bf16) return store_bf16(reinterpret_cast<uint16_t*>(to) + d, x);
  store_f16(reinterpret_cast<uint16_t*>(to) + d, x);
}

// Elements [first, n) of a row, fewer than kLanes; zeros behind them.
TESSERA_VEC F32 load_tail(const void* from, DType dtype, int first, int n) {
  const int element = dtype == DType::f32 ? 4 : 2;
  char tail[kLanes * 4] = {};
  __builtin_memcpy(tail, static_cast<const char*>(from) + first * element,
                   static_cast<size_t>((n - first) * element));
  return load_typed(tail, dtype, 0);
}

// n elements of a row -> f32, zeros up to `width`; from null: zeros.
TESSERA_VEC void load_row(const void* from, DType dtype, int n, int width, float* to) {
  const int whole = from == nullptr ? 0 : n / kLanes * kLanes;
  for (int d = 0; d < whole; d += kLanes) store(to + d, load_typed(static_cast<const char*>(from), dtype, d));
  for (int d = whole; d < width; d += kLanes) store(to + d, zero());
  if (from != nullptr && whole < n) store(to + whole, load_tail(from, dtype, whole, n));
}

// Rows of the caller's lie apart, where the hardware's own prefetch does not find them. `row` null: nothing.
TESSERA_VEC void fetch_row(const void* row, DType dtype, int n) {
  const int bytes = row == nullptr ? 0 : n * (dtype == DType::f32 ? 4 : 2);
  for (int at = 0; at < bytes; at += 64) prefetch_near(static_cast<const char*>(row) + at);
}

// n elements of `from` times `scale` -> a row.
TESSERA_VEC void store_row(const float* from, F32 scale, DType dtype, int n, void* to) {
  char* bytes = static_cast<char*>(to);
  const int whole = n / kLanes * kLanes;
  // + 0 turns -0 into 0: which zero an all-masked product left depends on how many steps were left out.
  for (int d = 0; d < whole; d += kLanes) store_typed(bytes, dtype, d, load(from + d) * scale + zero());
  if (whole < n) {
    const size_t element = dtype == DType::f32 ? 4 : 2;
    char tail[kLanes * 4];
    store_typed(tail, dtype, 0, load(from + whole) * scale + zero());
    __builtin_memcpy(bytes + static_cast<size_t>(whole) * element, tail,
                     static_cast<size_t>(n - whole) * element);
  }
}

// Two rows of 16-bit elements -> a row of pairs, the first row in the low halves. width: a multiple of 16.
TESSERA_VEC void interleave(const void* low, const void* high, int width, uint32_t* out) {
  for (int d = 0; d < width; d += kLanes) {
    const I32 a = as_i32(load_bf16(static_cast<const uint16_t*>(low) + d));
    const I32 b = as_i32(load_bf16(static_cast<const uint16_t*>(high) + d));
    store_i32(out + d, keep_low(shift_right<16>(a)) + b);
  }
}

// n 16-bit elements of a row, zeros up to `width`; from null: zeros.
TESSERA_VEC void copy_row(const void* from, int n, int width, uint32_t* to) {
  char* bytes = reinterpret_cast<char*>(to);
  const size_t kept = from == nullptr ? 0 : static_cast<size_t>(n) * 2;
  if (kept > 0) __builtin_memcpy(bytes, from, kept);
  __builtin_memset(bytes + kept, 0, static_cast<size_t>(width) * 2 - kept);
}

// `rows` rows of `row` words, the first `count` of each -> [count][64].
TESSERA_VEC void transpose_block(const uint32_t* from, int row, int count, int rows, uint32_t* to) {
  pack::transpose(reinterpret_cast<const char*>(from), int64_t{row} * 4, count, rows, nullptr,
                  reinterpret_cast<char*>(to));
}

TESSERA_VEC void clear(float* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) store(to + i, zero());
}

// ---- what the rows of a block see ----

struct Range {
  int begin, end;
};

// Of `count` values that do not fall: how many are at most `limit`.
TESSERA_VEC int count_up_to(const int32_t* values, int count, int64_t limit) {
  int low = 0;
  while (count > 0) {
    const int half = count / 2;
    if (values[low + half] <= limit) {
      low += half + 1;
      count -= half + 1;
    } else {
      count = half;
    }
  }
  return low;
}

// Rows that may see one of the keys [first, end).
TESSERA_VEC Range rows_that_see(const BackwardRows& rows, int64_t first, int64_t end) {
  return {count_up_to(rows.end_key, rows.rows, first), count_up_to(rows.first_key, rows.rows, end - 1)};
}

// Keys of the tile that rows [row, row + kTileRows) may see.
TESSERA_VEC Range keys_seen(const BackwardRows& rows, int row, int64_t first_key) {
  const int last = row + kTileRows < rows.rows ? row + kTileRows - 1 : rows.rows - 1;
  const int64_t first = rows.first_key[row] - first_key, end = rows.end_key[last] - first_key;
  return {static_cast<int>(first < 0 ? 0 : first), static_cast<int>(end > kKeyTile ? kKeyTile : end)};
}

// ---- scores to gradients: s becomes p (after dropout), dp becomes ds, in place ----

template <class T, bool kMasked>
TESSERA_VEC void plain_row(const BackwardShape& shape, const BackwardRows& rows, int row, int64_t first_key,
                           float* s, float* dp) {
  const F32 scale = set1(shape.scale * kLog2e), lse = set1(-rows.lse[row]), delta = set1(rows.delta[row]);
  const I32 first = set1_i32(static_cast<int32_t>(rows.first_key[row] - first_key));
  const I32 end = set1_i32(static_cast<int32_t>(rows.end_key[row] - first_key));
#pragma GCC unroll 4
  for (int key = 0; key < kKeyTile; key += kLanes) {
    const F32 score = fma(load(s + key), scale, lse);
    F32 p = T::kDepth > 1 ? exp2_coarse(score) : exp2(score);
    F32 ds = p * (load(dp + key) - delta);
    if constexpr (kMasked) {
      const I32 at = iota_i32() + set1_i32(key);
      const simd::Mask sees = and_(ge(at, first), lt(at, end));
      p = select(sees, p, zero());
      ds = select(sees, ds, zero());
    }
    store(s + key, p);
    store(dp + key, ds);
  }
}

// Whole vectors of mask elements; returns the first key that is left over.
template <typename Load>
TESSERA_VEC int load_mask_vectors(Range seen, float* bias, const Load& load_at) {
  int key = seen.begin;
  for (; key + kLanes <= seen.end; key += kLanes) store(bias + key, load_at(key));
  return key;
}

// Elements of a row's mask tensor for the keys [seen.begin, seen.end) of a tile, as what is added to the
// score; below kHidingMask where the key is hidden. What the row does not see by position is not read.
TESSERA_VEC void load_mask(const BackwardShape& shape, const void* mask_row, int64_t first_key, Range seen,
                           float* bias) {
  const bool boolean = shape.mask == MaskKind::boolean;
  const int64_t element = boolean ? 1 : shape.mask_dtype == DType::f32 ? 4 : 2;
  const int64_t step = shape.mask_key_stride * element;
  const char* from = static_cast<const char*>(mask_row) + first_key * step;
  const auto boolean_at = [](const char* at) {
    const I32 shown = load_u8(reinterpret_cast<const uint8_t*>(at));
    return select(gt(shown, set1_i32(0)), zero(), set1(2 * kHidingMask));
  };
  int key = seen.begin;
  if (step == element && boolean) {
    key = load_mask_vectors(seen, bias, [&](int at) { return boolean_at(from + at); });
  } else if (step == element) {
    switch (shape.mask_dtype) {
      case DType::f32:
        key = load_mask_vectors(seen, bias, [&](int at) { return load_typed(from, DType::f32, at); });
        break;
      case DType::bf16:
        key = load_mask_vectors(seen, bias, [&](int at) { return load_typed(from, DType::bf16, at); });
        break;
      default:
        key = load_mask_vectors(seen, bias, [&](int at) { return load_typed(from, DType::f16, at); });
    }
  }
  for (; key < seen.end; key += kLanes) {
    const int n = seen.end - key < kLanes ? seen.end - key : kLanes;
    char copy[kLanes * 4] = {};
    for (int i = 0; i < n; ++i) {
      __builtin_memcpy(copy + i * element, from + (key + i) * step, static_cast<size_t>(element));
    }
    store_n(bias + key, boolean ? boolean_at(copy) : load_typed(copy, shape.mask_dtype, 0), n);
  }
}

// plain_row for kTileRows rows of a problem with anything else in it.
template <class T>
__attribute__((noinline)) void feature_rows(const BackwardShape& shape, const BackwardRows& rows,
                                            int first_row, int64_t first_key, float* s, float* dp) {
  const int count = rows.rows - first_row < kTileRows ? rows.rows - first_row : kTileRows;
  uint8_t bytes[kTileRows * kKeyTile];
  if (shape.dropout != nullptr) {
    dropout_tile<kTileRows>(*shape.dropout, rows.dropout + first_row, count, first_key, bytes);
  }
  const F32 scale = set1(shape.scale), log2e = set1(kLog2e);
  for (int r = 0; r < kTileRows; ++r, s += kKeyTile, dp += kKeyTile) {
    const int row = first_row + r;
    const int64_t first = rows.first_key[row] - first_key, end = rows.end_key[row] - first_key;
    const Range seen{static_cast<int>(first < 0 ? 0 : first),
                     static_cast<int>(end > kKeyTile ? kKeyTile : end)};
    if (seen.begin >= seen.end) {
      clear(s, kKeyTile);
      clear(dp, kKeyTile);
      continue;
    }
    float bias[kKeyTile];
    if (shape.mask != MaskKind::none) load_mask(shape, rows.mask_row[row], first_key, seen, bias);
    const F32 lse = set1(-rows.lse[row]), delta = set1(rows.delta[row]);
    for (int key = 0; key < kKeyTile; key += kLanes) {
      const I32 at = iota_i32() + set1_i32(key);
      F32 z = load(s + key) * scale, gradient = load(dp + key), factor = set1(1.0f), slope = set1(1.0f);
      if (shape.softcap > 0) {
        const F32 t = tanh(z / set1(shape.softcap));
        z = t * set1(shape.softcap);
        slope = fnma(t, t, slope);
      }
      if (shape.alibi) {
        const I32 distance = at + set1_i32(static_cast<int32_t>(first_key - rows.position[row]));
        z = fnma(set1(rows.slope[row]), abs(to_f32(distance)), z);
      }
      const simd::Mask sees = and_(ge(at, set1_i32(seen.begin)), lt(at, set1_i32(seen.end)));
      if (shape.mask != MaskKind::none) {
        // A hidden key's k and v may hold NaN.
        const F32 add = load(bias + key);
        const simd::Mask hidden = lt(add, set1(kHidingMask));
        z = select(hidden, set1(2 * kHidingMask), z + add);
        gradient = select(hidden, zero(), gradient);
      }
      const F32 p = exp2(fma(z, log2e, lse));
      if (shape.dropout != nullptr) {
        const simd::Mask kept =
            le(load_u8(bytes + r * kKeyTile + key), set1_i32(static_cast<int32_t>(shape.dropout->threshold)));
        factor = select(kept, set1(shape.dropout_scale), zero());
      }
      const F32 ds = p * (gradient * factor - delta) * slope;
      store(s + key, select(sees, p * factor, zero()));
      store(dp + key, select(sees, ds, zero()));
    }
  }
}

// ---- the steps of a walk ----

// p and ds of rows [row, row + kTileRows).
template <class T>
TESSERA_VEC void score_rows(const BackwardShape& shape, const BackwardRows& rows, int row,
                            const BackwardTile& tile, const TileMemory<T>& keys, const BlockMemory<T>& block,
                            Range seen, bool whole) {
  float* s = block.s + (T::kDepth > 1 ? 0 : int64_t{row} * kKeyTile);
  float* dp = block.dp + (T::kDepth > 1 ? 0 : int64_t{row} * kKeyTile);
  const int first = seen.begin / 16 * 16, width = (seen.end - first + 15) / 16 * 16;
  product_columns<T, kTileRows, false, false>(block.q + row * block.q_row, block.q_row, 1,
                                              keys.k_columns + first, kKeyTile, shape.head_dim / T::kDepth,
                                              s + first, kKeyTile, width);
  product_columns<T, kTileRows, false, false>(block.dout + row * block.dout_row, block.dout_row, 1,
                                              keys.v_columns + first, kKeyTile, shape.v_head_dim / T::kDepth,
                                              dp + first, kKeyTile, width);
  if (!shape.plain) feature_rows<T>(shape, rows, row, tile.first_key, s, dp);
  for (int r = 0; r < kTileRows && shape.plain; ++r) {
    if (whole) {
      plain_row<T, false>(shape, rows, row + r, tile.first_key, s + r * kKeyTile, dp + r * kKeyTile);
    } else {
      plain_row<T, true>(shape, rows, row + r, tile.first_key, s + r * kKeyTile, dp + r * kKeyTile);
    }
  }
  if constexpr (T::kDepth > 1) {
    uint16_t p[2][kKeyTile];
    for (int r = 0; r < kTileRows; r += 2) {
      uint32_t* ds = block.ds + (row + r) * block.ds_row;
      for (int half = 0; half < 2; ++half) {
        uint16_t* ds_half = reinterpret_cast<uint16_t*>(ds + half * block.ds_row);
        for (int key = 0; key < kKeyTile; key += kLanes) {
          store_bf16(p[half] + key, load(s + (r + half) * kKeyTile + key));
          store_bf16(ds_half + key, load(dp + (r + half) * kKeyTile + key));
        }
      }
      interleave(p[0], p[1], kKeyTile, block.p + int64_t{row + r} / 2 * kKeyTile);
      interleave(ds, ds + block.ds_row, kKeyTile, block.ds_steps + int64_t{row + r} / 2 * kKeyTile);
    }
  }
}

// c [kKeyTile][width] += a^T b over the rows that see the keys; a [block][kKeyTile].
template <class T>
TESSERA_VEC void reduce_rows(const BackwardRows& rows, int64_t first_key, bool whole, const uint32_t* a,
                             const uint32_t* b, float* c, int width) {
  const auto take = [&]<int keys>(int key) {
    Range range{0, rows.rows};
    if (!whole) range = rows_that_see(rows, first_key + key, first_key + key + keys);
    if (range.begin >= range.end) return;
    const int begin = range.begin / T::kDepth, end = (range.end + T::kDepth - 1) / T::kDepth;
    product_columns<T, keys, true, true>(a + int64_t{begin} * kKeyTile + key, 0, kKeyTile,
                                         b + int64_t{begin} * width, width, end - begin,
                                         c + int64_t{key} * width, width, width);
  };
  int key = 0;
  for (; key + kTileRows <= kKeyTile; key += kTileRows) take.template operator()<kTileRows>(key);
  if constexpr (kKeyTile % kTileRows != 0) take.template operator()<kKeyTile % kTileRows>(key);
}

template <class T>
void walk_tile(const BackwardShape& shape, const BackwardRows& rows, const BackwardTile& tile) {
  const Range seeing = rows_that_see(rows, tile.first_key, tile.first_key + kKeyTile);
  if (seeing.begin >= seeing.end) return;
  const bool whole =
      rows.first_key[rows.rows - 1] <= tile.first_key && rows.end_key[0] >= tile.first_key + kKeyTile;
  const TileMemory<T> keys(shape, tile);
  const BlockMemory<T> block(shape, rows);
  const int k_width = shape.k_width, v_width = shape.v_width;
  const int first_row = seeing.begin / kTileRows * kTileRows;
  for (int row = first_row; row < seeing.end; row += kTileRows) {
    const Range seen = whole ? Range{0, kKeyTile} : keys_seen(rows, row, tile.first_key);
    score_rows<T>(shape, rows, row, tile, keys, block, seen, whole);
  }
  reduce_rows<T>(rows, tile.first_key, whole, block.p, block.dout_steps, keys.dv, v_width);
  reduce_rows<T>(rows, tile.first_key, whole, block.ds_steps, block.q_steps, keys.dk, k_width);
  for (int row = first_row; row < seeing.end; row += kTileRows) {
    const Range seen = whole ? Range{0, kKeyTile} : keys_seen(rows, row, tile.first_key);
    const int begin = seen.begin / T::kDepth, end = (seen.end + T::kDepth - 1) / T::kDepth;
    product_columns<T, kTileRows, false, true>(block.ds + row * block.ds_row + begin, block.ds_row, 1,
                                               keys.k_steps + int64_t{begin} * k_width, k_width, end - begin,
                                               block.dq + int64_t{row} * k_width, k_width, k_width);
  }
}

// ---- the rest of the table ----

inline float row_delta(const BackwardShape& shape, const void* o, const void* dout) {
  const int whole = shape.v_head_dim / kLanes * kLanes;
  F32 sum = zero();
  for (int d = 0; d < whole; d += kLanes) {
    sum = fma(load_typed(static_cast<const char*>(o), shape.dtype, d),
              load_typed(static_cast<const char*>(dout), shape.dtype, d), sum);
  }
  if (whole < shape.v_head_dim) {
    sum = fma(load_tail(o, shape.dtype, whole, shape.v_head_dim),
              load_tail(dout, shape.dtype, whole, shape.v_head_dim), sum);
  }
  return reduce_add(sum);
}

template <class T>
int64_t segment_bytes(const BackwardShape& shape) {
  return TileMemory<T>::size(shape) * 4 * (kSegment / kKeyTile);
}
template <class T>
int64_t block_bytes(const BackwardShape& shape) {
  return BlockMemory<T>::size(shape) * 4;
}

template <class T>
void pack_tile(const BackwardShape& shape, const BackwardTile& tile, const void* const* k,
               const void* const* v) {
  const TileMemory<T> keys(shape, tile);
  const int k_width = shape.k_width, v_width = shape.v_width;
  // What is needed by rows only to be packed lies where dk and dv will.
  uint32_t* k_rows = T::kDepth > 1 ? reinterpret_cast<uint32_t*>(keys.dk) : keys.k_steps;
  uint32_t* v_rows = reinterpret_cast<uint32_t*>(keys.dv);
  const int k_row = k_width / T::kDepth, v_row = v_width / T::kDepth;
  for (int key = 0; key < kKeyTile; ++key) {
    if (key + kRowsAhead < kKeyTile) {
      fetch_row(k[key + kRowsAhead], shape.dtype, shape.head_dim);
      fetch_row(v[key + kRowsAhead], shape.dtype, shape.v_head_dim);
    }
    if constexpr (T::kDepth > 1) {
      copy_row(k[key], shape.head_dim, k_width, k_rows + key * k_row);
      copy_row(v[key], shape.v_head_dim, v_width, v_rows + key * v_row);
    } else {
      load_row(k[key], shape.dtype, shape.head_dim, k_width, reinterpret_cast<float*>(k_rows + key * k_row));
      load_row(v[key], shape.dtype, shape.v_head_dim, v_width,
               reinterpret_cast<float*>(v_rows + key * v_row));
    }
  }
  transpose_block(k_rows, k_row, shape.head_dim / T::kDepth, kKeyTile, keys.k_columns);
  transpose_block(v_rows, v_row, shape.v_head_dim / T::kDepth, kKeyTile, keys.v_columns);
  if constexpr (T::kDepth > 1) {
    for (int key = 0; key < kKeyTile; key += 2) {
      const uint32_t* pair = k_rows + key * k_row;
      interleave(pair, pair + k_row, k_width, keys.k_steps + int64_t{key} / 2 * k_width);
    }
  }
  clear(keys.dk, words(kKeyTile, k_width + v_width));
}

template <class T>
void pack_rows(const BackwardShape& shape, const BackwardRows& rows, const void* const* q,
               const void* const* dout, const float* dq) {
  const BlockMemory<T> block(shape, rows);
  const int k_width = shape.k_width, v_width = shape.v_width;
  const int padded = (rows.rows + kTileRows - 1) / kTileRows * kTileRows;
  for (int row = 0; row < padded; ++row) {
    const bool real = row < rows.rows;
    if (row + kRowsAhead < rows.rows) {
      fetch_row(q[row + kRowsAhead], shape.dtype, shape.head_dim);
      fetch_row(dout[row + kRowsAhead], shape.dtype, shape.v_head_dim);
    }
    const void* from_q = real ? q[row] : nullptr;
    const void* from_dout = real ? dout[row] : nullptr;
    uint32_t* to_q = block.q + row * block.q_row;
    uint32_t* to_dout = block.dout + row * block.dout_row;
    if constexpr (T::kDepth > 1) {
      copy_row(from_q, shape.head_dim, k_width, to_q);
      copy_row(from_dout, shape.v_head_dim, v_width, to_dout);
      if (row % 2 == 0) continue;
      interleave(to_q - block.q_row, to_q, k_width, block.q_steps + int64_t{row} / 2 * k_width);
      interleave(to_dout - block.dout_row, to_dout, v_width, block.dout_steps + int64_t{row} / 2 * v_width);
    } else {
      load_row(from_q, shape.dtype, shape.head_dim, k_width, reinterpret_cast<float*>(to_q));
      load_row(from_dout, shape.dtype, shape.v_head_dim, v_width, reinterpret_cast<float*>(to_dout));
    }
  }
  const int64_t begun = dq == nullptr ? 0 : words(rows.rows, k_width);
  for (int64_t i = 0; i < begun; i += kLanes) store(block.dq + i, load(dq + i));
  clear(block.dq + begun, words(padded, k_width) - begun);
}

// sum = or += part.
TESSERA_VEC void add_sums(const float* part, int64_t count, bool first, float* sum) {
  for (int64_t i = 0; i < count; i += kLanes) {
    store(sum + i, first ? load(part + i) : load(sum + i) + load(part + i));
  }
}

template <class T>
void sum_dq(const BackwardShape& shape, const BackwardRows& rows, bool first, float* sum) {
  add_sums(BlockMemory<T>(shape, rows).dq, words(rows.rows, shape.k_width), first, sum);
}

inline void write_dq(const BackwardShape& shape, int rows, const float* sum, void* const* out) {
  const int width = shape.k_width;
  for (int row = 0; row < rows; ++row) {
    store_row(sum + int64_t{row} * width, set1(shape.scale), shape.dtype, shape.head_dim, out[row]);
  }
}

template <class T>
void add_dq(const BackwardShape& shape, const BackwardRows& rows, bool first, void* const* out) {
  const float* dq = BlockMemory<T>(shape, rows).dq;
  const int width = shape.k_width;
  const F32 scale = set1(shape.scale);
  for (int row = 0; row < rows.rows; ++row) {
    float* to = static_cast<float*>(out[row]);
    const float* from = dq + int64_t{row} * width;
    for (int d = 0; d < shape.head_dim; d += kLanes) {
      const int n = shape.head_dim - d < kLanes ? shape.head_dim - d : kLanes;
      const F32 before = first ? zero() : load_n(to + d, n);
      store_n(to + d, fma(load(from + d), scale, before), n);
    }
  }
}

// dk_sums [kKeyTile][k_width], dv_sums [kKeyTile][v_width] to the rows that are wanted.
TESSERA_VEC void store_tile(const BackwardShape& shape, const float* dk_sums, const float* dv_sums,
                            void* const* dk, void* const* dv) {
  for (int key = 0; key < kKeyTile; ++key) {
    if (dk[key] == nullptr) continue;
    store_row(dk_sums + key * shape.k_width, set1(shape.scale), shape.dtype, shape.head_dim, dk[key]);
    store_row(dv_sums + key * shape.v_width, set1(1.0f), shape.dtype, shape.v_head_dim, dv[key]);
  }
}

template <class T>
void write_tile(const BackwardShape& shape, const BackwardTile& tile, void* const* dk, void* const* dv) {
  const TileMemory<T> memory(shape, tile);
  store_tile(shape, memory.dk, memory.dv, dk, dv);
}

template <class T>
constexpr BackwardKernel make_backward(const char* name, simd::Isa isa, uint32_t dtypes) {
  return {name,           isa,       dtypes,       T::kBlockRows, segment_bytes<T>,
          block_bytes<T>, row_delta, pack_tile<T>, pack_rows<T>,  walk_tile<T>,
          sum_dq<T>,      write_dq,  add_dq<T>,    write_tile<T>};
}

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::attention
