// One element of a float type as float, and back, rounded to nearest even.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "tessera/dtype.h"

namespace tessera::attention::cuda {

__device__ inline float widened(const void* data, int64_t i, DType type) {
  if (type == DType::f32) return static_cast<const float*>(data)[i];
  if (type == DType::f16) return __half2float(static_cast<const __half*>(data)[i]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
}

__device__ inline void narrow_to(void* data, int64_t i, DType type, float value) {
  if (type == DType::f32) {
    static_cast<float*>(data)[i] = value;
  } else if (type == DType::f16) {
    static_cast<__half*>(data)[i] = __float2half_rn(value);
  } else {
    static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(value);
  }
}

}  // namespace tessera::attention::cuda
