// Intel AMX: eight tile registers of 16 rows x 64 bytes, and the product of two of them,
//   C [16][16] f32 += A [16][32] bf16 * B [16][16][2] bf16 (B: pairs along the inner dimension, as K and V
//   tiles, packed q and packed p lie in memory).
// Include it in *_amx.cc files only. With TESSERA_EMULATED_TILES the same in AVX512_BF16, for tests on
// machines without AMX.
//
// The compiler knows no tile register: which code holds what in which of t0 .. t7 is written at that code.
// "memory" in each load keeps stores of its operands before it.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd/vec.h"

namespace tessera::attention {
inline namespace TESSERA_SIMD_NAMESPACE {

inline constexpr int kTileSide = 16;      // rows of a tile; columns of f32
inline constexpr int kTileElements = 32;  // bf16 of a tile's row

// Rounded up to whole rows of a tile.
constexpr int whole_steps(int elements) {
  return (elements + kTileElements - 1) / kTileElements * kTileElements;
}

#if !defined(TESSERA_EMULATED_TILES)

// All eight as 16 x 64. Zeroes them.
inline void enter_tiles() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  asm volatile("ldtilecfg %0" : : "m"(config));
}
// Back to the initial state, which a switch of threads need not save.
inline void leave_tiles() {
  asm volatile("tilerelease" : : : "memory");
}

template <int t>
TESSERA_VEC void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(t));
}
// Rows `stride` bytes apart.
template <int t>
TESSERA_VEC void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(t) : "memory");
}
template <int t>
TESSERA_VEC void tile_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(t) : "memory");
}
template <int c, int a, int b>
TESSERA_VEC void tile_multiply_add() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
}

#else

struct EmulatedTile {
  alignas(64) char row[kTileSide][64];
};
inline thread_local EmulatedTile emulated_tiles[8];

inline void enter_tiles() {
  std::memset(emulated_tiles, 0, sizeof emulated_tiles);
}
inline void leave_tiles() {
  std::memset(emulated_tiles, 0, sizeof emulated_tiles);
}
template <int t>
TESSERA_VEC void tile_zero() {
  std::memset(emulated_tiles + t, 0, sizeof(EmulatedTile));
}
template <int t>
TESSERA_VEC void tile_load(const void* from, int64_t stride) {
  for (int row = 0; row < kTileSide; ++row) {
    std::memcpy(emulated_tiles[t].row[row], static_cast<const char*>(from) + row * stride, 64);
  }
}
template <int t>
TESSERA_VEC void tile_store(void* to, int64_t stride) {
  for (int row = 0; row < kTileSide; ++row) {
    std::memcpy(static_cast<char*>(to) + row * stride, emulated_tiles[t].row[row], 64);
  }
}
template <int c, int a, int b>
inline void tile_multiply_add() {
  for (int row = 0; row < kTileSide; ++row) {
    float* sums = reinterpret_cast<float*>(emulated_tiles[c].row[row]);
    simd::F32 acc = simd::load(sums);
    for (int pair = 0; pair < kTileSide; ++pair) {
      int32_t both;
      std::memcpy(&both, emulated_tiles[a].row[row] + pair * 4, 4);
      acc = simd::dot2_bf16(acc, simd::set1_i32(both), simd::load_i32(emulated_tiles[b].row[pair]));
    }
    simd::store(sums, acc);
  }
}

#endif

// t0 .. t3 from or to `count` tiles side by side, `stride` bytes between rows.
template <int count>
TESSERA_VEC void load_sums(const float* from, int64_t stride) {
  tile_load<0>(from, stride);
  if constexpr (count > 1) tile_load<1>(from + 16, stride);
  if constexpr (count > 2) tile_load<2>(from + 32, stride);
  if constexpr (count > 3) tile_load<3>(from + 48, stride);
}
template <int count>
TESSERA_VEC void zero_sums() {
  tile_zero<0>();
  if constexpr (count > 1) tile_zero<1>();
  if constexpr (count > 2) tile_zero<2>();
  if constexpr (count > 3) tile_zero<3>();
}
template <int count>
TESSERA_VEC void store_sums(float* to, int64_t stride) {
  tile_store<0>(to, stride);
  if constexpr (count > 1) tile_store<1>(to + 16, stride);
  if constexpr (count > 2) tile_store<2>(to + 32, stride);
  if constexpr (count > 3) tile_store<3>(to + 48, stride);
}

// t0 .. t<count - 1> += A * (B side by side). Uses t4 and, in turns, t6 and t7, so that a load need not wait
// for the product before it.
template <int count>
TESSERA_VEC void multiply_row(const void* a, int64_t a_stride, const char* b, int64_t b_stride) {
  tile_load<4>(a, a_stride);
  tile_load<6>(b, b_stride);
  tile_multiply_add<0, 4, 6>();
  if constexpr (count > 1) {
    tile_load<7>(b + 64, b_stride);
    tile_multiply_add<1, 4, 7>();
  }
  if constexpr (count > 2) {
    tile_load<6>(b + 128, b_stride);
    tile_multiply_add<2, 4, 6>();
  }
  if constexpr (count > 3) {
    tile_load<7>(b + 192, b_stride);
    tile_multiply_add<3, 4, 7>();
  }
}

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::attention
