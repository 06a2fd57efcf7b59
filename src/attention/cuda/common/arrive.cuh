// A warp's arrival at an mbarrier.
#pragma once

#include "attention/cuda/common/ptx.cuh"

namespace tessera::attention::cuda {

// As a rule one lane arrives for its warp, behind a __syncwarp(). compute-sanitizer's racecheck takes a
// barrier to order the threads that arrive alone: where TESSERA_RACECHECK is defined, every lane does.
#ifdef TESSERA_RACECHECK
inline constexpr uint32_t kWarpArrivals = 32;
#else
inline constexpr uint32_t kWarpArrivals = 1;
#endif

__device__ __forceinline__ void arrive_as_warp(uint32_t barrier, int lane) {
  __syncwarp();
  if (kWarpArrivals > 1 || lane == 0) mbarrier_arrive(barrier);
}

}  // namespace tessera::attention::cuda
