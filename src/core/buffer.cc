#include "core/buffer.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "core/format.h"

namespace tessera {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kMapThreshold = size_t{1} << 20;

class SystemAllocator final : public Allocator {
 public:
  void* allocate(size_t bytes) override {
    if (bytes > SIZE_MAX - 2 * kHugePage) return nullptr;
    if (bytes < kMapThreshold) {
      void* data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
      if (data != nullptr) std::memset(data, 0, bytes);
      return data;
    }
    // Map one huge page more than needed and give the ends back, so that the start is aligned.
    const size_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    void* map = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) return nullptr;
    char* start = static_cast<char*>(map);
    const size_t head = (kHugePage - reinterpret_cast<uintptr_t>(start) % kHugePage) % kHugePage;
    if (head != 0) munmap(start, head);
    if (kHugePage - head != 0) munmap(start + head + size, kHugePage - head);
    madvise(start + head, size, MADV_HUGEPAGE);
    return start + head;
  }
  void deallocate(void* data, size_t bytes) override {
    if (bytes < kMapThreshold) {
      std::free(data);
    } else {
      munmap(data, (bytes + kHugePage - 1) / kHugePage * kHugePage);
    }
  }
};

}  // namespace

Allocator& system_allocator() {
  static SystemAllocator allocator;
  return allocator;
}

Result<Buffer> Buffer::create(size_t bytes, const char* what, Allocator& allocator) {
  Buffer buffer;
  if (bytes == 0) return buffer;
  buffer.data_ = allocator.allocate(bytes);
  if (buffer.data_ == nullptr) {
    return resource_exhausted(format("{}: {} bytes could not be allocated", what, bytes));
  }
  buffer.size_ = bytes;
  buffer.allocator_ = &allocator;
  return buffer;
}

void Buffer::reset() {
  if (data_ != nullptr) allocator_->deallocate(data_, size_);
  data_ = nullptr;
  size_ = 0;
  allocator_ = nullptr;
}

}  // namespace tessera
