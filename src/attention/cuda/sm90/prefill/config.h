// The shapes of the forward kernel, and how one is launched. Each file prefill_*.cu instantiates some.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "attention/cuda/sm90/prefill/schedule.h"
#include "core/cuda/device.h"

namespace tessera::attention::cuda::sm90 {

template <typename Element, int kHeadDim, int kWarpgroups, int kKeys, int kStageCount, bool kQRegisters,
          Sight kRowsSee, Form kLayout>
struct PrefillConfig {
  using T = Element;
  static constexpr int D = kHeadDim, kGroups = kWarpgroups, BN = kKeys, kStages = kStageCount;
  static constexpr Sight kSight = kRowsSee;
  static constexpr Form kForm = kLayout;
  using Params = std::conditional_t<kForm == Form::general, GeneralParams, PrefillParams>;
  // V rows that no query sees lie in a tile with others: they are zeroed there, since 0 times NaN is NaN.
  static constexpr bool kCleanValues = kForm != Form::dense || kSight == Sight::window;
  // Tiles of unequal work are fetched, longest first; equal ones are dealt.
  static constexpr bool kDynamic = kSight != Sight::full || kForm != Form::dense;
  // In registers Q's buffer is free again at the start of a tile; where registers are short it stays in
  // shared memory, and two buffers let the next tile's come meanwhile.
  static constexpr bool kQInRegisters = kQRegisters;
  // Scores are worked on while the block before is multiplied by V, where registers last for both.
  static constexpr bool kOverlaps = D <= 192 || kForm != Form::general;
  static constexpr int kQBuffers = kQInRegisters || D > 192 ? 1 : 2;
  static constexpr int kRows = 64 * kGroups;
  static constexpr int kThreads = 128 * (kGroups + 1);
  // The register file's 64K shared among warpgroups as setmaxnreg deals it (multiples of 8).
  static constexpr int kConsumerRegisters = kGroups == 2 ? 240 : kGroups == 3 ? 160 : 112;
  static constexpr int kProducerRegisters = kGroups == 2 ? 24 : 32;
  static constexpr int kPanels = (D + 63) / 64;  // of 64 columns; a D of 96 fills half of its last one
  static constexpr int kQBytes = kPanels * 64 * 128, kTileBytes = kPanels * BN * 128;
  // Where shared memory is short the output takes Q's place, and the next tile's Q waits for its store.
  static constexpr bool kOInQ = D > 192;
  // Or it goes to the tensor from registers, and Q's place is free as soon as its last product is done.
  static constexpr bool kFromRegisters = false;
  // Shared memory: Q and O of every warpgroup, K and V stages, barriers. 1024 bytes more to align it.
  static constexpr int kO = kGroups * kQBuffers * kQBytes, kK = kO + (kOInQ ? 0 : kGroups * kQBytes),
                       kV = kK + kStages * kTileBytes;
  static constexpr int kBarriers = kV + kStages * kTileBytes;
  static constexpr int kBarrierBytes = 16 * (2 * kStages + kGroups * kQBuffers + 2) + 16;
  static constexpr int kSharedBytes = kBarriers + kBarrierBytes + 1024;
  // How a warp says that it is done with a stage: by elect.sync, or by lane 0, whose predicate is kept or
  // worked out again. Of both the one that leaves the loop over keys fewer spills
  // (tests/cuda/code_test.py).
  static constexpr bool kElects = kForm == Form::dense ? D == 64 : D >= 128;
  static_assert(D % 16 == 0 && BN % 16 == 0 && (!kOInQ || !kQInRegisters));
};

template <typename T, Sight kSight, Form kForm>
using D64FourBy64 = PrefillConfig<T, 64, 4, 64, 4, false, kSight, kForm>;
template <typename T, Sight kSight, Form kForm>
using D64ThreeBy128 = PrefillConfig<T, 64, 3, 128, 3, false, kSight, kForm>;
template <typename T, Sight kSight, Form kForm>
using D96TwoBy128 = PrefillConfig<T, 96, 2, 128, 2, true, kSight, kForm>;
template <typename T, Sight kSight, Form kForm>
using D128TwoBy128 = PrefillConfig<T, 128, 2, 128, 2, true, kSight, kForm>;
template <typename T, Sight kSight, Form kForm>
using D256TwoBy80 = PrefillConfig<T, 256, 2, 80, 2, false, kSight, kForm>;

// D = 256 with the output from registers: the next tile's Q comes while this one's output is written. By 64
// keys a causal tile of few blocks wastes less on its diagonal.
template <typename Element, Sight kSight, Form kForm>
struct D256TwoBy64Registers : PrefillConfig<Element, 256, 2, 64, 2, false, kSight, kForm> {
  static constexpr bool kOInQ = false, kFromRegisters = true;
};

// Scores that are more than products need registers for their own: narrower blocks of keys, Q in shared
// memory. At D = 256 O alone is 128 registers, and ptxas spills 196 bytes into the loop over keys where both
// products' operands are held at once.
template <typename T, Sight kSight, Form kForm>
using D64General = PrefillConfig<T, 64, 2, 64, 4, false, kSight, kForm>;
template <typename T, Sight kSight, Form kForm>
using D128General = PrefillConfig<T, 128, 2, 64, 3, false, kSight, kForm>;
template <typename T, Sight kSight, Form kForm>
using D256General = PrefillConfig<T, 256, 2, 64, 2, false, kSight, kForm>;

// Launches on `blocks` multiprocessors. Defined in launch_kernel.cuh, instantiated in prefill_*.cu.
template <typename C>
Status launch_prefill(const tessera::cuda::Stream& stream, int blocks, const typename C::Params& params);

}  // namespace tessera::attention::cuda::sm90
