// What the ways of running attention on the CPU share: workspace slots, units of scores, sizes of work.
#pragma once

#include <cstdint>
#include <numbers>

#include "tessera/dtype.h"

namespace tessera::attention {

// Scores are in units of log2 inside.
inline constexpr double kLog2e = std::numbers::log2e;
inline constexpr double kLn2 = std::numbers::ln2;

// Slots of a worker's workspace. A call uses each for one thing at a time; slot 0 is its callers'.
inline constexpr int kInputSlot = 1;    // worker 0: inputs as the kernels read them (tiles, or rows as f32)
inline constexpr int kSharedSlot = 2;   // worker 0: what workers hand to each other (partial states, sums)
inline constexpr int kScratchSlot = 3;  // every worker: its own

// Stacked query rows of an item of many rows: 24 registers of rows on AVX-512; 96 to 768 measured equal.
inline constexpr int kItemRows = 192;
// An item is split at segment edges when it is more than this part of a thread's fair share.
inline constexpr int64_t kItemsPerThread = 4;

// The dtypes of q, k, v and o, and the bytes of one element.
constexpr bool is_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}
constexpr int64_t element_bytes(DType dtype) {
  return dtype == DType::f32 ? 4 : 2;
}

constexpr int64_t align64(int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

}  // namespace tessera::attention
