// y = x W^T over a PackedWeight, and its fused forms.
//
// Law 1 (row invariance). For one row and one output the arithmetic is one chain, the same for every number
// of rows, thread count, tile and ISA:
//   plain panels   acc = fma(x[k], w[k], acc) for k = 0, 1, 2...
//   blocks         for each block of 32 in order of k: dot = exact integer sum of a * w;
//                  acc = fma(d_w, float(dot) * d_a, acc);  q4_1 also acc = fma(m_w, s_a, acc)
// with a, d_a, s_a of QuantizedRows. Threads divide panels and blocks of rows; k is never split. All ISAs
// give the same bits.
//
// Bytes: a weight is read once for every 96 rows (from memory once, then from cache); rows once for every
// panel from L1/L2. Below ~4 rows the cost is the weight's bytes; from ~8 rows on it is arithmetic.
//
// Shapes: x [rows][k], y [rows][n]. x and y must not overlap. Mistakes are CHECKs. Scratch: slot 0 of worker
// 0.
#pragma once

#include <string>

#include "core/context.h"
#include "ops/packed_weight.h"
#include "ops/quantized_rows.h"
#include "ops/rows.h"

namespace tessera::ops {

// f32 rows (quantised inside, once, where the weight needs it) or rows that are quantised already. The latter
// REQUIRES weight.takes_quantized(). Quantising first or inside gives the same bits.
class LinearInput {
 public:
  LinearInput(const RowsView& x) : x_(x), rows_(x.rows) {}       // NOLINT: implicit on purpose
  LinearInput(const ConstRowsView& x) : x_(x), rows_(x.rows) {}  // NOLINT: implicit on purpose
  LinearInput(const QuantizedRows& x)                            // NOLINT: implicit on purpose
      : quantized_(&x.view()), rows_(x.rows()) {}
  int64_t rows() const { return rows_; }
  const ConstRowsView& f32() const { return x_; }
  const QuantizedRowsView* quantized() const { return quantized_; }  // null for f32 rows

 private:
  ConstRowsView x_;
  const QuantizedRowsView* quantized_ = nullptr;
  int64_t rows_ = 0;
};

// y[r][0..n) = x[r] W^T. y.rows >= x.rows().
void linear(Context& context, const PackedWeight& weight, const LinearInput& x, RowsView y);
// y[r][0..n) += x[r] W^T: one addition after the whole chain (the residual).
void linear_add(Context& context, const PackedWeight& weight, const LinearInput& x, RowsView y);
// For an interleaved weight of gate and up, n = 2 f: y[r][0..f) = silu(x[r] G^T) * (x[r] U^T).
void gate_up_silu(Context& context, const PackedWeight& weight, const LinearInput& x, RowsView y);
// The same, quantised in the epilogue for the next linear; resizes y to [rows][f]. REQUIRES: f % 32 == 0.
void gate_up_silu(Context& context, const PackedWeight& weight, const LinearInput& x, QuantizedRows& y);

// Which kernel each segment of `weight` runs for this many rows, e.g. "q4_1:avx512:6x32". Never empty.
std::string explain_linear(const PackedWeight& weight, int64_t rows);

}  // namespace tessera::ops
