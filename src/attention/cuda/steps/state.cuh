// The softmax state of a step row on the device and its fold. Everything is written as explicitly rounded
// operations: the same bits in every kernel, whatever the compiler would contract.
#pragma once

#include <type_traits>

#include "attention/cuda/common/ptx.cuh"

namespace tessera::attention::cuda::steps {

// dependency_wait() and dependency_launch() where there are any: below sm_90 kernels run one after the other.
__device__ __forceinline__ void wait_for_kernels_before() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  dependency_wait();
#endif
}
__device__ __forceinline__ void let_next_kernel_start() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  dependency_launch();
#endif
}

__device__ __forceinline__ float minus_infinity() {
  return __int_as_float(static_cast<int>(0xff800000u));
}

// What multiplies the running state and the next one, and the maximum of both. Of an identity (m = -inf) the
// factor is 0, and 1 of the other.
struct FoldFactors {
  float m, keep, take;
};
__device__ __forceinline__ FoldFactors fold_factors(float m, float next_m) {
  if (next_m == minus_infinity()) return {m, 1.0f, 0.0f};
  if (m == minus_infinity()) return {next_m, 0.0f, 1.0f};
  const float most = fmaxf(m, next_m);
  return {most, exp2_fast(__fsub_rn(m, most)), exp2_fast(__fsub_rn(next_m, most))};
}

// kValues columns of a row.
template <int kValues>
struct RowState {
  float m, l, o[kValues];

  __device__ __forceinline__ void clear() {
    m = minus_infinity();
    l = 0.0f;
#pragma unroll
    for (int i = 0; i < kValues; ++i) o[i] = 0.0f;
  }
  __device__ __forceinline__ void fold(const RowState& next) {
    if (next.m == minus_infinity()) return;
    if (m == minus_infinity()) {
      *this = next;
      return;
    }
    const FoldFactors f = fold_factors(m, next.m);
    m = f.m;
    l = __fmaf_rn(next.l, f.take, __fmul_rn(l, f.keep));
#pragma unroll
    for (int i = 0; i < kValues; ++i) o[i] = __fmaf_rn(next.o[i], f.take, __fmul_rn(o[i], f.keep));
  }
  __device__ __forceinline__ float inverse() const {
    return l == 0.0f ? 0.0f : __frcp_rn(l);
  }
  // Natural logarithm.
  __device__ __forceinline__ float lse() const {
    if (l == 0.0f) return minus_infinity();
    return __fmul_rn(__fadd_rn(m, log2f(l)), 0.693147180559945309f);
  }
};

// Lane i of a warp holds columns [i * kValues, (i + 1) * kValues) of a row of kDim.
template <int kDim>
inline constexpr int kLaneValues = kDim / 32;

template <int kValues>
__device__ __forceinline__ void load_values(float (&v)[kValues], const float* from) {
  if constexpr (kValues % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kValues; i += 4) {
      const float4 x = *reinterpret_cast<const float4*>(from + i);
      v[i] = x.x, v[i + 1] = x.y, v[i + 2] = x.z, v[i + 3] = x.w;
    }
  } else {
    static_assert(kValues == 2);
    const float2 x = *reinterpret_cast<const float2*>(from);
    v[0] = x.x, v[1] = x.y;
  }
}
template <int kValues>
__device__ __forceinline__ void store_values(float* to, const float (&v)[kValues]) {
  if constexpr (kValues % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kValues; i += 4) {
      *reinterpret_cast<float4*>(to + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
    }
  } else {
    *reinterpret_cast<float2*>(to) = make_float2(v[0], v[1]);
  }
}
// Rounded to T, kValues of them contiguous, at most 16 of their bytes aligned.
template <typename T, int kValues>
__device__ __forceinline__ void store_rounded(void* to, const float (&v)[kValues], float factor) {
  if constexpr (std::is_same_v<T, float>) {
    float x[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) x[i] = __fmul_rn(v[i], factor);
    store_values(static_cast<float*>(to), x);
  } else {
    uint32_t packed[kValues / 2];
#pragma unroll
    for (int i = 0; i < kValues / 2; ++i) {
      packed[i] = pack2<T>(__fmul_rn(v[2 * i], factor), __fmul_rn(v[2 * i + 1], factor));
    }
    if constexpr (kValues == 2) {
      *reinterpret_cast<uint32_t*>(to) = packed[0];
    } else if constexpr (kValues == 4) {
      *reinterpret_cast<uint2*>(to) = make_uint2(packed[0], packed[1]);
    } else {
      *reinterpret_cast<uint4*>(to) = make_uint4(packed[0], packed[1], packed[2], packed[3]);
    }
  }
}

}  // namespace tessera::attention::cuda::steps
