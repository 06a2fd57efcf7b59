// Which CUDA kernels of attention there are, which one a problem gets on a device, and why. What all of them
// ask is checked here, before any launch; a kernel's own limits are in its `supports`.
#pragma once

#include <string>

#include "attention/device_kernels.h"
#include "core/cuda/device.h"

namespace tessera::attention::cuda {

// The kernels on one device and stream. The launch must outlive it.
class CudaKernels : public DeviceKernels {
 public:
  explicit CudaKernels(tessera::cuda::Launch& launch) : launch_(launch) {}
  Status forward(const AttentionProblem& problem, const ForwardTensors& tensors) override;
  Status backward(const AttentionProblem& problem, const BackwardTensors& tensors) override;
  Status attend_cache(const AttentionProblem& problem, const CacheView& cache, const CacheAppend& append,
                      const CacheTensors& tensors) override;
  Status check_host_memory(const char* field, const void* pointer) const override;
  Result<std::unique_ptr<DeviceTreePlan>> plan_tree(const AttentionProblem& problem,
                                                    const CacheTables& tables,
                                                    const CacheTreeOptions& options) override;
  Status attend_tree(const DeviceTreePlan& plan, const CacheView& cache, const CacheAppend& append,
                     const CacheTensors& tensors) override;
  Status rope(const RopeProblem& problem, const Strided<const void*>& x, const Strided<void*>& out,
              bool backward) override;
  Status merge_states(const MergeProblem& problem, std::span<const AttentionPart> parts,
                      const Strided<void*>& o, const Strided<float*>& lse) override;
  std::string explain(const AttentionProblem& problem, Pass pass) const override;

 private:
  tessera::cuda::Launch& launch_;
};

// explain() for a device that need not be there: for tests, and for people without one.
std::string explain_on(const tessera::cuda::DeviceProperties& device, const AttentionProblem& problem,
                       Pass pass);

}  // namespace tessera::attention::cuda
