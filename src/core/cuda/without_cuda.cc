// A build without nvcc: every question about a device gets one answer.
#include "core/cuda/device.h"
#include "core/cuda/nccl.h"
#include "tessera/cuda.h"

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
Result<const Nccl*> nccl() {
  return absent();
}

}  // namespace tessera::cuda

namespace tessera {

// Nobody has one: create() never succeeds.
struct CudaContext::Impl {};

Result<CudaContext> CudaContext::create(const CudaOptions&) {
  return cuda::device_count().status();
}
Result<int> cuda_device_count() {
  return cuda::device_count();
}

CudaContext::CudaContext(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CudaContext::CudaContext(CudaContext&&) noexcept = default;
CudaContext& CudaContext::operator=(CudaContext&&) noexcept = default;
CudaContext::~CudaContext() = default;
CudaContext::operator Context&() const {
  std::abort();
}
int CudaContext::device() const {
  std::abort();
}
void* CudaContext::stream() const {
  std::abort();
}
Status CudaContext::synchronize() const {
  std::abort();
}
int64_t CudaContext::workspace_bytes() const {
  std::abort();
}

}  // namespace tessera
