// RMSNorm: y = x / sqrt(mean(x^2) + epsilon) * weight.
// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, equation 4.
//
// The sum of squares of a row is taken in one order that depends on n and the ISA alone. f32 throughout; the
// division and the square root are correctly rounded. A row is read once from memory and written once.
#pragma once

#include "core/context.h"
#include "ops/quantized_rows.h"
#include "ops/rows.h"

namespace tessera::ops {

struct RmsNorm {
  const float* weight = nullptr;  // [n]
  int64_t n = 0;
  float epsilon = 1e-5f;
};

// y[r][0..n) for every row of x. y may be x.
void rms_norm(Context& context, const RmsNorm& norm, ConstRowsView x, RowsView y);
// The same, quantised for the next linear; resizes y. The bits of quantize(rms_norm(x)). REQUIRES: n % 32 ==
// 0.
void rms_norm(Context& context, const RmsNorm& norm, ConstRowsView x, QuantizedRows& y);
// residual += delta, then the norm of the sum. The bits of the two steps apart.
void add_rms_norm(Context& context, const RmsNorm& norm, ConstRowsView delta, RowsView residual, RowsView y);
void add_rms_norm(Context& context, const RmsNorm& norm, ConstRowsView delta, RowsView residual,
                  QuantizedRows& y);

}  // namespace tessera::ops
