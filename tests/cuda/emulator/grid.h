// A launch: block after block, over the kernel's shared memory.
#pragma once

#include <functional>

#include "tests/cuda/emulator/device_on_host.h"

namespace emulator {

inline void run_grid(unsigned blocks, int threads, void* memory, size_t shared_bytes,
                     const std::function<void()>& kernel) {
  set_shared(static_cast<unsigned char*>(memory), shared_bytes);
  blockDim.x = static_cast<unsigned>(threads);
  for (unsigned block = 0; block < blocks; ++block) {
    blockIdx.x = block;
    run_block(static_cast<int>(block), threads, kernel);
  }
}

}  // namespace emulator

namespace tessera::attention::cuda::sm80 {

// As forward and backward call their shared memory, of a device of compute capability 8.0.
inline constexpr size_t kSharedOfDevice = 163 * 1024;
extern char shared[kSharedOfDevice];

inline void run_grid(unsigned blocks, int threads, size_t shared_bytes, const std::function<void()>& kernel) {
  if (shared_bytes > kSharedOfDevice) emulator::fail("more shared memory than the emulator's device has");
  emulator::run_grid(blocks, threads, shared, shared_bytes, kernel);
}

}  // namespace tessera::attention::cuda::sm80
