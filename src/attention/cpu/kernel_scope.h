// Round the walks of a thread: subnormals are flushed, and the kernel has what it needs of the thread's
// state.
#pragma once

#include "attention/cpu/flush_subnormals.h"

namespace tessera::attention {

// Kernel: TileKernel or BackwardKernel, which outlives this.
template <typename Kernel>
class KernelScope {
 public:
  explicit KernelScope(const Kernel& kernel) : leave_(kernel.leave) {
    if (kernel.enter != nullptr) kernel.enter();
  }
  ~KernelScope() {
    if (leave_ != nullptr) leave_();
  }
  KernelScope(const KernelScope&) = delete;
  KernelScope& operator=(const KernelScope&) = delete;

 private:
  const FlushSubnormals flush_;
  void (*leave_)();
};

}  // namespace tessera::attention
