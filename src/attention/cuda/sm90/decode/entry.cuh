// What producer and consumers of the decode kernel share: descriptions of waves, and shared memory.
#pragma once

#include "attention/cuda/common/arrive.cuh"
#include "attention/cuda/common/ptx.cuh"
#include "attention/cuda/steps/schedule.cuh"
#include "attention/cuda/steps/unit.cuh"

namespace tessera::attention::cuda::sm90 {

using namespace steps;  // what step kernels of all architectures share

inline constexpr int kConsumers = 8;  // warps
inline constexpr int kDecodeThreads = 32 * (kConsumers + 2);
inline constexpr int kWideRows = 64;  // of a warpgroup
inline constexpr int kWideThreads = 32 * (kConsumers + 4);
inline constexpr int kWaveSlots = 4;
inline constexpr int kWaveTiles = 32;  // most of a wave

// How a wave is walked: by warps, a unit in 2^mode row groups each; or by warpgroups, one task each or both
// the same.
inline constexpr int32_t kWaveWide = 3, kWaveWideBoth = 4;

struct Wave {
  int32_t units;  // or tasks; 0: no more
  int32_t mode;
  int32_t tiles;
  int32_t unused;
  UnitEntry unit[kConsumers];
};

// A tile of a wave as it is copied.
struct alignas(16) WaveTile {
  int32_t slot_in_page, kv_head, block;  // block: of a tile of one box
  int32_t is_shared;
  int32_t key, boxes;  // of several boxes
  int32_t unused[2];
};

// Shared memory of a block.
template <int kHeadDim, int kGroups, bool kSmallBoxes>
struct DecodeShared {
  static constexpr int kDim = kHeadDim;
  static constexpr int kTileBytes = kTile * kDim * 2;
  static constexpr int kStageBytes = 2 * kTileBytes;  // K, then V
  static constexpr int kMergeStride = kDim + 4;       // floats: accumulators are stored without conflicts
  static constexpr int kStages = kDim == 64    ? (kGroups == 1 ? 10 : 8)
                                 : kDim == 128 ? (kGroups == 1 && !kSmallBoxes ? 5 : 4)
                                               : 2;
  // Of the first wave: tiles that come into L2, and tiles that are loaded before the guess is looked at
  // again.
  static constexpr int kNear = kStages < 4 ? kStages : 4, kAtOnce = 2;

  alignas(1024) unsigned char stage[kStages][kStageBytes];
  // The warps' states of a wave, and those that go on from wave to wave (segment, row); in wide waves the
  // warpgroups' segments.
  alignas(1024) float merge[kConsumers][8][kMergeStride];
  float running[kGroups * 8][2][kDim];
  float2 merge_ml[kConsumers][8];
  float2 running_ml[kGroups * 8][2];
  Wave wave[kWaveSlots];
  union {
    Piece listed[32];
    int32_t lengths[Lengths::kMost];
  };
  WaveTile copies[kWaveSlots][kWaveTiles];
  int32_t blocks[kWaveSlots][kWaveTiles][8];
  // A tile's arrival is waited for at its place in its wave, not at its stage: a warp that skips other warps'
  // tiles would mistake a stage's parity of two rounds before for the one it waits for. Every wave completes
  // all of its slot's barriers once.
  uint64_t k_full[kWaveSlots][kWaveTiles], v_full[kWaveSlots][kWaveTiles];
  uint64_t empty[kStages];
  uint64_t wave_full[kWaveSlots], wave_empty[kWaveSlots];
  uint64_t merge_full, merge_free;
  uint64_t verdict;  // guess_was_right is there
  int32_t guess_was_right;

  // kDim / 8 values of four of each of 128 threads.
  __device__ __forceinline__ float4* wide_segment(int warpgroup) {
    static_assert(sizeof(merge) + sizeof(running) >= 2 * 64 * kDim * sizeof(float));
    return reinterpret_cast<float4*>(merge) + warpgroup * (64 * kDim / 4);
  }
  // (m, l) of 64 rows.
  __device__ __forceinline__ float2* wide_segment_ml(int warpgroup) {
    static_assert(sizeof(merge_ml) >= 64 * sizeof(float2) && sizeof(running_ml) >= 64 * sizeof(float2));
    return warpgroup == 0 ? &merge_ml[0][0] : &running_ml[0][0];
  }
};

__device__ __forceinline__ void mbarrier_arrive_many(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

}  // namespace tessera::attention::cuda::sm90
