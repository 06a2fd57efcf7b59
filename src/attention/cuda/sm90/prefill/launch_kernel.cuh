#pragma once

#include <cuda_runtime.h>

#include <string>

#include "attention/cuda/sm90/prefill/config.h"
#include "attention/cuda/sm90/prefill/kernel.cuh"

namespace tessera::attention::cuda::sm90 {

template <typename C>
Status launch_prefill(const tessera::cuda::Stream& stream, int blocks, const typename C::Params& params) {
  static const cudaError_t allowed =
      cudaFuncSetAttribute(prefill_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, C::kSharedBytes);
  const std::string problem = "seqlen_q=" + std::to_string(params.seqlen_q) +
                              ", seqlen_k=" + std::to_string(params.seqlen_k) +
                              ", heads=" + std::to_string(params.total_heads);
  if (allowed != cudaSuccess) return tessera::cuda::to_status(allowed, "kernel sm90 prefill for " + problem);
  prefill_kernel<C>
      <<<blocks, C::kThreads, C::kSharedBytes, static_cast<cudaStream_t>(stream.handle())>>>(params);
  return tessera::cuda::launched("sm90 prefill", problem);
}

}  // namespace tessera::attention::cuda::sm90

#define TESSERA_PREFILL_AS(...)                                                  \
  template Status launch_prefill<__VA_ARGS__>(const tessera::cuda::Stream&, int, \
                                              const typename __VA_ARGS__::Params&)
#define TESSERA_PREFILL(Config, T)                            \
  TESSERA_PREFILL_AS(Config<T, Sight::full, Form::dense>);    \
  TESSERA_PREFILL_AS(Config<T, Sight::causal, Form::dense>);  \
  TESSERA_PREFILL_AS(Config<T, Sight::window, Form::dense>);  \
  TESSERA_PREFILL_AS(Config<T, Sight::full, Form::ragged>);   \
  TESSERA_PREFILL_AS(Config<T, Sight::causal, Form::ragged>); \
  TESSERA_PREFILL_AS(Config<T, Sight::window, Form::ragged>)
