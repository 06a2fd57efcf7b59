// Device memory for tests: guard words of NaN before and behind, looked at when it goes. Whatever a kernel
// was given, input or output, then fails the test when the kernel wrote beside it; and what it read there is
// NaN, or an index of -1.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <stdexcept>
#include <utility>
#include <vector>

#include "core/cuda/device.h"

namespace tessera::attention::cuda_test {

class GuardedBuffer {
 public:
  static constexpr size_t kGuard = 1024;          // bytes on each side; keeps the alignment of cudaMalloc
  static constexpr unsigned char kPoison = 0xff;  // NaN in f32, f16 and bf16

  GuardedBuffer() = default;
  // All of it is poison. Waits, so that every stream may use it.
  explicit GuardedBuffer(size_t bytes) : size_(bytes) {
    auto made = tessera::cuda::DeviceBuffer::create(bytes + 2 * kGuard, "a test's buffer");
    if (!made.ok()) throw std::runtime_error(made.status().message());
    memory_ = std::move(*made);
    EXPECT_EQ(cudaMemset(memory_.data(), kPoison, memory_.size()), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  GuardedBuffer(const void* data, size_t bytes) : GuardedBuffer(bytes) { write(data); }
  ~GuardedBuffer() { check(); }
  GuardedBuffer(GuardedBuffer&& other) noexcept { swap(other); }
  GuardedBuffer& operator=(GuardedBuffer&& other) noexcept {
    swap(other);
    return *this;
  }

  void* data() const { return memory_.data() == nullptr ? nullptr : memory_.as<char>() + kGuard; }
  size_t size() const { return size_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data());
  }
  // `size()` bytes, there and back. Both wait for everything on the device.
  void write(const void* from) const {
    if (size_ == 0) return;
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data(), from, size_, cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  void read(void* to) const {
    const cudaError_t error = cudaDeviceSynchronize();
    EXPECT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
    if (size_ > 0) EXPECT_EQ(cudaMemcpy(to, data(), size_, cudaMemcpyDeviceToHost), cudaSuccess);
  }
  // Fails the test when a guard word has changed.
  void check() const {
    if (memory_.data() == nullptr) return;
    std::vector<unsigned char> guards(2 * kGuard, 0);
    const char* const end = memory_.as<char>() + kGuard + size_;
    const bool fetched =
        cudaDeviceSynchronize() == cudaSuccess &&
        cudaMemcpy(guards.data(), memory_.data(), kGuard, cudaMemcpyDeviceToHost) == cudaSuccess &&
        cudaMemcpy(guards.data() + kGuard, end, kGuard, cudaMemcpyDeviceToHost) == cudaSuccess;
    if (!fetched) {
      ADD_FAILURE() << "the guards of a buffer of " << size_
                    << " bytes cannot be read: " << cudaGetErrorString(cudaGetLastError());
      return;
    }
    for (size_t i = 0; i < guards.size(); ++i) {
      if (guards[i] == kPoison) continue;
      const bool before = i < kGuard;
      ADD_FAILURE() << "a buffer of " << size_ << " bytes was written outside, "
                    << (before ? kGuard - i : i - kGuard) << " bytes " << (before ? "before" : "behind")
                    << (before ? " its begin" : " its end");
      return;
    }
  }

 private:
  void swap(GuardedBuffer& other) {
    std::swap(memory_, other.memory_);
    std::swap(size_, other.size_);
  }
  tessera::cuda::DeviceBuffer memory_;
  size_t size_ = 0;
};

}  // namespace tessera::attention::cuda_test
