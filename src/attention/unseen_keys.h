// Keys that no row sees may hold NaN, and 0 * NaN is NaN: rows of K or V that are not finite are looked at
// more closely before a kernel multiplies them.
#pragma once

#include <cstdint>

#include "attention/sequences.h"

namespace tessera::attention {

// Whether all of the row's elements are finite. dtype: f32, f16 or bf16.
bool finite_row(DType dtype, const char* row, int count);

// Rule 2 of tessera/attention.h for any row of the heads of one kv head. Costs a walk over the rows.
bool any_row_sees(const AttentionProblem& p, const SequenceView& s, int64_t batch, int64_t kv_head,
                  int64_t key);

}  // namespace tessera::attention
