// Warps and shared memory of the sm_80 step kernel.
#pragma once

#include <vector_types.h>

#include <cstdint>

#include "attention/cuda/steps/unit.cuh"

namespace tessera::attention::cuda::sm80 {

using namespace steps;  // what step kernels of all architectures share

// One configuration for all devices: it fits the 99 KB of sm_86 and sm_89. The 48 KB and more that are in
// flight of an SM cover the latency of an H200's 4.5 TB/s nearly (research on it: 97 %), and of all others.
//
// Four warps, each on a unit of its own, keep up with memory: a tile of 64 keys and 128 dims takes a warp
// some 2,000 cycles and an H200's SM 1,700 to receive. At head_dim 256 two warps leave room for stages, and
// there are no registers for the states of row groups.
//
// kBytes: of an element. Slices of f32 are twice as large, and half as many.
template <int kDim, int kBytes>
struct StepConfig {
  static constexpr int kWarps = kDim == 256 ? 2 : 4;              // that walk; one more plans
  static constexpr int kRowGroups = kDim == 256 ? 1 : 4;          // of 8 rows: a warp each
  static constexpr int kSlices = (kDim == 64 ? 16 : 8) / kBytes;  // stages of a warp
  static constexpr int kSliceBytes = 16 * kDim * kBytes;          // 16 keys of K or of V
  static constexpr int kThreads = 32 * (kWarps + 1);
};

// How a wave is walked: each warp has a unit and a ring of its own, or all have one row group each of the
// same units, one after the other, and one ring.
inline constexpr int32_t kWaveApart = 0, kWaveTogether = 1;
inline constexpr int kWaveSlots = 4;

template <int kWarps>
struct StepWave {
  int32_t units;  // 0: no more
  int32_t mode;
  int32_t unused[2];
  UnitEntry unit[kWarps];
};

template <int kDim, int kBytes>
struct StepShared {
  using Config = StepConfig<kDim, kBytes>;
  alignas(1024) unsigned char stage[Config::kWarps * Config::kSlices][Config::kSliceBytes];
  float merge[Config::kWarps][8][kDim + 4];  // accumulators are stored without conflicts
  float running[8][2][kDim];                 // segment, row: of rows that warps walk apart
  float2 merge_ml[Config::kWarps][8];
  float2 running_ml[8][2];
  StepWave<Config::kWarps> wave[kWaveSlots];
  Piece listed[32];
};
template <int kDim>
inline constexpr bool kFits = sizeof(StepShared<kDim, 2>) <= 99 * 1024 &&
                              sizeof(StepShared<kDim, 4>) <= 99 * 1024;
static_assert(kFits<64> && kFits<128> && kFits<256>);

}  // namespace tessera::attention::cuda::sm80
