// Attention on a device: what a Context of a device points to, and the public functions hand over to. The
// library tessera::cuda implements it, so that this layer builds and runs without CUDA.
#pragma once

#include <memory>
#include <string>

#include "core/context.h"
#include "tessera/attention.h"
#include "tessera/merge.h"
#include "tessera/paged.h"
#include "tessera/rope.h"

namespace tessera::attention {

// A CacheTreePlan's half that a device knows. Immutable.
class DeviceTreePlan {
 public:
  virtual ~DeviceTreePlan() = default;
  struct Limits {
    int64_t least, most;
  };
  virtual Limits limits(int64_t sequence) const = 0;  // of keys, those of the call included
  virtual CacheReads reads() const = 0;
  virtual std::string explain() const = 0;
};

// The same contracts as the functions of the same names, over device memory (tessera/cuda.h).
class DeviceKernels {
 public:
  virtual ~DeviceKernels() = default;
  virtual Status forward(const AttentionProblem& problem, const ForwardTensors& tensors) = 0;
  virtual Status backward(const AttentionProblem& problem, const BackwardTensors& tensors) = 0;
  virtual Status attend_cache(const AttentionProblem& problem, const CacheView& cache,
                              const CacheAppend& append, const CacheTensors& tensors) = 0;
  // ok for null and for what the host may read; else invalid_argument naming `field`.
  virtual Status check_host_memory(const char* field, const void* pointer) const = 0;
  // CacheTreePlan's create() and attend(). REQUIRES of the first: check_tables() passed; of the second: a
  // plan of plan_tree() and the tables and options that it was made with.
  virtual Result<std::unique_ptr<DeviceTreePlan>> plan_tree(const AttentionProblem& problem,
                                                            const CacheTables& tables,
                                                            const CacheTreeOptions& options) = 0;
  virtual Status attend_tree(const DeviceTreePlan& plan, const CacheView& cache, const CacheAppend& append,
                             const CacheTensors& tensors) = 0;
  virtual Status rope(const RopeProblem& problem, const Strided<const void*>& x, const Strided<void*>& out,
                      bool backward) = 0;
  virtual Status merge_states(const MergeProblem& problem, std::span<const AttentionPart> parts,
                              const Strided<void*>& o, const Strided<float*>& lse) = 0;
  virtual std::string explain(const AttentionProblem& problem, Pass pass) const = 0;
};

// For functions that have no kernels for devices: ok on the CPU, else unsupported, naming the function.
Status only_on_cpu(const Context& context, const char* function);

}  // namespace tessera::attention
