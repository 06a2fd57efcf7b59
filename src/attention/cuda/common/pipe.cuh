// A ring of stages between one producer and its consumers: full[s] completes when the stage's bytes have
// landed, empty[s] when every consumer has let go of it.
#pragma once

#include <cstdint>

#include "attention/cuda/common/ptx.cuh"

namespace tessera::attention::cuda {

// Where somebody stands in a ring; both sides walk it in the same order.
template <int kStages>
struct RingPosition {
  uint32_t stage = 0;
  uint32_t phase = 0;  // flips each time round
  __device__ __forceinline__ void next() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// The barriers of a ring, 16 bytes a stage at `base` in shared memory.
struct Ring {
  uint32_t base;
  __device__ __forceinline__ uint32_t full(uint32_t stage) const { return base + 16 * stage; }
  __device__ __forceinline__ uint32_t empty(uint32_t stage) const { return base + 16 * stage + 8; }
  // By one thread, before a barrier of the block and after nothing.
  __device__ void init(int stages, uint32_t producers, uint32_t consumers) const {
    for (int s = 0; s < stages; ++s) {
      mbarrier_init(full(s), producers);
      mbarrier_init(empty(s), consumers);
    }
  }
  // Producer: waits until the stage is free; the first time round it is.
  __device__ __forceinline__ void acquire(uint32_t stage, uint32_t phase) const {
    mbarrier_wait(empty(stage), phase ^ 1);
  }
  // Producer: announces the bytes that the copies to come will bring.
  __device__ __forceinline__ void expect(uint32_t stage, uint32_t bytes) const {
    mbarrier_arrive_expect(full(stage), bytes);
  }
  __device__ __forceinline__ void wait(uint32_t stage, uint32_t phase) const {
    mbarrier_wait(full(stage), phase);
  }
  __device__ __forceinline__ void release(uint32_t stage) const { mbarrier_arrive(empty(stage)); }
};

}  // namespace tessera::attention::cuda
