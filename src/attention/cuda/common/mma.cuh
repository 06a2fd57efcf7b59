// The instructions that the sm_80 kernels are made of: mma.sync, loads and stores of shared memory,
// roundings.
//
// An element type is a DType: bf16 and f16 run as m16n8k16, f32 as m16n8k8 in tf32 (rounded to nearest on
// the way into the fragment). One step along k is 32 bytes of a row in either, so the loads are the same.
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

__device__ __forceinline__ uint4 load_shared128(uint32_t address) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(address)
               : "memory");
  return x;
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

template <DType kType>
__device__ __forceinline__ void round_fragment(uint32_t (&r)[4]) {
  if constexpr (kType == DType::f32) {
#pragma unroll
    for (int i = 0; i < 4; ++i) r[i] = round_tf32(__uint_as_float(r[i]));
  }
}

}  // namespace tessera::attention::cuda
