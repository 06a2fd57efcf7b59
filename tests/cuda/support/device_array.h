// Arrays of plain values for tests of single instructions; what does not agree is named by its index.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/cuda/device.h"
#include "tests/cuda/support/guarded_buffer.h"

namespace tessera::attention::cuda_test {

// `count` elements on the device, guarded. Starts as the values given, or as 0xff bytes: NaN in every
// floating type.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : buffer_(count * sizeof(T)) {}
  explicit DeviceArray(const std::vector<T>& values) : buffer_(values.data(), values.size() * sizeof(T)) {}
  T* data() const { return buffer_.template as<T>(); }
  // Waits for the device.
  std::vector<T> read() const {
    std::vector<T> values(buffer_.size() / sizeof(T));
    buffer_.read(values.data());
    return values;
  }

 private:
  GuardedBuffer buffer_;
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
