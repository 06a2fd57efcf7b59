// Attention on a device: what a Context of a device points to, and the public functions hand over to. The
// library tessera::cuda implements it, so that this layer builds and runs without CUDA.
#pragma once

#include <string>

#include "core/context.h"
#include "tessera/attention.h"
#include "tessera/merge.h"
#include "tessera/paged.h"
#include "tessera/rope.h"

namespace tessera::attention {

// The same contracts as the functions of the same names, over device memory (tessera/cuda.h).
class DeviceKernels {
 public:
  virtual ~DeviceKernels() = default;
  virtual Status forward(const AttentionProblem& problem, const ForwardTensors& tensors) = 0;
  virtual Status backward(const AttentionProblem& problem, const BackwardTensors& tensors) = 0;
  virtual Status attend_cache(const AttentionProblem& problem, const CacheView& cache,
                              const CacheAppend& append, const CacheTensors& tensors) = 0;
  virtual Status rope(const RopeProblem& problem, const Strided<const void*>& x, const Strided<void*>& out,
                      bool backward) = 0;
  virtual Status merge_states(const MergeProblem& problem, std::span<const AttentionPart> parts,
                              const Strided<void*>& o, const Strided<float*>& lse) = 0;
  virtual std::string explain(const AttentionProblem& problem, Pass pass) const = 0;
};

// For functions that have no kernels for devices: ok on the CPU, else unsupported, naming the function.
Status only_on_cpu(const Context& context, const char* function);

}  // namespace tessera::attention
