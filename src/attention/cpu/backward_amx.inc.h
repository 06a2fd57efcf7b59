// The backward kernel on matrix tiles (AMX): one tile of 64 keys against a block of 128 query rows. bf16,
// plain shapes. p and ds are rounded to bf16 before they are multiplied, as for AVX512_BF16.
//
// Scores and probabilities are held transposed, keys as rows. So three of the five products read what the
// elementwise part writes as it comes out of the registers, with no transposition of bf16 between:
//   s^T  = k * q^T      C [keys][rows]  A k by rows        B q in pairs along head_dim
//   dp^T = v * dout^T   C [keys][rows]  A v by rows        B dout in pairs along v_head_dim
//   dv  += p^T * dout   C [keys][v]     A p^T by rows      B dout in pairs of rows
//   dk  += ds^T * q     C [keys][d]     A ds^T by rows     B q in pairs of rows
//   dq^T += k^T * ds^T  C [d][rows]     A k^T by rows      B ds^T in pairs of keys
// dq stays transposed until it is written, once a block.
//
// Each product goes in blocks of 2 x 2 tiles: four sums, four operands, so that each operand loaded is used
// twice. The unit of what is skipped under a mask is 32 rows x 32 keys; what is skipped would add zeros.
#pragma once

#include "attention/cpu/amx_tiles.inc.h"
#include "attention/cpu/backward_kernel.inc.h"

namespace tessera::attention {
inline namespace TESSERA_SIMD_NAMESPACE {

inline constexpr int kAmxRows = 128;         // of a block
inline constexpr int kStep = kTileElements;  // keys or rows of a unit

// Takes pieces of 64-byte aligned memory one after the other; counts them when there is none.
class Pieces {
 public:
  explicit Pieces(void* memory) : memory_(static_cast<char*>(memory)) {}
  template <typename T>
  T* take(int64_t count) {
    T* piece = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

struct AmxTile {
  uint16_t *k, *v;      // [keys][whole_steps]
  uint16_t* k_columns;  // [k_width][keys]
  float *dk, *dv;       // [keys][k_width], [keys][v_width]
  int64_t bytes;

  AmxTile(const BackwardShape& shape, void* memory) {
    Pieces pieces(memory);
    k = pieces.take<uint16_t>(int64_t{kKeyTile} * whole_steps(shape.head_dim));
    v = pieces.take<uint16_t>(int64_t{kKeyTile} * whole_steps(shape.v_head_dim));
    k_columns = pieces.take<uint16_t>(int64_t{kKeyTile} * shape.k_width);
    dk = pieces.take<float>(int64_t{kKeyTile} * shape.k_width);
    dv = pieces.take<float>(int64_t{kKeyTile} * shape.v_width);
    bytes = pieces.used();
  }
};
TESSERA_VEC AmxTile tile_of(const BackwardShape& shape, const BackwardTile& tile) {
  const int64_t bytes = AmxTile(shape, nullptr).bytes;
  return AmxTile(shape, static_cast<char*>(tile.segment) + tile.index * bytes);
}

struct AmxBlockMemory {
  uint32_t *q, *dout;              // [chunk of 64 rows][whole_steps / 2][64]: pairs along the dim
  uint32_t *q_steps, *dout_steps;  // [rows / 2][width]: pairs of rows
  uint16_t *p, *ds;                // [keys][rows]
  uint32_t* ds_steps;              // [keys / 2][rows]: pairs of keys
  float* dq;                       // [k_width][rows]
  float *s, *dp;                   // [32 keys][32 rows] of one unit
  uint32_t* rows;                  // [64][whole_steps / 2]: rows on their way in
  int64_t bytes;

  AmxBlockMemory(const BackwardShape& shape, void* memory) {
    const int k_steps = whole_steps(shape.head_dim), v_steps = whole_steps(shape.v_head_dim);
    Pieces pieces(memory);
    q = pieces.take<uint32_t>(int64_t{kAmxRows} * k_steps / 2);
    dout = pieces.take<uint32_t>(int64_t{kAmxRows} * v_steps / 2);
    q_steps = pieces.take<uint32_t>(int64_t{kAmxRows} / 2 * shape.k_width);
    dout_steps = pieces.take<uint32_t>(int64_t{kAmxRows} / 2 * shape.v_width);
    p = pieces.take<uint16_t>(int64_t{kAmxRows} * kKeyTile);
    ds = pieces.take<uint16_t>(int64_t{kAmxRows} * kKeyTile);
    ds_steps = pieces.take<uint32_t>(int64_t{kAmxRows} * kKeyTile / 2);
    dq = pieces.take<float>(int64_t{kAmxRows} * shape.k_width);
    s = pieces.take<float>(kStep * kStep);
    dp = pieces.take<float>(kStep * kStep);
    rows = pieces.take<uint32_t>(int64_t{64} * (k_steps > v_steps ? k_steps : v_steps) / 2);
    bytes = pieces.used();
  }
};

// ---- products of 2 x 2 tiles: t0 t1 / t2 t3 are sums, t4 t5 of A, t6 t7 of B ----

struct Operand {
  const char* at;
  int64_t stride;  // bytes between rows
  int64_t second;  // bytes to the second tile
};

template <int a_tiles, int b_tiles>
TESSERA_VEC void multiply_square(const Operand& a, const Operand& b, int64_t a_offset, int64_t b_offset) {
  tile_load<6>(b.at + b_offset, b.stride);
  tile_load<4>(a.at + a_offset, a.stride);
  tile_multiply_add<0, 4, 6>();
  if constexpr (b_tiles > 1) {
    tile_load<7>(b.at + b_offset + b.second, b.stride);
    tile_multiply_add<1, 4, 7>();
  }
  if constexpr (a_tiles > 1) {
    tile_load<5>(a.at + a_offset + a.second, a.stride);
    tile_multiply_add<2, 5, 6>();
    if constexpr (b_tiles > 1) tile_multiply_add<3, 5, 7>();
  }
}
template <int a_tiles, int b_tiles>
TESSERA_VEC void zero_square() {
  tile_zero<0>();
  if constexpr (b_tiles > 1) tile_zero<1>();
  if constexpr (a_tiles > 1) tile_zero<2>();
  if constexpr (a_tiles > 1 && b_tiles > 1) tile_zero<3>();
}
template <int a_tiles, int b_tiles>
TESSERA_VEC void load_square(const float* c, int64_t width) {
  tile_load<0>(c, width * 4);
  if constexpr (b_tiles > 1) tile_load<1>(c + 16, width * 4);
  if constexpr (a_tiles > 1) tile_load<2>(c + 16 * width, width * 4);
  if constexpr (a_tiles > 1 && b_tiles > 1) tile_load<3>(c + 16 * width + 16, width * 4);
}
template <int a_tiles, int b_tiles>
TESSERA_VEC void store_square(float* c, int64_t width) {
  tile_store<0>(c, width * 4);
  if constexpr (b_tiles > 1) tile_store<1>(c + 16, width * 4);
  if constexpr (a_tiles > 1) tile_store<2>(c + 16 * width, width * 4);
  if constexpr (a_tiles > 1 && b_tiles > 1) tile_store<3>(c + 16 * width + 16, width * 4);
}

// ---- the steps of a walk ----

// c [32 keys][32 rows] = a * b over `dim` elements.
TESSERA_VEC void score_product(const uint16_t* a, const uint32_t* b, int dim, float* c) {
  const int64_t a_row = int64_t{whole_steps(dim)} * 2;
  const Operand left{reinterpret_cast<const char*>(a), a_row, kTileSide * a_row};
  const Operand right{reinterpret_cast<const char*>(b), 256, 64};
  zero_square<2, 2>();
  for (int step = 0; step < whole_steps(dim) / kStep; ++step) {
    multiply_square<2, 2>(left, right, int64_t{step} * 64, int64_t{step} * 16 * 256);
  }
  store_square<2, 2>(c, kStep);
}

// What a lane's row adds to its scores and gradients.
struct Lanes {
  F32 lse, delta;
  I32 first, end;
  TESSERA_VEC Lanes of(const BackwardRows& rows, int row, int64_t first_key) {
    const I32 shift = set1_i32(static_cast<int32_t>(first_key));
    return {zero() - load(rows.lse + row), load(rows.delta + row), load_i32(rows.first_key + row) - shift,
            load_i32(rows.end_key + row) - shift};
  }
};

template <bool kMasked>
TESSERA_VEC void gradient(F32 scale, const Lanes& lanes, int key, const float* s, const float* dp, F32* p,
                          F32* ds) {
  *p = exp2_coarse(fma(load(s), scale, lanes.lse));
  *ds = *p * (load(dp) - lanes.delta);
  if constexpr (kMasked) {
    const I32 at = set1_i32(key);
    const simd::Mask sees = and_(le(lanes.first, at), gt(lanes.end, at));
    *p = select(sees, *p, zero());
    *ds = select(sees, *ds, zero());
  }
}

// p and ds of a unit: rows [row, row + 32), keys [key, key + 32) of the tile.
template <bool kMasked>
TESSERA_VEC void unit_gradients(const BackwardShape& shape, const BackwardRows& rows, int row,
                                int64_t first_key, int key, const AmxBlockMemory& block) {
  const F32 scale = set1(shape.scale * kLog2e);
  const Lanes low = Lanes::of(rows, row, first_key), high = Lanes::of(rows, row + 16, first_key);
  for (int i = 0; i < kStep; i += 2) {
    I32 ds_rows[2];
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const int at = i + j;
      const float *s = block.s + at * kStep, *dp = block.dp + at * kStep;
      F32 p0, p1, ds0, ds1;
      gradient<kMasked>(scale, low, key + at, s, dp, &p0, &ds0);
      gradient<kMasked>(scale, high, key + at, s + 16, dp + 16, &p1, &ds1);
      ds_rows[j] = narrow_bf16_pair(ds0, ds1);
      store_bf16_pair(block.p + (key + at) * kAmxRows + row, p0, p1);
      store_i32(block.ds + (key + at) * kAmxRows + row, ds_rows[j]);
    }
    I32 pairs[2];
    interleave_halves(ds_rows[0], ds_rows[1], pairs);
    uint32_t* to = block.ds_steps + (key + i) / 2 * kAmxRows + row;
    store_i32(to, pairs[0]);
    store_i32(to + kLanes, pairs[1]);
  }
}

// c [32 keys][width] += a^T-held rows [seen) times b; a [keys][rows], b in pairs of rows.
TESSERA_VEC void reduce_unit(const uint16_t* a, const uint32_t* b, Range seen, float* c, int width) {
  const Operand left{reinterpret_cast<const char*>(a), kAmxRows * 2, kTileSide * kAmxRows * 2};
  int d = 0;
  for (; d + 32 <= width; d += 32) {
    const Operand right{reinterpret_cast<const char*>(b + d), int64_t{width} * 4, 64};
    load_square<2, 2>(c + d, width);
    for (int row = seen.begin; row < seen.end; row += kStep) {
      multiply_square<2, 2>(left, right, int64_t{row} * 2, int64_t{row} / 2 * width * 4);
    }
    store_square<2, 2>(c + d, width);
  }
  if (d < width) {
    const Operand right{reinterpret_cast<const char*>(b + d), int64_t{width} * 4, 64};
    load_square<2, 1>(c + d, width);
    for (int row = seen.begin; row < seen.end; row += kStep) {
      multiply_square<2, 1>(left, right, int64_t{row} * 2, int64_t{row} / 2 * width * 4);
    }
    store_square<2, 1>(c + d, width);
  }
}

// dq^T of rows [row, row + 32) += k^T ds^T over the halves of the keys that they see.
template <int d_tiles>
TESSERA_VEC void query_unit(const AmxTile& keys, const AmxBlockMemory& block, int row, const bool (&sees)[2],
                            int d) {
  const Operand left{reinterpret_cast<const char*>(keys.k_columns + d * kKeyTile), kKeyTile * 2,
                     kTileSide * kKeyTile * 2};
  const Operand right{reinterpret_cast<const char*>(block.ds_steps + row), kAmxRows * 4, 64};
  float* c = block.dq + d * kAmxRows + row;
  load_square<d_tiles, 2>(c, kAmxRows);
  for (int half = 0; half < 2; ++half) {
    if (sees[half]) multiply_square<d_tiles, 2>(left, right, half * 64, int64_t{half} * 16 * kAmxRows * 4);
  }
  store_square<d_tiles, 2>(c, kAmxRows);
}

inline void walk_amx(const BackwardShape& shape, const BackwardRows& rows, const BackwardTile& tile) {
  Range seen[2];
  for (int half = 0; half < 2; ++half) {
    const int64_t first = tile.first_key + half * kStep;
    const Range range = rows_that_see(rows, first, first + kStep);
    seen[half] =
        range.begin >= range.end ? Range{0, 0} : Range{range.begin / kStep * kStep, whole_steps(range.end)};
  }
  const AmxTile keys = tile_of(shape, tile);
  const AmxBlockMemory block(shape, rows.memory);
  const int k_steps = whole_steps(shape.head_dim), v_steps = whole_steps(shape.v_head_dim);
  for (int half = 0; half < 2; ++half) {
    const int key = half * kStep;
    for (int row = seen[half].begin; row < seen[half].end; row += kStep) {
      const int64_t chunk = row / 64, column = row % 64;
      score_product(keys.k + key * k_steps, block.q + chunk * 32 * k_steps + column, shape.head_dim, block.s);
      score_product(keys.v + key * v_steps, block.dout + chunk * 32 * v_steps + column, shape.v_head_dim,
                    block.dp);
      const int last = row + kStep < rows.rows ? row + kStep - 1 : rows.rows - 1;
      const bool whole = last - row == kStep - 1 && rows.first_key[last] <= tile.first_key + key &&
                         rows.end_key[row] >= tile.first_key + key + kStep;
      if (whole) {
        unit_gradients<false>(shape, rows, row, tile.first_key, key, block);
      } else {
        unit_gradients<true>(shape, rows, row, tile.first_key, key, block);
      }
    }
    if (seen[half].begin == seen[half].end) continue;
    reduce_unit(block.p + key * kAmxRows, block.dout_steps, seen[half], keys.dv + key * shape.v_width,
                shape.v_width);
    reduce_unit(block.ds + key * kAmxRows, block.q_steps, seen[half], keys.dk + key * shape.k_width,
                shape.k_width);
  }
  for (int row = 0; row < kAmxRows; row += kStep) {
    const bool sees[2] = {seen[0].begin <= row && row < seen[0].end,
                          seen[1].begin <= row && row < seen[1].end};
    if (!sees[0] && !sees[1]) continue;
    int d = 0;
    for (; d + 32 <= shape.k_width; d += 32) query_unit<2>(keys, block, row, sees, d);
    if (d < shape.k_width) query_unit<1>(keys, block, row, sees, d);
  }
}

// ---- the rest of the table ----

inline int64_t segment_bytes_amx(const BackwardShape& shape) {
  return AmxTile(shape, nullptr).bytes * (kSegment / kKeyTile);
}
inline int64_t block_bytes_amx(const BackwardShape& shape) {
  return AmxBlockMemory(shape, nullptr).bytes;
}

inline void pack_tile_amx(const BackwardShape& shape, const BackwardTile& tile, const void* const* k,
                          const void* const* v) {
  const AmxTile keys = tile_of(shape, tile);
  const int k_steps = whole_steps(shape.head_dim), v_steps = whole_steps(shape.v_head_dim);
  for (int key = 0; key < kKeyTile; ++key) {
    if (key + kRowsAhead < kKeyTile) {
      fetch_row(k[key + kRowsAhead], shape.dtype, shape.head_dim);
      fetch_row(v[key + kRowsAhead], shape.dtype, shape.v_head_dim);
    }
    copy_row(k[key], shape.head_dim, k_steps, reinterpret_cast<uint32_t*>(keys.k + key * k_steps));
    copy_row(v[key], shape.v_head_dim, v_steps, reinterpret_cast<uint32_t*>(keys.v + key * v_steps));
  }
  // Pairs along head_dim by keys, on the way where dk will be, then their halves apart.
  uint32_t* pairs = reinterpret_cast<uint32_t*>(keys.dk);
  transpose_block(reinterpret_cast<const uint32_t*>(keys.k), k_steps / 2, k_steps / 2, kKeyTile, pairs);
  for (int d = 0; d < shape.k_width; d += 2) {
    for (int key = 0; key < kKeyTile; key += kLanes) {
      const __m512i both = _mm512_loadu_si512(pairs + d / 2 * kKeyTile + key);
      __m256i* to = reinterpret_cast<__m256i*>(keys.k_columns + d * kKeyTile + key);
      _mm256_store_si256(to, _mm512_cvtepi32_epi16(both));
      _mm256_store_si256(to + kKeyTile / 16, _mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16)));
    }
  }
  clear(keys.dk, words(kKeyTile, shape.k_width));
  clear(keys.dv, words(kKeyTile, shape.v_width));
}

// Rows of one matrix into both of its forms. `padded`: rows of the block that are multiplied.
TESSERA_VEC void pack_matrix(const BackwardShape& shape, const void* const* from, int count, int padded,
                             int dim, int width, uint32_t* staging, uint32_t* pairs, uint32_t* steps) {
  const int words_each = whole_steps(dim) / 2;
  for (int chunk = 0; chunk < padded; chunk += 64) {
    const int end = padded - chunk < 64 ? padded - chunk : 64;
    for (int i = 0; i < end; ++i) {
      const int row = chunk + i;
      if (row + kRowsAhead < count) fetch_row(from[row + kRowsAhead], shape.dtype, dim);
      copy_row(row < count ? from[row] : nullptr, dim, 2 * words_each, staging + i * words_each);
      if (i % 2 == 0) continue;
      interleave(staging + (i - 1) * words_each, staging + i * words_each, width,
                 steps + int64_t{row} / 2 * width);
    }
    transpose_block(staging, words_each, words_each, end, pairs + chunk / 64 * words_each * 64);
  }
}

inline void pack_rows_amx(const BackwardShape& shape, const BackwardRows& rows, const void* const* q,
                          const void* const* dout, const float* dq) {
  const AmxBlockMemory block(shape, rows.memory);
  const int padded = whole_steps(rows.rows);
  pack_matrix(shape, q, rows.rows, padded, shape.head_dim, shape.k_width, block.rows, block.q, block.q_steps);
  pack_matrix(shape, dout, rows.rows, padded, shape.v_head_dim, shape.v_width, block.rows, block.dout,
              block.dout_steps);
  if (dq == nullptr) return clear(block.dq, words(kAmxRows, shape.k_width));
  for (int64_t i = 0; i < words(kAmxRows, shape.k_width); i += kLanes) store(block.dq + i, load(dq + i));
}

inline void sum_dq_amx(const BackwardShape& shape, const BackwardRows& rows, bool first, float* sum) {
  add_sums(AmxBlockMemory(shape, rows.memory).dq, words(kAmxRows, shape.k_width), first, sum);
}

inline void write_dq_amx(const BackwardShape& shape, int rows, const float* sum, void* const* out) {
  alignas(64) uint32_t turned[kTileSide * kKeyTile];  // [rows][64 of head_dim]
  for (int row = 0; row < rows; row += kTileSide) {
    const int count = rows - row < kTileSide ? rows - row : kTileSide;
    for (int d = 0; d < shape.head_dim; d += kKeyTile) {
      const int width = shape.k_width - d < kKeyTile ? shape.k_width - d : kKeyTile;
      pack::transpose(reinterpret_cast<const char*>(sum + int64_t{d} * kAmxRows + row), kAmxRows * 4,
                      kTileSide, width, nullptr, reinterpret_cast<char*>(turned));
      const int n = shape.head_dim - d < kKeyTile ? shape.head_dim - d : kKeyTile;
      for (int i = 0; i < count; ++i) {
        store_row(reinterpret_cast<const float*>(turned) + i * kKeyTile, set1(shape.scale), shape.dtype, n,
                  static_cast<uint16_t*>(out[row + i]) + d);
      }
    }
  }
}

inline void write_tile_amx(const BackwardShape& shape, const BackwardTile& tile, void* const* dk,
                           void* const* dv) {
  const AmxTile keys = tile_of(shape, tile);
  store_tile(shape, keys.dk, keys.dv, dk, dv);
}

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::attention
