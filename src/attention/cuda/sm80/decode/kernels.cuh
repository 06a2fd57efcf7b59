// Picks an instantiation; included by the kernel_DIM.cu files.
#pragma once

#include "attention/cuda/sm80/decode/kernel.cuh"
#include "attention/cuda/sm80/decode/kernels.h"

namespace tessera::attention::cuda::sm80 {

template <typename T, int kDim, bool kListed, bool kFeatures>
DecodeKernel step_kernel_of() {
  using Config = StepConfig<kDim, sizeof(T)>;
  DecodeKernel found;
  found.kernel = reinterpret_cast<const void*>(&step_kernel<T, kDim, kListed, kFeatures>);
  found.shared_bytes = static_cast<int>(sizeof(StepShared<kDim, sizeof(T)>));
  found.threads = Config::kThreads;
  found.most_rows = 8 * Config::kRowGroups;
  return found;
}

template <typename T, int kDim>
DecodeKernel step_kernel_of(bool listed, bool features) {
  if (listed) return step_kernel_of<T, kDim, true, false>();
  return features ? step_kernel_of<T, kDim, false, true>() : step_kernel_of<T, kDim, false, false>();
}

// Listed with features, too.
template <typename T, int kDim>
DecodeKernel any_step_kernel_of(bool listed, bool features) {
  if (listed && features) return step_kernel_of<T, kDim, true, true>();
  return step_kernel_of<T, kDim>(listed, features);
}

template <int kDim>
DecodeKernel step_kernel_of(DType dtype, bool listed, bool features) {
  return dtype == DType::f16 ? step_kernel_of<__half, kDim>(listed, features)
                             : step_kernel_of<__nv_bfloat16, kDim>(listed, features);
}

}  // namespace tessera::attention::cuda::sm80
