// The language of device code as far as the step kernels use it, for a host compiler: included ahead of
// everything (-include). Types and their conversions are CUDA's own.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "tests/cuda/emulator/warps.h"

#undef __device__
#undef __global__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#undef __align__
#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __CUDACC__ 1

struct EmulatedThread {
  struct X {
    operator unsigned() const { return static_cast<unsigned>(emulator::thread()); }  // NOLINT
  } x;
};
inline const EmulatedThread threadIdx;
struct EmulatedBlock {
  unsigned x = 0;
};
inline EmulatedBlock blockIdx, blockDim;

template <typename A, typename B>
std::common_type_t<A, B> min(A a, B b) {
  return a < b ? a : b;
}
template <typename A, typename B>
std::common_type_t<A, B> max(A a, B b) {
  return a > b ? a : b;
}

// ---- Warps and blocks -------------------------------------------------------------------------------------

inline void emulated_mask(unsigned mask) {
  if (mask != ~0u) emulator::fail("a mask that is not the whole warp");
}
template <typename T>
T __shfl_sync(unsigned mask, T x, int from) {
  emulated_mask(mask);
  return emulator::seen<T>(emulator::show(emulator::as_shown(x))[from & 31]);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T x, int bits) {
  return __shfl_sync(mask, x, emulator::lane() ^ bits);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T x, int by) {
  return __shfl_sync(mask, x, emulator::lane() >= by ? emulator::lane() - by : emulator::lane());
}
template <typename T, typename Fold>
T emulated_reduce(unsigned mask, T x, Fold fold) {
  emulated_mask(mask);
  const emulator::Shown* all = emulator::show(emulator::as_shown(x));
  T result = emulator::seen<T>(all[0]);
  for (int i = 1; i < 32; ++i) result = fold(result, emulator::seen<T>(all[i]));
  return result;
}
template <typename T>
T __reduce_add_sync(unsigned mask, T x) {
  return emulated_reduce(mask, x, [](T a, T b) { return static_cast<T>(a + b); });
}
template <typename T>
T __reduce_min_sync(unsigned mask, T x) {
  return emulated_reduce(mask, x, [](T a, T b) { return a < b ? a : b; });
}
template <typename T>
T __reduce_max_sync(unsigned mask, T x) {
  return emulated_reduce(mask, x, [](T a, T b) { return a > b ? a : b; });
}
inline unsigned __ballot_sync(unsigned mask, bool x) {
  return emulated_reduce(mask, x ? 1u << emulator::lane() : 0u, [](unsigned a, unsigned b) { return a | b; });
}
inline bool __all_sync(unsigned mask, bool x) {
  return __ballot_sync(mask, x) == ~0u;
}
inline bool __any_sync(unsigned mask, bool x) {
  return __ballot_sync(mask, x) != 0;
}
inline void __syncwarp(unsigned = ~0u) {
  emulator::show({});
}
inline void __syncthreads() {
  emulator::barrier(0, emulator::block_threads());
}

// ---- Arithmetic, compiled without contraction -------------------------------------------------------------

template <typename T>
T __ldg(const T* from) {
  return *from;
}
template <typename T>
T __ldcg(const T* from) {
  return *from;
}
template <typename T>
void __stcg(T* to, T value) {
  *to = value;
}
inline unsigned atomicAdd(unsigned* to, unsigned value) {  // blocks run one after the other
  const unsigned before = *to;
  *to += value;
  return before;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __frcp_rn(float a) {
  return 1.0f / a;
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fmaf(a, b, c);
}
inline float __uint_as_float(unsigned x) {
  float y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
inline unsigned __float_as_uint(float x) {
  unsigned y;
  std::memcpy(&y, &x, 4);
  return y;
}
inline float __int_as_float(int x) {
  float y;
  std::memcpy(&y, &x, 4);
  return y;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((uint64_t{a} * b) >> 32);
}
inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __clz(int x) {
  return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x));
}
