// Counts the bytes that operator new has out, and makes the n-th allocation fail. Include it in one file of a
// test: it replaces the global operators.
#pragma once

#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace tessera::testing {

struct MemoryMeter {
  static inline std::atomic<int64_t> live{0};
  static inline std::atomic<int64_t> peak{0};

  // Allocations that still succeed before one fails, once; negative: none fails.
  static inline std::atomic<int64_t> until_failure{-1};

  static void* take(size_t bytes) {
    if (until_failure >= 0 && until_failure-- == 0) throw std::bad_alloc();
    void* data = std::malloc(bytes);
    if (data == nullptr) throw std::bad_alloc();
    const int64_t now = live += static_cast<int64_t>(malloc_usable_size(data));
    int64_t seen = peak;
    while (now > seen && !peak.compare_exchange_weak(seen, now)) {
    }
    return data;
  }
  static void give(void* data) {
    if (data == nullptr) return;
    live -= static_cast<int64_t>(malloc_usable_size(data));
    std::free(data);
  }
  // The most that was out during `work` beyond what was out before it.
  template <typename F>
  static int64_t peak_during(F&& work) {
    const int64_t before = live;
    peak = before;
    work();
    return peak - before;
  }
};

}  // namespace tessera::testing

void* operator new(size_t bytes) {
  return tessera::testing::MemoryMeter::take(bytes);
}
void* operator new[](size_t bytes) {
  return tessera::testing::MemoryMeter::take(bytes);
}
void operator delete(void* data) noexcept {
  tessera::testing::MemoryMeter::give(data);
}
void operator delete[](void* data) noexcept {
  tessera::testing::MemoryMeter::give(data);
}
void operator delete(void* data, size_t) noexcept {
  tessera::testing::MemoryMeter::give(data);
}
void operator delete[](void* data, size_t) noexcept {
  tessera::testing::MemoryMeter::give(data);
}
