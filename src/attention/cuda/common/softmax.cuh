// The online softmax of one fragment row, in units of log2: what every CUDA kernel shares. A row of a 16-row
// slab is spread over the four lanes of a quad (philox.cuh says how).
#pragma once

#include <cstdint>

#include "attention/cuda/common/features.h"
#include "attention/cuda/common/ptx.cuh"

namespace tessera::attention::cuda {

inline constexpr float kMinusInfinity = -__builtin_huge_valf();

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// A row's maximum that can be subtracted: exp2(-inf - 0) is 0 where -inf - -inf would be NaN.
__device__ __forceinline__ float subtractable(float maximum) {
  return maximum == kMinusInfinity ? 0.0f : maximum;
}

// Natural LSE of a row with maximum `maximum` (log2 units) and sum `sum`; -inf where nothing was seen. The
// row's maximum alone tells: a sum may not be 0, its largest term is 1.
__device__ __forceinline__ float natural_lse(float maximum, float sum) {
  return maximum == kMinusInfinity ? kMinusInfinity : maximum * kLn2 + logf(sum);
}

}  // namespace tessera::attention::cuda
