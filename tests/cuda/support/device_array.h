// Arrays of plain values for tests of single instructions: the device's copy has guard words before and
// behind, and what does not agree is named by its index.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/cuda/device.h"

namespace tessera::attention::cuda_test {

// A copy that has arrived.
inline Status copied(void* to, const void* from, size_t bytes) {
  const tessera::cuda::Stream stream = tessera::cuda::Stream::of(nullptr);
  TESSERA_RETURN_IF_ERROR(tessera::cuda::copy(to, from, bytes, stream));
  return stream.synchronize();
}

// `count` elements on the device between guard bytes. Starts as the values given, or as 0xff bytes: NaN in
// every floating type.
template <typename T>
class DeviceArray {
 public:
  static constexpr size_t kGuard = 1024;  // bytes, keeps the 256-byte alignment of what lies behind
  static constexpr unsigned char kGuardByte = 0xa5;

  explicit DeviceArray(size_t count) : DeviceArray(count, nullptr) {}
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size(), values.data()) {}

  T* data() const { return reinterpret_cast<T*>(buffer_.as<char>() + kGuard); }
  // Waits for the device. Fails when a guard byte has changed.
  std::vector<T> read() const {
    std::vector<unsigned char> bytes(size_ + 2 * kGuard);
    const Status status = copied(bytes.data(), buffer_.data(), bytes.size());
    EXPECT_TRUE(status.ok()) << status.message();
    for (size_t i = 0; status.ok() && i < kGuard; ++i) {
      if (bytes[i] == kGuardByte && bytes[kGuard + size_ + i] == kGuardByte) continue;
      const bool before = bytes[i] != kGuardByte;
      ADD_FAILURE() << "written outside the array of " << size_ << " bytes: " << (before ? kGuard - i : i)
                    << " bytes " << (before ? "before" : "behind") << " it";
      break;
    }
    std::vector<T> values(size_ / sizeof(T));
    if (size_ > 0) std::memcpy(static_cast<void*>(values.data()), bytes.data() + kGuard, size_);
    return values;
  }

 private:
  DeviceArray(size_t count, const T* values) : size_(count * sizeof(T)) {
    auto made = tessera::cuda::DeviceBuffer::create(size_ + 2 * kGuard, "a test");
    EXPECT_TRUE(made.ok()) << made.status().message();
    if (!made.ok()) return;
    buffer_ = std::move(*made);
    std::vector<unsigned char> bytes(size_ + 2 * kGuard, kGuardByte);
    std::fill(bytes.begin() + kGuard, bytes.end() - kGuard, static_cast<unsigned char>(0xff));
    if (values != nullptr && size_ > 0) std::memcpy(bytes.data() + kGuard, values, size_);
    const Status status = copied(buffer_.data(), bytes.data(), bytes.size());
    EXPECT_TRUE(status.ok()) << status.message();
  }
  size_t size_;
  tessera::cuda::DeviceBuffer buffer_;
};

// Waits for the kernel just launched on the default stream; false, with the reason, when it or its launch
// failed.
inline bool ran(const char* kernel, const std::string& problem) {
  const auto outcome = [&]() -> Status {
    TESSERA_RETURN_IF_ERROR(tessera::cuda::launched(kernel, problem));
    return tessera::cuda::Stream::of(nullptr).synchronize();
  };
  const Status status = outcome();
  EXPECT_TRUE(status.ok()) << problem << ": " << status.message();
  return status.ok();
}

// Fails with the number of elements that differ and the first of them: its index as row and column of
// `columns`. same(i) compares element i; show(i) prints got and wanted.
template <typename Same, typename Show>
bool expect_each(const std::string& what, size_t count, size_t columns, Same&& same, Show&& show) {
  size_t bad = 0, first = 0;
  for (size_t i = 0; i < count; ++i) {
    if (same(i)) continue;
    if (bad++ == 0) first = i;
  }
  if (bad == 0) return true;
  ADD_FAILURE() << what << ": " << bad << " of " << count << " differ, first at row " << first / columns
                << " column " << first % columns << ": " << show(first);
  return false;
}

template <typename T>
bool expect_equal(const std::string& what, const std::vector<T>& got, const std::vector<T>& want,
                  size_t columns) {
  EXPECT_EQ(got.size(), want.size()) << what;
  if (got.size() != want.size()) return false;
  return expect_each(
      what, got.size(), columns, [&](size_t i) { return got[i] == want[i]; },
      [&](size_t i) { return std::to_string(got[i]) + " for " + std::to_string(want[i]); });
}

// Each element within bound[i] of want[i]; NaN is never within.
inline bool expect_near(const std::string& what, const std::vector<float>& got,
                        const std::vector<double>& want, const std::vector<double>& bound, size_t columns) {
  EXPECT_EQ(got.size(), want.size()) << what;
  if (got.size() != want.size()) return false;
  return expect_each(
      what, got.size(), columns, [&](size_t i) { return std::abs(double{got[i]} - want[i]) <= bound[i]; },
      [&](size_t i) {
        return std::to_string(got[i]) + " for " + std::to_string(want[i]) + " within " +
               std::to_string(bound[i]);
      });
}

}  // namespace tessera::attention::cuda_test
