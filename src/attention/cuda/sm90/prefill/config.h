// The shapes of the forward kernel, and how one is launched. Each file prefill_*.cu instantiates some.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/cuda/sm90/prefill/schedule.h"
#include "core/cuda/device.h"

namespace tessera::attention::cuda::sm90 {

template <typename Element, int kHeadDim, int kWarpgroups, int kKeys, int kStageCount, bool kQRegisters,
          Sight kRowsSee>
struct PrefillConfig {
  using T = Element;
  static constexpr int D = kHeadDim, kGroups = kWarpgroups, BN = kKeys, kStages = kStageCount;
  static constexpr Sight kSight = kRowsSee;
  // Tiles of unequal work are fetched, longest first; equal ones are dealt.
  static constexpr bool kDynamic = kSight != Sight::full;
  // In registers Q's buffer is free again at the start of a tile; where registers are short it stays in
  // shared memory, and two buffers let the next tile's come meanwhile.
  static constexpr bool kQInRegisters = kQRegisters;
  static constexpr int kQBuffers = kQInRegisters ? 1 : 2;
  static constexpr int kRows = 64 * kGroups;
  static constexpr int kThreads = 128 * (kGroups + 1);
  // The register file's 64K shared among warpgroups as setmaxnreg deals it (multiples of 8).
  static constexpr int kConsumerRegisters = kGroups == 2 ? 240 : kGroups == 3 ? 160 : 112;
  static constexpr int kProducerRegisters = kGroups == 2 ? 24 : 32;
  static constexpr int kQBytes = 64 * D * 2, kTileBytes = BN * D * 2;
  // Shared memory: Q and O of every warpgroup, K and V stages, barriers. 1024 bytes more to align it.
  static constexpr int kO = kGroups * kQBuffers * kQBytes, kK = kO + kGroups * kQBytes,
                       kV = kK + kStages * kTileBytes;
  static constexpr int kBarriers = kV + kStages * kTileBytes;
  static constexpr int kBarrierBytes = 16 * (2 * kStages + kGroups * kQBuffers + 2) + 16;
  static constexpr int kSharedBytes = kBarriers + kBarrierBytes + 1024;
  static_assert(D % 64 == 0 && BN % 16 == 0);
};

template <typename T, Sight kSight>
using D64FourBy64 = PrefillConfig<T, 64, 4, 64, 4, false, kSight>;
template <typename T, Sight kSight>
using D64ThreeBy128 = PrefillConfig<T, 64, 3, 128, 3, false, kSight>;
template <typename T, Sight kSight>
using D128TwoBy128 = PrefillConfig<T, 128, 2, 128, 2, true, kSight>;

// Launches on `blocks` multiprocessors. Defined in launch_kernel.cuh, instantiated in prefill_*.cu.
template <typename C>
Status launch_prefill(const tessera::cuda::Stream& stream, int blocks, const PrefillParams& params);

}  // namespace tessera::attention::cuda::sm90
