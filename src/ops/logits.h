// Helpers over rows of logits. Each reads its rows once.
#pragma once

#include <cstdint>

#include "core/context.h"
#include "ops/rows.h"

namespace tessera::ops {

// out[r] = index of the row's largest value, the lowest index on a tie. A row with a NaN gives -1. REQUIRES:
// n >= 1.
void argmax(Context& context, ConstRowsView x, int64_t n, int32_t* out);
// out[r] = whether the row holds a NaN or an infinity.
void any_nonfinite(Context& context, ConstRowsView x, int64_t n, bool* out);

}  // namespace tessera::ops
