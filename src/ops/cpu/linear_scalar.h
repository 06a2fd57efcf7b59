// The linear kernels of this ISA, for its table in rows_scalar.cc.
#pragma once

#include "ops/cpu/kernels.h"

namespace tessera::ops::scalar {
void linear_q4_0(const Tile& tile, const BlockInput& input);
void linear_q4_1(const Tile& tile, const BlockInput& input);
void linear_q8_0(const Tile& tile, const BlockInput& input);
void linear_f32(const Tile& tile, const PlainInput& input);
void linear_f16(const Tile& tile, const PlainInput& input);
void linear_bf16(const Tile& tile, const PlainInput& input);
}  // namespace tessera::ops::scalar
