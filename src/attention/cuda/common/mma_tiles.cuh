// Fragments and products of tiles in shared memory, out of the instructions of mma.cuh.
//
// Rows in shared memory are `pitch` bytes apart, an odd multiple of 16: eight rows of a matrix then fall on
// eight different groups of banks and addresses are a base and an immediate.
#pragma once

#include <cstdint>

#include "attention/cuda/common/mma.cuh"
#include "attention/cuda/common/ptx.cuh"

namespace tessera::attention::cuda {

// ---- Addresses of a lane's part in a matrix at (row 0, byte 0) -------------------------------------------

// For operand A stored [m][k], and for B stored [k][n] (transposed load, 16-bit).
template <int kPitch>
__device__ __forceinline__ uint32_t lane_rows(uint32_t base) {
  const int lane = threadIdx.x & 31;
  return base + (lane & 15) * kPitch + (lane >> 4) * 16;
}
// For B stored [n][k], and for A stored [k][m] (transposed load, 16-bit).
template <int kPitch>
__device__ __forceinline__ uint32_t lane_columns(uint32_t base) {
  const int lane = threadIdx.x & 31;
  return base + ((lane & 7) + (lane >> 4) * 8) * kPitch + (lane >> 3 & 1) * 16;
}
// For f32 stored [k][m or n], read element by element: row lane % 4, column lane / 4.
template <int kPitch>
__device__ __forceinline__ uint32_t lane_elements(uint32_t base) {
  const int lane = threadIdx.x & 31;
  return base + (lane & 3) * kPitch + (lane >> 2) * 4;
}

// Where operands lie: the same tile serves as [m][k] in one product and as [k][m] in another.
enum class Stored { k_last, k_first };

template <DType kType, Stored kStored, int kPitch>
__device__ __forceinline__ uint32_t lane_a(uint32_t base) {
  if constexpr (kStored == Stored::k_last)
    return lane_rows<kPitch>(base);
  else if constexpr (kType == DType::f32)
    return lane_elements<kPitch>(base);
  else
    return lane_columns<kPitch>(base);
}
template <DType kType, Stored kStored, int kPitch>
__device__ __forceinline__ uint32_t lane_b(uint32_t base) {
  if constexpr (kStored == Stored::k_last)
    return lane_columns<kPitch>(base);
  else if constexpr (kType == DType::f32)
    return lane_elements<kPitch>(base);
  else
    return lane_rows<kPitch>(base);
}

// A fragment [16 m][kStep] at m 16 * m, step `step`. address: lane_a's.
template <DType kType, Stored kStored, int kPitch>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], uint32_t address, int m, int step) {
  if constexpr (kStored == Stored::k_last) {
    ldmatrix_x4(a, address + m * 16 * kPitch + step * 32);
  } else if constexpr (kType == DType::f32) {
    const uint32_t at = address + step * 8 * kPitch + m * 64;
    a[0] = load_shared32(at);
    a[1] = load_shared32(at + 32);
    a[2] = load_shared32(at + 4 * kPitch);
    a[3] = load_shared32(at + 4 * kPitch + 32);
  } else {
    ldmatrix_x4_transposed(a, address + step * 16 * kPitch + m * 32);
  }
  round_fragment<kType>(a);
}
// Two B fragments [kStep][8] at n 16 * n: {b0, b1} of each.
template <DType kType, Stored kStored, int kPitch>
__device__ __forceinline__ void load_b(uint32_t (&b)[4], uint32_t address, int n, int step) {
  if constexpr (kStored == Stored::k_last) {
    ldmatrix_x4(b, address + n * 16 * kPitch + step * 32);
  } else if constexpr (kType == DType::f32) {
    const uint32_t at = address + step * 8 * kPitch + n * 64;
    b[0] = load_shared32(at);
    b[1] = load_shared32(at + 4 * kPitch);
    b[2] = load_shared32(at + 32);
    b[3] = load_shared32(at + 4 * kPitch + 32);
  } else {
    ldmatrix_x4_transposed(b, address + step * 16 * kPitch + n * 32);
  }
  round_fragment<kType>(b);
}

// c [16 kM][16 kN] += a b over kSteps steps along k; c[m][4 * n8 + i]. Addresses are lane_a's and lane_b's.
template <DType kType, int kM, int kN, int kSteps, Stored kStoredA, int kPitchA, Stored kStoredB, int kPitchB>
__device__ __forceinline__ void multiply(float (&c)[kM][8 * kN], uint32_t a_address, uint32_t b_address) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    uint32_t a[kM][4], b[kN][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) load_a<kType, kStoredA, kPitchA>(a[m], a_address, m, step);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      load_b<kType, kStoredB, kPitchB>(b[n], b_address, n, step);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        mma<kType>(&c[m][8 * n], a[m], b[n][0], b[n][1]);
        mma<kType>(&c[m][8 * n + 4], a[m], b[n][2], b[n][3]);
      }
    }
  }
}

// The A fragment of step `step` out of accumulators p [16][...]. For f32 the order along k is that of the
// accumulators (0 2 4 6 1 3 5 7 inside eight): load_b_permuted reads the other operand in the same order.
template <DType kType, int N>
__device__ __forceinline__ void fragment_of(uint32_t (&a)[4], const float (&p)[N], int step) {
  if constexpr (kType == DType::f32) {
    a[0] = round_tf32(p[4 * step]);
    a[1] = round_tf32(p[4 * step + 2]);
    a[2] = round_tf32(p[4 * step + 1]);
    a[3] = round_tf32(p[4 * step + 3]);
  } else {
    a[0] = pack2<kType>(p[8 * step], p[8 * step + 1]);
    a[1] = pack2<kType>(p[8 * step + 2], p[8 * step + 3]);
    a[2] = pack2<kType>(p[8 * step + 4], p[8 * step + 5]);
    a[3] = pack2<kType>(p[8 * step + 6], p[8 * step + 7]);
  }
}
template <DType kType, int kPitch>
__device__ __forceinline__ uint32_t lane_b_permuted(uint32_t base) {
  if constexpr (kType != DType::f32) return lane_rows<kPitch>(base);
  const int lane = threadIdx.x & 31;
  return base + 2 * (lane & 3) * kPitch + (lane >> 2) * 4;
}
template <DType kType, int kPitch>
__device__ __forceinline__ void load_b_permuted(uint32_t (&b)[4], uint32_t address, int n, int step) {
  if constexpr (kType != DType::f32) {
    ldmatrix_x4_transposed(b, address + step * 16 * kPitch + n * 32);
    return;
  }
  const uint32_t at = address + step * 8 * kPitch + n * 64;
  b[0] = load_shared32(at);
  b[1] = load_shared32(at + kPitch);
  b[2] = load_shared32(at + 32);
  b[3] = load_shared32(at + kPitch + 32);
  round_fragment<kType>(b);
}

}  // namespace tessera::attention::cuda
