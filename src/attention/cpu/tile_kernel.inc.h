// The attention kernel of the CPU: one tile of 64 keys against stacked query rows. Compiled once per ISA.
//
// Per row and tile: s = q.k over d in rising order, one accumulator a key; soft cap, ALiBi, mask; p = 2^(s -
// m); l += p lane by lane; o += p * v over the keys in rising order, one accumulator a column. That sequence
// is the same for every number of rows (law 1): the templates below differ in how many rows and columns they
// hold in registers, not in order.
//
// Both products are the same small matrix product: C [rows][columns] += A [rows][steps] * B [steps][columns],
// where B is the tile as stored: a step is one d (or key) in f32, a pair of them in bf16, and always 4 bytes
// a column. With K or V in L1, a register tile of 6 x 4 vectors on AVX-512 (24 accumulators, 4 of B, 1
// broadcast) makes 24 FMA from 10 loads; 8 x 2 and 12 x 2 were slower. AVX2 and scalar hold 6 x 2 and 4 x 2
// in 16 registers. Taking the next block's scores between a block's softmax and its second product, so that
// multiply-adds fill the gap, gained nothing on Zen 5.
//
// Lazy rescale: m moves only when one of the row's scores exceeds it by kLazyBound, to the largest score of
// that tile. So p
// <= 2^8 (harmless in f32 and bf16: precision is relative), and the common case costs a compare and a branch.
//
// bf16 storage: with AVX512_BF16, q and p are rounded to bf16 and vdpbf16ps multiplies pairs. Otherwise p
// stays f32 and pairs are split in registers by a shift and a mask; from kUnpackRows rows on the tile is
// unpacked once into scratch instead (equal values in equal order: equal bits).
//
// REQUIRES (speed only): FTZ and DAZ set, or products with tiny p run at half speed.
#pragma once

#include "attention/cpu/features.inc.h"
#include "attention/cpu/tile_kernel.h"
#include "attention/problem.h"
#include "attention/softmax_state.h"
#include "simd/vec_math.h"

namespace tessera::attention {
inline namespace TESSERA_SIMD_NAMESPACE {

using namespace simd;

inline constexpr float kLazyBound = 8.0f;
inline constexpr int kRegisterRows = kLanes == 4 ? 4 : 6;
// Vectors of columns. Few rows take more of them: twelve chains hide the latency of fma, six do not.
constexpr int register_columns(int rows) {
  return kLanes == 16 || rows <= 3 ? 4 : 2;
}
inline constexpr int kUnpackRows = 96;
// Prefetch distances in bytes along the stream of tiles, both to L1: the hardware's own prefetcher stops at
// the end of a block, and one distance alone leaves holes. Shares of the read rate on a Zen 5 core with 41
// GB/s, for head_dim 64 and 128 (16 and 32 KiB a pair): 5 and 10 KiB 80 and 85 %, 4 and 8 KiB 80 and 84, 6
// and 12 KiB 77 and 83, 2 and 8 KiB 78 and 80; the second to L2 loses 20 %, 8 KiB alone 10. Tried and lost: a
// far prefetch in the order of memory whatever the order of V's columns, bursts of 1 to 4 KiB, fewer lines
// for the hardware to follow, prefetching during the softmax, all kv heads of a block in turn (one piece of
// memory).
inline constexpr int64_t kNear = 5120;
inline constexpr int64_t kFar = 10240;

// How one storage form multiplies. A: its left operand in memory; Coefficient: one part of a step of A,
// broadcast; Operand: the same part of a step of B for kLanes columns. The parts of a step are taken one
// after the other.
struct MultiplyF32 {
  using A = float;
  static constexpr int kDepth = 1;  // elements of A in a step
  static constexpr int kParts = 1;
  static constexpr bool kCoarse = false;
  using Coefficient = F32;
  using Operand = F32;
  TESSERA_VEC Coefficient coefficient(const A* a) { return set1(*a); }
  template <int part>
  TESSERA_VEC Operand operand(const char* b) {
    return load(reinterpret_cast<const float*>(b));
  }
  TESSERA_VEC Operand first_half(const char* b) { return operand<0>(b); }
  TESSERA_VEC F32 multiply_add(Coefficient a, Operand b, F32 c) { return fma(a, b, c); }
};

// bf16 pairs split in registers, A in f32. Taking all low halves of a step before the high ones loads B twice
// (from L1), and keeps the register block without spills.
struct MultiplySplit {
  using A = float;
  static constexpr int kDepth = 2;
  static constexpr int kParts = 2;
  static constexpr bool kCoarse = false;
  using Coefficient = F32;
  using Operand = F32;
  TESSERA_VEC Coefficient coefficient(const A* a) { return set1(*a); }
  template <int part>
  TESSERA_VEC Operand operand(const char* b) {
    return part == 0 ? low_bf16(load_i32(b)) : high_bf16(load_i32(b));
  }
  TESSERA_VEC Operand first_half(const char* b) { return operand<0>(b); }
  TESSERA_VEC F32 multiply_add(Coefficient a, Operand b, F32 c) { return fma(a, b, c); }
};

#if defined(__AVX512BF16__)
// bf16 pairs multiplied by vdpbf16ps, A in bf16.
struct MultiplyPairs {
  using A = uint16_t;
  static constexpr int kDepth = 2;
  static constexpr int kParts = 1;
  static constexpr bool kCoarse = true;
  using Coefficient = I32;
  using Operand = I32;
  TESSERA_VEC Coefficient coefficient(const A* a) {
    int32_t pair;
    __builtin_memcpy(&pair, a, sizeof pair);
    return set1_i32(pair);
  }
  template <int part>
  TESSERA_VEC Operand operand(const char* b) {
    return load_i32(b);
  }
  TESSERA_VEC Operand first_half(const char* b) { return keep_low(load_i32(b)); }
  TESSERA_VEC F32 multiply_add(Coefficient a, Operand b, F32 c) { return dot2_bf16(c, a, b); }
};
#endif

// One part of a step: acc [rows][columns] += A's part x B's part.
template <class T, int rows, int columns, int part>
TESSERA_VEC void multiply_part(F32 (&acc)[rows][columns], const typename T::A* a, int64_t a_stride,
                               const char* b) {
  // Whichever side is smaller is held in registers.
  if constexpr (rows < columns) {
    typename T::Coefficient coefficients[rows];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) coefficients[r] = T::coefficient(a + r * a_stride + part);
#pragma GCC unroll 8
    for (int n = 0; n < columns; ++n) {
      const typename T::Operand operand = T::template operand<part>(b + n * kLanes * 4);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) acc[r][n] = T::multiply_add(coefficients[r], operand, acc[r][n]);
    }
  } else {
    typename T::Operand operands[columns];
#pragma GCC unroll 8
    for (int n = 0; n < columns; ++n) operands[n] = T::template operand<part>(b + n * kLanes * 4);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const typename T::Coefficient coefficient = T::coefficient(a + r * a_stride + part);
#pragma GCC unroll 8
      for (int n = 0; n < columns; ++n) acc[r][n] = T::multiply_add(coefficient, operands[n], acc[r][n]);
    }
  }
}

// The stream of tiles as prefetching sees it: what lies beyond the end of this pair is the start of the next.
struct Stream {
  uintptr_t end;
  uintptr_t jump;  // from `end` to the next pair's start

  TESSERA_VEC const void* ahead(const Stream& stream, const char* at, int64_t distance) {
    uintptr_t target = reinterpret_cast<uintptr_t>(at) + static_cast<uintptr_t>(distance);
    if (target >= stream.end) target += stream.jump;
    return reinterpret_cast<const void*>(target);
  }
};

// kPrefetchBytes: of each step of B, to fetch ahead (the first pass over a K tile fetches for the others).
// C [rows][columns * kLanes] (+)= A * B over `steps` steps, and over the first half of one more when `half`.
// b_stride: bytes between steps. Accumulates into C when kAccumulate, else starts from zero.
template <class T, int rows, int columns, bool kAccumulate, int kPrefetchBytes>
TESSERA_VEC void multiply(const typename T::A* a, int64_t a_stride, const char* b, int64_t b_stride,
                          int steps, bool half, float* c, int64_t c_stride, const Stream& stream) {
  F32 acc[rows][columns];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < columns; ++n) {
      acc[r][n] = kAccumulate ? load(c + r * c_stride + n * kLanes) : zero();
    }
  }
  for (int step = 0; step < steps; ++step) {
    if constexpr (kPrefetchBytes > 0) {
#pragma GCC unroll 8
      for (int line = 0; line < kPrefetchBytes; line += 64) {
        prefetch_near(Stream::ahead(stream, b + line, kNear));
        prefetch_near(Stream::ahead(stream, b + line, kFar));
      }
    }
    multiply_part<T, rows, columns, 0>(acc, a, a_stride, b);
    if constexpr (T::kParts == 2) multiply_part<T, rows, columns, 1>(acc, a, a_stride, b);
    a += T::kDepth;
    b += b_stride;
  }
  if (half) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const typename T::Coefficient coefficient = T::coefficient(a + r * a_stride);
#pragma GCC unroll 8
      for (int n = 0; n < columns; ++n) {
        acc[r][n] = T::multiply_add(coefficient, T::first_half(b + n * kLanes * 4), acc[r][n]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < columns; ++n) store(c + r * c_stride + n * kLanes, acc[r][n]);
  }
}

struct Scratch {
  alignas(64) float scores[kRegisterRows * kKeyTile];  // and, in place, f32 probabilities
  uint16_t rounded[kRegisterRows * kKeyTile];          // bf16 probabilities
  uint8_t dropout[kRegisterRows * kKeyTile];           // bytes that decide
};

// The first `keys` scores [kKeyTile] of one row -> probabilities; moves the row's m, l and o when it must.
// Keys behind them are such as the row does not see: they would add zeros.
template <class T, bool kMasked, int keys = kKeyTile>
TESSERA_VEC void softmax_row(float* scores, uint16_t* rounded, const ItemRows& rows, int row,
                             int64_t first_key) {
  constexpr int kVectors = keys / kLanes;
  F32 s[kVectors];
#pragma GCC unroll 16
  for (int n = 0; n < kVectors; ++n) s[n] = load(scores + n * kLanes);
  if constexpr (kMasked) {
    const I32 first = set1_i32(static_cast<int32_t>(rows.first_key[row] - first_key));
    const I32 end = set1_i32(static_cast<int32_t>(rows.end_key[row] - first_key));
#pragma GCC unroll 16
    for (int n = 0; n < kVectors; ++n) {
      const I32 key = iota_i32() + set1_i32(n * kLanes);
      s[n] = select(and_(ge(key, first), lt(key, end)), s[n], set1(kHidden));
    }
  }
  F32 top = s[0];
#pragma GCC unroll 16
  for (int n = 1; n < kVectors; ++n) top = max(top, s[n]);
  float m = rows.segment.m[row];
  float* sums = rows.segment.l + int64_t{row} * kSumLanes;
  F32 l = load(sums);
  if (__builtin_expect(any(gt(top, set1(m + kLazyBound))), 0)) {
    const float moved = reduce_max(top);
    // A segment's first score moves m too, but there is nothing to scale.
    if (m != kNoMaximum || any(gt(l, zero()))) {
      const F32 factor = exp2(set1(m - moved));
      l = l * factor;
      float* o = rows.segment.o + int64_t{row} * rows.v_width;
      for (int d = 0; d < rows.v_width; d += kLanes) store(o + d, load(o + d) * factor);
    }
    rows.segment.m[row] = m = moved;
  }
  const F32 reference = set1(m);
  const auto probability = [&](int n) {
    const F32 p = T::kCoarse ? exp2_coarse(s[n] - reference) : exp2(s[n] - reference);
    if constexpr (!T::kCoarse) store(scores + n * kLanes, p);
    l = l + p;
    return p;
  };
#pragma GCC unroll 16
  for (int n = 0; n + 1 < kVectors; n += 2) {
    const F32 low = probability(n), high = probability(n + 1);
    if constexpr (T::kCoarse) store_bf16_pair(rounded + n * kLanes, low, high);
  }
  if constexpr (kVectors % 2 != 0) {
    const F32 last = probability(kVectors - 1);
    if constexpr (T::kCoarse) store_bf16(rounded + (kVectors - 1) * kLanes, last);
  }
  store(sums, l);
}

TESSERA_VEC const float* probabilities(const Scratch& scratch, const float*) {
  return scratch.scores;
}
TESSERA_VEC const uint16_t* probabilities(const Scratch& scratch, const uint16_t*) {
  return scratch.rounded;
}

// Scores and probabilities of a register block of rows for the first `keys` keys of a tile, where no row sees
// more of it (causal attention's last tile): the same bits as with all 64, for less.
template <class T, int count, int keys>
__attribute__((noinline)) void walk_some_keys(const typename T::A* q, const ItemRows& rows, int row,
                                              const char* k, int64_t first_key) {
  constexpr int kVectors = kLanes == 16 ? keys / kLanes : 2;
  Scratch& scratch = *static_cast<Scratch*>(rows.scratch);
  for (int key = 0; key < keys; key += kVectors * kLanes) {
    multiply<T, count, kVectors, false, 0>(q, rows.head_dim, k + key * 4, kKeyTile * 4,
                                           rows.head_dim / T::kDepth, false, scratch.scores + key, kKeyTile,
                                           {});
  }
  for (int r = 0; r < count; ++r) {
    float* scores = scratch.scores + r * kKeyTile;
    if (rows.softcap > 0 || rows.slope != nullptr) transform_scores(scores, rows, row + r, first_key, keys);
    softmax_row<T, true, keys>(scores, scratch.rounded + r * kKeyTile, rows, row + r, first_key);
  }
}

// The same for all keys of a tile. whole: every row sees all of them.
template <class T, int count, bool kPrefetch, bool kFeatured>
TESSERA_VEC void walk_all_keys(const typename T::A* q, const ItemRows& rows, int row, const char* k,
                               int64_t first_key, bool whole, const Stream& stream) {
  Scratch& scratch = *static_cast<Scratch*>(rows.scratch);
  constexpr int kVectors = register_columns(count);
  constexpr int kColumns = kVectors * kLanes;
  multiply<T, count, kVectors, false, kPrefetch ? kKeyTile * 4 : 0>(
      q, rows.head_dim, k, kKeyTile * 4, rows.head_dim / T::kDepth, false, scratch.scores, kKeyTile, stream);
  for (int key = kColumns; key < kKeyTile; key += kColumns) {
    multiply<T, count, kVectors, false, 0>(q, rows.head_dim, k + key * 4, kKeyTile * 4,
                                           rows.head_dim / T::kDepth, false, scratch.scores + key, kKeyTile,
                                           stream);
  }
  for (int r = 0; r < count; ++r) {
    float* scores = scratch.scores + r * kKeyTile;
    uint16_t* rounded = scratch.rounded + r * kKeyTile;
    if (rows.softcap > 0 || rows.slope != nullptr) transform_scores(scores, rows, row + r, first_key);
    if constexpr (kFeatured) mask_scores(scores, rows, row + r, first_key);
    if (whole) {
      softmax_row<T, false>(scores, rounded, rows, row + r, first_key);
    } else {
      softmax_row<T, true>(scores, rounded, rows, row + r, first_key);
    }
  }
}

// One register block of rows against one tile. k, v: the tiles in T's form; v_bytes: bytes of a step of V.
template <class T, int count, bool kPrefetch, bool kFeatured>
__attribute__((noinline)) void walk_block(const ItemRows& rows, int row, const char* k, const char* v,
                                          const TilePair& tile, const Stream& stream) {
  bool whole = true;
  int64_t end = 0;
  for (int r = row; r < row + count; ++r) {
    whole &= rows.first_key[r] <= tile.first_key && rows.end_key[r] >= tile.first_key + kKeyTile;
    if (rows.first_key[r] < tile.first_key + kKeyTile && rows.end_key[r] > end) end = rows.end_key[r];
  }
  // A row that sees nothing of the tile would add zeros only.
  if (end <= tile.first_key) return;

  Scratch& scratch = *static_cast<Scratch*>(rows.scratch);
  using A = typename T::A;
  const A* q = static_cast<const A*>(rows.q) + int64_t{row} * rows.head_dim;
  // Element features look at all 64 scores.
  constexpr int kQuarter = kKeyTile / 4;
  const int64_t quarters = kFeatured ? 4 : (end - tile.first_key + kQuarter - 1) / kQuarter;
  if (quarters == 1) {
    walk_some_keys<T, count, kQuarter>(q, rows, row, k, tile.first_key);
  } else if (quarters == 2) {
    walk_some_keys<T, count, 2 * kQuarter>(q, rows, row, k, tile.first_key);
  } else if (quarters == 3) {
    walk_some_keys<T, count, 3 * kQuarter>(q, rows, row, k, tile.first_key);
  } else {
    walk_all_keys<T, count, kPrefetch, kFeatured>(q, rows, row, k, tile.first_key, whole, stream);
  }
  if constexpr (kFeatured) {
    if (rows.features->dropout != nullptr) {
      drop<count>(scratch.dropout, rows, row, tile.first_key, scratch.scores, scratch.rounded, T::kCoarse);
    }
  }
  // V rows past the last visible key may be anything; those before it that a row does not see have p = 0.
  const int keys = static_cast<int>(end - tile.first_key < tile.valid ? end - tile.first_key : tile.valid);
  const int steps = keys / T::kDepth;
  const bool half = keys % T::kDepth != 0;
  const A* p = probabilities(scratch, static_cast<const A*>(nullptr));
  float* o = rows.segment.o + int64_t{row} * rows.v_width;
  const int64_t v_bytes = int64_t{rows.v_width} * 4;
  constexpr int kVectors = register_columns(count);
  constexpr int kColumns = kVectors * kLanes;
  int d = 0;
  for (; d + kColumns <= rows.v_width; d += kColumns) {
    multiply<T, count, kVectors, true, kPrefetch ? kColumns * 4 : 0>(
        p, kKeyTile, v + int64_t{d} * 4, v_bytes, steps, half, o + d, rows.v_width, stream);
  }
  if constexpr (kColumns > 16) {
    constexpr int kHalfColumns = kVectors / 2;
    if (d + kHalfColumns * kLanes <= rows.v_width) {
      multiply<T, count, kHalfColumns, true, kPrefetch ? kHalfColumns * kLanes * 4 : 0>(
          p, kKeyTile, v + int64_t{d} * 4, v_bytes, steps, half, o + d, rows.v_width, stream);
      d += kHalfColumns * kLanes;
    }
    if (d < rows.v_width) {
      multiply<T, count, 1, true, kPrefetch ? kLanes * 4 : 0>(p, kKeyTile, v + int64_t{d} * 4, v_bytes, steps,
                                                              half, o + d, rows.v_width, stream);
    }
  }
}

template <class T, bool kPrefetch, bool kFeatured>
void walk_rows(const ItemRows& rows, int row, int count, const char* k, const char* v, const TilePair& tile,
               const Stream& stream) {
  constexpr int kFive = kRegisterRows < 5 ? 1 : 5, kSix = kRegisterRows < 6 ? 1 : 6;
  switch (count) {
    case 1:
      return walk_block<T, 1, kPrefetch, kFeatured>(rows, row, k, v, tile, stream);
    case 2:
      return walk_block<T, 2, kPrefetch, kFeatured>(rows, row, k, v, tile, stream);
    case 3:
      return walk_block<T, 3, kPrefetch, kFeatured>(rows, row, k, v, tile, stream);
    case 4:
      return walk_block<T, 4, kPrefetch, kFeatured>(rows, row, k, v, tile, stream);
    case 5:
      return walk_block<T, kFive, kPrefetch, kFeatured>(rows, row, k, v, tile, stream);
    case 6:
      return walk_block<T, kSix, kPrefetch, kFeatured>(rows, row, k, v, tile, stream);
  }
}

// Part `part` of `parts` of the next pair, to L2.
TESSERA_VEC void prefetch_part(const TilePair& tile, int64_t pair_bytes, int part, int parts) {
  const int64_t lines = pair_bytes / 64;
  for (int64_t line = lines * part / parts; line < lines * (part + 1) / parts; ++line) {
    prefetch_far(tile.next + line * 64);
  }
}

// The first block of rows takes the tile from memory and prefetches just ahead of itself; the others find it
// in cache and have time to bring the next one near, a part each.
template <class T, bool kPrefetch, bool kFeatured>
TESSERA_VEC void walk_tile(const ItemRows& rows, int first_row, int count, const char* k, const char* v,
                           const TilePair& tile, const Stream& stream, int64_t pair_bytes) {
  int done = count < kRegisterRows ? count : kRegisterRows;
  walk_rows<T, kPrefetch, kFeatured>(rows, first_row, done, k, v, tile, stream);
  const int parts = (count - done + kRegisterRows - 1) / kRegisterRows;
  for (int part = 0; done < count; ++part) {
    if (tile.next != nullptr) prefetch_part(tile, pair_bytes, part, parts);
    const int block = count - done < kRegisterRows ? count - done : kRegisterRows;
    walk_rows<T, false, kFeatured>(rows, first_row + done, block, k, v, tile, stream);
    done += block;
  }
}

// ---- the functions of the table ----

template <class T>
int64_t query_bytes(int head_dim) {
  return static_cast<int64_t>(sizeof(typename T::A)) * head_dim;
}
// The unpacked pair follows the scores.
template <class T>
int64_t scratch_bytes(int head_dim, int v_width) {
  const bool unpacks = T::kDepth == 2 && !T::kCoarse;
  return static_cast<int64_t>(sizeof(Scratch)) + (unpacks ? int64_t{4} * kKeyTile * (head_dim + v_width) : 0);
}

template <class T>
void pack_query(const float* q, int head_dim, float scale, void* packed) {
  const F32 by = set1(scale);
  const int whole = head_dim / kLanes * kLanes;
  if constexpr (T::kCoarse) {
    uint16_t* to = static_cast<uint16_t*>(packed);
    for (int d = 0; d < whole; d += kLanes) store_bf16(to + d, load(q + d) * by);
    const int n = head_dim - whole;
    if (n > 0) store_bf16_n(to + whole, load_n(q + whole, n) * by, n);
  } else {
    float* to = static_cast<float*>(packed);
    for (int d = 0; d < whole; d += kLanes) store(to + d, load(q + d) * by);
    const int n = head_dim - whole;
    if (n > 0) store_n(to + whole, load_n(q + whole, n) * by, n);
  }
}

// Writes the pairs of a bf16 tile as f32: [step][columns][2] -> [2 * step][columns]. Of an odd `elements`,
// the last step gives only its first half.
TESSERA_VEC void unpack(const char* packed, int elements, int columns, float* wide) {
  for (int step = 0; 2 * step < elements; ++step) {
    const char* from = packed + int64_t{step} * columns * 4;
    float* to = wide + int64_t{step} * columns * 2;
    const bool both = 2 * step + 1 < elements;
    for (int n = 0; n < columns; n += kLanes) {
      const I32 pairs = load_i32(from + n * 4);
      store(to + n, low_bf16(pairs));
      if (both) store(to + columns + n, high_bf16(pairs));
    }
  }
}

template <class T, bool kFeatured>
void walk(const ItemRows& rows, int first_row, int count, const TilePair& tile) {
  const int64_t k_bytes = int64_t{4} * kKeyTile * rows.head_dim / T::kDepth;
  const int64_t v_bytes = int64_t{4} * kKeyTile * rows.v_width / T::kDepth;
  const char* k = tile.data;
  const char* v = tile.data + k_bytes;
  const uintptr_t end = reinterpret_cast<uintptr_t>(v) + static_cast<uintptr_t>(v_bytes);
  const char* next = tile.next != nullptr ? tile.next : tile.data;
  const Stream stream = {end, reinterpret_cast<uintptr_t>(next) - end};
  if constexpr (T::kDepth == 2 && !T::kCoarse) {
    if (count >= kUnpackRows) {
      float* wide_k = reinterpret_cast<float*>(static_cast<char*>(rows.scratch) + sizeof(Scratch));
      float* wide_v = wide_k + int64_t{kKeyTile} * rows.head_dim;
      unpack(k, rows.head_dim, kKeyTile, wide_k);
      unpack(v, tile.valid, rows.v_width, wide_v);
      walk_tile<MultiplyF32, false, kFeatured>(rows, first_row, count, reinterpret_cast<const char*>(wide_k),
                                               reinterpret_cast<const char*>(wide_v), tile, stream,
                                               k_bytes + v_bytes);
      return;
    }
  }
  walk_tile<T, !kFeatured, kFeatured>(rows, first_row, count, k, v, tile, stream, k_bytes + v_bytes);
}

inline void fold(const StateRows& total, const StateRows& segment, int rows, int v_width) {
  const bool in_place = total.o == segment.o;
  for (int row = 0; row < rows; ++row) {
    float* sums = segment.l + int64_t{row} * kSumLanes;
    float* o = segment.o + int64_t{row} * v_width;
    if (in_place) {
      total.m[row] = segment.m[row];
      total.l[row] = reduce_add(load(sums));
      continue;
    }
    merge_row(total.m + row, total.l + row, total.o + int64_t{row} * v_width, segment.m[row],
              reduce_add(load(sums)), o, v_width);
    segment.m[row] = kNoMaximum;
    for (int n = 0; n < kSumLanes; n += kLanes) store(sums + n, zero());
    for (int d = 0; d < v_width; d += kLanes) store(o + d, zero());
  }
}

inline void fold_part(const StateRows& total, const StateRows& part, int v_width) {
  merge_row(total.m, total.l, total.o, *part.m, *part.l, part.o, v_width);
}

inline void finish(const StateRows& total, int v_head_dim, float* out) {
  const float l = *total.l;
  const int whole = v_head_dim / kLanes * kLanes, n = v_head_dim - whole;
  if (l == 0) {
    for (int d = 0; d < whole; d += kLanes) store(out + d, zero());
    if (n > 0) store_n(out + whole, zero(), n);
    return;
  }
  // + 0 turns -0 into 0: which zero an all-masked product left depends on how many keys were skipped.
  const F32 sum = set1(l);
  for (int d = 0; d < whole; d += kLanes) store(out + d, load(total.o + d) / sum + zero());
  if (n > 0) store_n(out + whole, load(total.o + whole) / sum + zero(), n);
}

template <class T>
constexpr TileKernel make_kernel(const char* name, simd::Isa isa, DType dtype,
                                 decltype(TileKernel::walk_rows) walk_rows) {
  return {name,           isa,           dtype, query_bytes<T>, scratch_bytes<T>, pack_query<T>,
          walk<T, false>, walk<T, true>, fold,  fold_part,      finish,           walk_rows};
}

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::attention
