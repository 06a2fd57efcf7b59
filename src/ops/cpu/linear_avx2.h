// The linear kernels of this ISA, for its table in rows_avx2.cc.
#pragma once

#include "ops/cpu/kernels.h"

namespace tessera::ops::avx2 {
void linear_q4_0(const BlockArgs& args);
void linear_q4_1(const BlockArgs& args);
void linear_q8_0(const BlockArgs& args);
void linear_f32(const PlainArgs& args);
void linear_f16(const PlainArgs& args);
void linear_bf16(const PlainArgs& args);
}  // namespace tessera::ops::avx2
