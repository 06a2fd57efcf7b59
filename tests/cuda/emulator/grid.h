// Launches of the sm_80 forward and backward: block after block, over the kernels' shared memory.
#pragma once

#include <functional>

#include "tests/cuda/emulator/device_on_host.h"

namespace tessera::attention::cuda::sm80 {

inline constexpr size_t kSharedOfDevice = 163 * 1024;
extern char shared[kSharedOfDevice];  // as the kernels call it

inline void run_grid(unsigned blocks, int threads, size_t shared_bytes, const std::function<void()>& kernel) {
  if (shared_bytes > kSharedOfDevice) emulator::fail("more shared memory than the emulator's device has");
  emulator::set_shared(reinterpret_cast<unsigned char*>(shared), shared_bytes);
  blockDim.x = static_cast<unsigned>(threads);
  for (unsigned block = 0; block < blocks; ++block) {
    blockIdx.x = block;
    emulator::run_block(static_cast<int>(block), threads, kernel);
  }
}

}  // namespace tessera::attention::cuda::sm80
