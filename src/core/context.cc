#include "core/context.h"

#include "core/format.h"
#include "tessera/context.h"

namespace tessera {

struct CpuContext::Impl {
  explicit Impl(const ThreadPoolOptions& options) : pool(options), context(pool) {}
  ThreadPool pool;
  Context context;
};

Result<CpuContext> CpuContext::create(const CpuOptions& options) {
  constexpr int kMostThreads = 1024;
  if (options.threads < 0 || options.threads > kMostThreads) {
    return invalid_argument(
        format("threads={} must be from 0 (one for each CPU) to {}", options.threads, kMostThreads),
        "threads");
  }
  if (options.spin_us < 0 || options.spin_us > 1'000'000) {
    return invalid_argument(format("spin_us={} must be from 0 to 1000000", options.spin_us), "spin_us");
  }
  return CpuContext(std::make_unique<Impl>(
      ThreadPoolOptions{.threads = options.threads, .pin = options.pin, .spin_us = options.spin_us}));
}

CpuContext::CpuContext(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CpuContext::CpuContext(CpuContext&&) noexcept = default;
CpuContext& CpuContext::operator=(CpuContext&&) noexcept = default;
CpuContext::~CpuContext() = default;

CpuContext::operator Context&() const {
  return impl_->context;
}
int CpuContext::threads() const {
  return impl_->pool.size();
}
int64_t CpuContext::workspace_bytes() const {
  size_t sum = 0;
  for (const Workspace& workspace : impl_->context.workspaces) sum += workspace.bytes();
  return static_cast<int64_t>(sum);
}
void CpuContext::release_workspace() {
  for (Workspace& workspace : impl_->context.workspaces) workspace = Workspace();
}

}  // namespace tessera
