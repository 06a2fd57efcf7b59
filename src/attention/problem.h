// What the kernels and the reference share: the problem (tessera/attention.h) and where keys are cut.
#pragma once

#include <cstdint>

#include "tessera/attention.h"

namespace tessera::attention {

// Keys are cut by position alone, counted from position 0 (law 1). Constant per backend.
inline constexpr int kKeyTile = 64;
inline constexpr int kSegment = 512;
inline constexpr int kTilesPerSegment = kSegment / kKeyTile;

// What validate() checks without looking into the problem's arrays, which may be a device's.
Status validate_sizes_and_options(const AttentionProblem& problem);

// An additive mask below this hides the key (rule 3).
inline constexpr float kHidingMask = -5e29f;

}  // namespace tessera::attention
