// CudaContext: a launch (device, stream, scratch) and the kernels that run on it, behind a Context.
#include "attention/cuda/dispatch.h"
#include "core/boundary.h"
#include "core/cuda/device.h"
#include "core/format.h"
#include "tessera/cuda.h"

namespace tessera {
namespace {

constexpr int kLeastSm = 80;

Result<cuda::Launch> launch_of(const CudaOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(cuda::DeviceProperties properties, cuda::device_properties(options.device));
  if (properties.sm() < kLeastSm) {
    return unsupported(format("device {} ({}) has compute capability {}.{}; the kernels need 8.0 or later",
                              options.device, properties.name, properties.major, properties.minor),
                       "device");
  }
  cuda::DeviceWorkspace workspace =
      options.allocate ? cuda::DeviceWorkspace(options.allocate) : cuda::DeviceWorkspace();
  const cuda::DeviceGuard guard(options.device);
  TESSERA_RETURN_IF_ERROR(guard.status());
  cuda::Stream stream = cuda::Stream::of(options.stream.value_or(nullptr));
  if (!options.stream) {
    TESSERA_ASSIGN_OR_RETURN(stream, cuda::Stream::create());
  }
  return cuda::Launch{std::move(stream), std::move(properties), std::move(workspace)};
}

}  // namespace

struct CudaContext::Impl {
  explicit Impl(cuda::Launch launch_in)
      : launch(std::move(launch_in)), kernels(launch), pool({.threads = 1}), context(pool) {
    context.attention = &kernels;
  }
  ~Impl() {
    // What is enqueued may still use the scratch, unless that is the caller's. An error was the caller's to
    // see.
    if (launch.workspace.owned_bytes() != 0) (void)launch.stream.synchronize();
  }
  cuda::Launch launch;
  attention::cuda::CudaKernels kernels;
  ThreadPool pool;  // of the caller alone: a Context has one
  Context context;
};

Result<CudaContext> CudaContext::create(const CudaOptions& options) {
  std::unique_ptr<Impl> impl;
  const Status status = at_boundary([&]() -> Status {
    TESSERA_ASSIGN_OR_RETURN(cuda::Launch launch, launch_of(options));
    impl = std::make_unique<Impl>(std::move(launch));
    return {};
  });
  TESSERA_RETURN_IF_ERROR(status);
  return CudaContext(std::move(impl));
}

CudaContext::CudaContext(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CudaContext::CudaContext(CudaContext&&) noexcept = default;
CudaContext& CudaContext::operator=(CudaContext&&) noexcept = default;
CudaContext::~CudaContext() = default;

CudaContext::operator Context&() const {
  return impl_->context;
}
int CudaContext::device() const {
  return impl_->launch.device.ordinal;
}
void* CudaContext::stream() const {
  return impl_->launch.stream.handle();
}
Status CudaContext::synchronize() const {
  const cuda::DeviceGuard guard(device());
  TESSERA_RETURN_IF_ERROR(guard.status());
  return impl_->launch.stream.synchronize();
}
int64_t CudaContext::workspace_bytes() const {
  return static_cast<int64_t>(impl_->launch.workspace.bytes());
}

Result<int> cuda_device_count() {
  return cuda::device_count();
}

}  // namespace tessera
