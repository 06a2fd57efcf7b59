// SiLU and the gated unit. Sources: Elfwing et al. 2017 (SiLU); Shazeer, "GLU variants improve Transformer",
// 2020.
#pragma once

#include "core/context.h"
#include "ops/rows.h"

namespace tessera::ops {

// y = x / (1 + exp(-x)) over n columns; y may be x. x = -inf gives NaN (-inf / inf).
void silu(Context& context, ConstRowsView x, int64_t n, RowsView y);
// y = silu(gate) * up; y may be gate or up. The bits of gate_up_silu's epilogue.
void silu_mul(Context& context, ConstRowsView gate, ConstRowsView up, int64_t n, RowsView y);

}  // namespace tessera::ops
