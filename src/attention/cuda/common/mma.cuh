// mma.sync and the products of tiles in shared memory that the sm_80 kernels are made
// of.
//
// An element type is a DType: bf16 and f16 run as m16n8k16, f32 as m16n8k8 in tf32 (rounded to nearest on
// the way into the fragment). One step along k is 32 bytes of a row in either, so the loads are the same.
// Rows in shared memory are `pitch` bytes apart, an odd multiple of 16: eight rows of a matrix then fall on
// eight different groups of banks and addresses are a base and an immediate.
#pragma once

#include <cstdint>

#include "attention/cuda/common/ptx.cuh"
#include "tessera/dtype.h"

namespace tessera::attention::cuda {

template <DType kType>
inline constexpr int kBytes = kType == DType::f32 ? 4 : 2;
// Elements of one step along k.
template <DType kType>
inline constexpr int kStep = 32 / kBytes<kType>;

__device__ __forceinline__ uint32_t load_shared32(uint32_t address) {
  uint32_t x;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
  return x;
}
__device__ __forceinline__ void store_shared32(uint32_t address, uint32_t x) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
}
__device__ __forceinline__ void store_shared64(uint32_t address, uint32_t x, uint32_t y) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(x), "r"(y) : "memory");
}

__device__ __forceinline__ uint32_t round_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// Two floats in the 16-bit type, `low` in the low half.
template <DType kType>
__device__ __forceinline__ uint32_t pack2(float low, float high) {
  static_assert(kType != DType::f32);
  uint32_t packed;
  if constexpr (kType == DType::bf16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  }
  return packed;
}
template <DType kType>
__device__ __forceinline__ float unpack_low(uint32_t packed) {
  if constexpr (kType == DType::bf16) return __uint_as_float(packed << 16);
  float x;
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(x) : "r"(packed));
  return x;
}
template <DType kType>
__device__ __forceinline__ float unpack_high(uint32_t packed) {
  if constexpr (kType == DType::bf16) return __uint_as_float(packed & 0xffff0000u);
  float x;
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h;}" : "=f"(x) : "r"(packed));
  return x;
}

// c [16][8] += a [16][kStep] b [kStep][8].
template <DType kType>
__device__ __forceinline__ void mma(float* c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kType == DType::bf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else if constexpr (kType == DType::f16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

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

template <DType kType>
__device__ __forceinline__ void round_fragment(uint32_t (&r)[4]) {
  if constexpr (kType == DType::f32) {
#pragma unroll
    for (int i = 0; i < 4; ++i) r[i] = round_tf32(__uint_as_float(r[i]));
  }
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
