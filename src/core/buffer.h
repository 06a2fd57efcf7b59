// Buffer: owned, zeroed, 64-byte aligned bytes. Move-only.
#pragma once

#include <cstddef>
#include <utility>

#include "core/alloc.h"
#include "tessera/status.h"

namespace tessera {

class Buffer {
 public:
  Buffer() = default;
  // A resource_exhausted Status names `what` and the bytes when memory is out.
  static Result<Buffer> create(size_t bytes, const char* what, Allocator& allocator = system_allocator());
  ~Buffer() { reset(); }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      reset();
      swap(other);
    }
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() { return data_; }
  const void* data() const { return data_; }
  size_t size() const { return size_; }
  template <typename T>
  T* as() {
    return static_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data_);
  }

 private:
  void reset();
  void swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(allocator_, other.allocator_);
  }
  void* data_ = nullptr;
  size_t size_ = 0;
  Allocator* allocator_ = nullptr;
};

}  // namespace tessera
