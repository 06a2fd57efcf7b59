// Tiles of 16-bit elements in shared memory under the 128-byte swizzle: where an element lies, and the
// descriptors by which wgmma reads them.
//
// A tile [rows][columns] is columns / 64 panels, each [rows][64] = rows x 128 bytes, one behind the other,
// its base 1024-byte aligned. In a panel the 16-byte group g of row r lies at group g ^ (r % 8) of that row.
// This is what a TMA load with SWIZZLE_128B writes.
#pragma once

#include <cstdint>

namespace tessera::attention::cuda {

// Byte offset of the 16-byte group `group` (8 elements; group / 8 is the panel) of row `row`.
template <int kRows>
__device__ __forceinline__ uint32_t swizzled_offset(int row, int group) {
  return static_cast<uint32_t>((group >> 3) * (kRows * 128) + row * 128 + (((group & 7) ^ (row & 7)) << 4));
}

// wgmma's matrix descriptors. Bits 0-13 address / 16, 16-29 leading and 32-45 stride byte offset / 16, 62-63
// = 1: 128-byte swizzle. Stride 1024: from 8 rows to the next 8.
//
// K-major (the products' k runs along the columns: Q as A, K as B). A k16 step is +2 inside a panel, +kRows *
// 8 - 6 into the next one: k_step() says how much after step 0.
__device__ __forceinline__ uint64_t descriptor_k_major(uint32_t shared) {
  return (uint64_t{0x40000040} << 32) | (1u << 16) | ((shared & 0x3ffff) >> 4);
}
template <int kRows>
__device__ constexpr uint32_t descriptor_k_step(int step) {
  return static_cast<uint32_t>((step >> 2) * (kRows * 8) + (step & 3) * 2);
}
// MN-major (k runs along the rows: V as B). A k16 step is +128: 16 rows.
template <int kRows>
__device__ __forceinline__ uint64_t descriptor_mn_major(uint32_t shared) {
  return (uint64_t{0x40000040} << 32) | (uint32_t{kRows * 8} << 16) | ((shared & 0x3ffff) >> 4);
}
__device__ constexpr uint32_t descriptor_mn_step(int step) {
  return static_cast<uint32_t>(step * 128);
}

}  // namespace tessera::attention::cuda
