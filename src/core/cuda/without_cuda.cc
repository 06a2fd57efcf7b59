// A build without nvcc: every question about a device gets one answer.
#include "core/cuda/device.h"

namespace tessera::cuda {
namespace {

Status absent() {
  return unsupported(
      "this build of Tessera has no CUDA kernels: configure it where nvcc is (-DTESSERA_CUDA=ON)", "device");
}

}  // namespace

Result<int> device_count() {
  return absent();
}
Result<DeviceProperties> device_properties(int) {
  return absent();
}

}  // namespace tessera::cuda
