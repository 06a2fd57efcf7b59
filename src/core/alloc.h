// The seam for large memory: buffers, caches and packed weights are taken through an Allocator, so that tests
// can make the n-th allocation fail.
#pragma once

#include <cstddef>

namespace tessera {

class Allocator {
 public:
  virtual ~Allocator() = default;
  // `bytes` of zeroed memory aligned to 64, or null. Thread-safe.
  virtual void* allocate(size_t bytes) = 0;
  virtual void deallocate(void* data, size_t bytes) = 0;
};

// From 1 MiB up: anonymous memory aligned to 2 MiB with transparent huge pages asked for (huge pages gain
// 10-35 % of read bandwidth over 4 KiB ones). Below: the heap. Never fails a CHECK; returns null when memory
// is out.
Allocator& system_allocator();

}  // namespace tessera
