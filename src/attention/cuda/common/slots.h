// Who uses which slot of a launch's workspace. The kernels of a context share them, one call after the other.
#pragma once

namespace tessera::attention::cuda {

// Counters that are 0 between launches: whoever raises one sets it back. Nothing else may lie here.
inline constexpr int kCounterSlot = 0;
// Contents last for one call.
inline constexpr int kSeenKeysSlot = 1;                // sm_80 forward and backward, under masks and trees
inline constexpr int kSumsSlot = 2, kRowSumsSlot = 3;  // sm_80 backward: dq in f32; delta
inline constexpr int kPartialSlot = 4;                 // decode and tree: o of partial states
inline constexpr int kPartialStateSlot = 5;            // their m and l
inline constexpr int kRotatedSlot = 6;                 // q after rotation
inline constexpr int kProgressSlot = 7;                // which blocks of a tree's grid are done

}  // namespace tessera::attention::cuda
