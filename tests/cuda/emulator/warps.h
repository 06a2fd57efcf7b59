// A block of a grid on one host thread: every device thread is a fiber, and whatever a warp or a block does
// together is a barrier of fibers. Warps take turns at random, from a fixed seed.
//
// It is for kernels written with __syncwarp, full masks and the functions of common/ptx.cuh. What it checks
// besides results: full masks, addresses in shared memory, alignment of copies, agreement on barriers,
// deadlock, copies that nobody waited for. Copies arrive when they are waited for, not earlier, and shared
// memory is NaN before. It is no model of caches or of the memory order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

namespace emulator {

// Runs a block of `threads` device threads.
void run_block(int block, int threads, const std::function<void()>& kernel);
// What shared-memory addresses count from.
void set_shared(unsigned char* memory, size_t bytes);

[[noreturn]] void fail(const char* what);

int thread();  // in the block
int lane();
int block_threads();

// Values that the lanes of a warp show each other: one barrier of the warp.
struct Shown {
  uint64_t words[4] = {};
};
const Shown* show(const Shown& mine);  // [32], valid until the next but one
template <typename T>
Shown as_shown(const T& value) {
  static_assert(sizeof(T) <= sizeof(Shown));
  Shown s;
  std::memcpy(s.words, &value, sizeof value);
  return s;
}
template <typename T>
T seen(const Shown& s) {
  T value;
  std::memcpy(static_cast<void*>(&value), s.words, sizeof value);
  return value;
}

void barrier(int id, int threads);  // bar.sync
void pause();                       // of who asks again and again: lets others go on

unsigned char* shared(uint32_t address, int bytes);
uint32_t shared_address(const void* pointer);
void copy_async(uint32_t to, const void* from, bool valid);  // 16 bytes, or zeros
void commit_copies();
void wait_copies(size_t pending);

}  // namespace emulator
