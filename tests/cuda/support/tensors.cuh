// Random tensors on the device, with poison around and between, and what is compared with them.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "core/cuda/device.h"
#include "tessera/attention.h"
#include "tessera/dtype.h"

namespace tessera::attention {

// [batch, rows, heads, dim] of 16-bit elements on the device. Guard words of 0xffff (NaN in f16 and bf16)
// stand before and behind, and `gap` elements of them behind each head's dim. The outer guards are looked at
// when the tensor goes, of inputs too; those of what was written, with the gaps, by guards_hold().
class DeviceTensor {
 public:
  static constexpr int64_t kGuard = 4096;  // elements
  DeviceTensor(DType dtype, int64_t batch, int64_t rows, int64_t heads, int64_t dim, int64_t gap = 0)
      : dtype_(dtype), batch_(batch), rows_(rows), heads_(heads), dim_(dim), pitch_(dim + gap) {
    host_.assign(static_cast<size_t>(2 * kGuard + batch * rows * heads * pitch_), 0xffff);
    Result<tessera::cuda::DeviceBuffer> buffer =
        tessera::cuda::DeviceBuffer::create(host_.size() * 2, "a test tensor");
    if (!buffer.ok()) throw std::runtime_error(buffer.status().message());
    device_ = std::move(buffer).value();
  }
  ~DeviceTensor() { check_outer_guards(); }
  DeviceTensor(DeviceTensor&&) = default;
  DeviceTensor& operator=(DeviceTensor&&) = default;
  int64_t at(int64_t b, int64_t r, int64_t h, int64_t d) const {
    return kGuard + ((b * rows_ + r) * heads_ + h) * pitch_ + d;
  }
  void set(int64_t b, int64_t r, int64_t h, int64_t d, float value) {
    host_[static_cast<size_t>(at(b, r, h, d))] =
        dtype_ == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
  }
  float get(int64_t b, int64_t r, int64_t h, int64_t d) const {
    const uint16_t bits = host_[static_cast<size_t>(at(b, r, h, d))];
    return dtype_ == DType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits);
  }
  void fill(std::mt19937& random, float scale = 1.0f) {
    std::normal_distribution<float> normal(0.0f, scale);
    for (int64_t b = 0; b < batch_; ++b)
      for (int64_t r = 0; r < rows_; ++r)
        for (int64_t h = 0; h < heads_; ++h)
          for (int64_t d = 0; d < dim_; ++d) set(b, r, h, d, normal(random));
  }
  // Waits: a copy from pageable memory returns before it has arrived, and the kernels' stream would not wait
  // for it.
  void upload() {
    cudaMemcpy(device_.data(), host_.data(), host_.size() * 2, cudaMemcpyHostToDevice);
    cudaDeviceSynchronize();
    uploaded_ = true;
  }
  void download() { cudaMemcpy(host_.data(), device_.data(), host_.size() * 2, cudaMemcpyDeviceToHost); }
  const std::vector<uint16_t>& bits() const { return host_; }
  // Every element outside [b, r, h, d < dim] still holds the guard.
  bool guards_hold() const {
    std::vector<uint16_t> copy = host_;
    for (int64_t b = 0; b < batch_; ++b)
      for (int64_t r = 0; r < rows_; ++r)
        for (int64_t h = 0; h < heads_; ++h)
          for (int64_t d = 0; d < dim_; ++d) copy[static_cast<size_t>(at(b, r, h, d))] = 0xffff;
    for (const uint16_t word : copy)
      if (word != 0xffff) return false;
    return true;
  }
  template <typename Pointer>
  Strided<Pointer> strided() const {
    auto* data = static_cast<uint16_t*>(device_.data()) + kGuard;
    return {data, rows_ * heads_ * pitch_, heads_ * pitch_, pitch_};
  }

 private:
  void check_outer_guards() const {
    if (device_.data() == nullptr || !uploaded_) return;
    std::vector<uint16_t> guards(2 * kGuard, 0);
    const auto* memory = static_cast<const uint16_t*>(device_.data());
    const size_t behind = device_.size() / 2 - kGuard;
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(guards.data(), memory, kGuard * 2, cudaMemcpyDeviceToHost), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(guards.data() + kGuard, memory + behind, kGuard * 2, cudaMemcpyDeviceToHost),
              cudaSuccess);
    for (int64_t i = 0; i < 2 * kGuard; ++i) {
      if (guards[static_cast<size_t>(i)] == 0xffff) continue;
      ADD_FAILURE() << "a tensor of " << batch_ << " x " << rows_ << " x " << heads_ << " x " << dim_
                    << " was written outside, " << (i < kGuard ? kGuard - i : i - kGuard) << " elements "
                    << (i < kGuard ? "before" : "behind");
      return;
    }
  }
  DType dtype_;
  int64_t batch_, rows_, heads_, dim_, pitch_;
  std::vector<uint16_t> host_;
  tessera::cuda::DeviceBuffer device_;
  bool uploaded_ = false;  // only then there are guards
};

}  // namespace tessera::attention
