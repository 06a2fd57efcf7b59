// Keys that no row sees may hold NaN, and 0 * NaN is NaN. Intervals are cut when tiles are loaded; what masks
// and trees hide from every row is found here, before the kernel.
#pragma once

#include <cstdint>

#include "attention/cuda/common/features.h"
#include "core/cuda/device.h"

namespace tessera::attention::cuda {

// seen [batch][kv_heads][seqlen_k]: 1 where some row of some head of the group sees the key. Reads the mask
// up to the first row that sees a key, from the last row up: about once a key in ordinary masks.
Status mark_seen_keys(tessera::cuda::Launch& launch, const Features& features, int batch, int heads,
                      int kv_heads, uint8_t* seen);

}  // namespace tessera::attention::cuda
