// The body of launch_forward(), for the files that instantiate it.
#pragma once

#include "attention/cuda/sm80/prefill/kernel.cuh"
#include "attention/cuda/sm80/prefill/launch.h"

namespace tessera::attention::cuda::sm80 {

template <DType kType, int kDim, bool kGeneral, bool kCache>
void launch_forward(const ForwardParams& params, unsigned blocks, void* stream) {
  constexpr ForwardConfig kConfig = forward_config(kType, kDim, kGeneral);
  constexpr int kShared = kConfig.shared_bytes(kPitch<kType, kDim>);
  const auto kernel = forward_kernel<kType, kDim, kGeneral, kCache>;
  // Failing here leaves the launch to fail, which is reported.
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  kernel<<<blocks, kConfig.threads(), kShared, static_cast<cudaStream_t>(stream)>>>(params);
}

}  // namespace tessera::attention::cuda::sm80
