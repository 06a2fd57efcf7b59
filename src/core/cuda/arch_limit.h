// TESSERA_CUDA_ARCH: takes the kernels of an older compute capability, as TESSERA_ISA does on the CPU.
#pragma once

#include <charconv>
#include <cstdlib>
#include <cstring>

#include "core/cuda/device.h"
#include "core/format.h"

namespace tessera::cuda {

// `device` as one of compute capability `arch` ("80": 8.0), which its name then says; as it is for null and
// "". The other properties stay the device's own. invalid_argument for what is no number from 80 on,
// unsupported for more than the device has; both name TESSERA_CUDA_ARCH.
inline Result<DeviceProperties> limited_to(DeviceProperties device, const char* arch) {
  if (arch == nullptr || *arch == '\0') return device;
  int sm = 0;
  const char* const end = arch + std::strlen(arch);
  const auto [stopped, error] = std::from_chars(arch, end, sm);
  if (error != std::errc() || stopped != end || sm < 80) {
    return invalid_argument(
        format("TESSERA_CUDA_ARCH='{}' must be a compute capability from 80 on, as in 80 for 8.0", arch),
        "TESSERA_CUDA_ARCH");
  }
  if (sm > device.sm()) {
    return unsupported(format("TESSERA_CUDA_ARCH={}: device {} has only sm_{}", sm, device.name, device.sm()),
                       "TESSERA_CUDA_ARCH");
  }
  if (sm == device.sm()) return device;
  device.name += format(" under TESSERA_CUDA_ARCH={}", sm);
  device.major = sm / 10;
  device.minor = sm % 10;
  return device;
}

}  // namespace tessera::cuda
