// Context: what every op gets first. On the CPU: a thread pool and scratch memory per worker. On a device:
// the device's kernels, which have a stream and scratch of their own.
#pragma once

#include <vector>

#include "core/buffer.h"
#include "core/check.h"
#include "core/thread_pool.h"

namespace tessera {

namespace attention {
class DeviceKernels;  // the layer's own; core only hands it on
}

// Grow-only scratch of one worker. A pointer from get() lives until the next get() on the same slot.
class Workspace {
 public:
  static constexpr int kSlots = 4;
  // At least `bytes`, 64-byte aligned, contents unspecified. Memory out is an InternalError (the step fails).
  void* get(int slot, size_t bytes) {
    Buffer& buffer = buffers_[slot];
    if (buffer.size() < bytes) {
      buffer = Buffer();  // given back first: the most held is what is needed
      Result<Buffer> grown = Buffer::create(bytes + bytes / 4, "workspace");
      TESSERA_CHECK_MSG(grown.ok(), grown.status().message());
      buffer = std::move(grown).value();
    }
    return buffer.data();
  }
  size_t bytes() const {
    size_t sum = 0;
    for (const Buffer& buffer : buffers_) sum += buffer.size();
    return sum;
  }

 private:
  Buffer buffers_[kSlots];
};

struct Context {
  explicit Context(ThreadPool& pool_in) : pool(pool_in), workspaces(static_cast<size_t>(pool_in.size())) {}
  ThreadPool& pool;
  std::vector<Workspace> workspaces;  // [pool.size()], one per worker
  // A device's; null: the CPU. Tensors are then device memory and the pool is not used.
  attention::DeviceKernels* attention = nullptr;

  Workspace& workspace(int worker) { return workspaces[static_cast<size_t>(worker)]; }
};

}  // namespace tessera
