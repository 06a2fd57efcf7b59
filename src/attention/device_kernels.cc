#include "attention/device_kernels.h"

#include "core/format.h"

namespace tessera::attention {

Status only_on_cpu(const Context& context, const char* function) {
  if (context.attention == nullptr) return {};
  return unsupported(format("{} has no CUDA kernel: call it with a CpuContext and host memory", function),
                     "context");
}

}  // namespace tessera::attention
