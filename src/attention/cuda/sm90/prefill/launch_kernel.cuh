#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <string>
#include <type_traits>

#include "attention/cuda/sm90/prefill/config.h"
#include "attention/cuda/sm90/prefill/kernel.cuh"

namespace tessera::attention::cuda::sm90 {

template <typename C>
Status launch_prefill(const tessera::cuda::Stream& stream, int blocks, const typename C::Params& params) {
  const std::string problem = "seqlen_q=" + std::to_string(params.seqlen_q) +
                              ", seqlen_k=" + std::to_string(params.seqlen_k) +
                              ", heads=" + std::to_string(params.total_heads) + ", head_dim up to " +
                              std::to_string(C::D) + ", v_head_dim=" + std::to_string(params.v_head_dim) +
                              ", dtype=" + (std::is_same_v<typename C::T, __half> ? "f16" : "bf16");
  // Shared memory is allowed to a kernel on one device: once for each.
  static std::atomic<uint64_t> allowed{0};
  int device = 0;
  TESSERA_RETURN_IF_ERROR(tessera::cuda::to_status(cudaGetDevice(&device), "the current device"));
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if ((allowed.load(std::memory_order_relaxed) & bit) == 0) {
    TESSERA_RETURN_IF_ERROR(tessera::cuda::to_status(
        cudaFuncSetAttribute(prefill_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, C::kSharedBytes),
        "shared memory of kernel sm90 prefill for " + problem));
    allowed.fetch_or(bit, std::memory_order_relaxed);
  }
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
#define TESSERA_PREFILL_GROUPED(Config, T)                     \
  TESSERA_PREFILL_AS(Config<T, Sight::full, Form::grouped>);   \
  TESSERA_PREFILL_AS(Config<T, Sight::causal, Form::grouped>); \
  TESSERA_PREFILL_AS(Config<T, Sight::window, Form::grouped>)
