// QuantizedRows: activations as int8 per 32 elements, in the order in which the linear kernels read them.
//
// The quantiser (one for the whole library; every ISA gives the same bits). For a block of 32 elements x:
//   a = max |x|;  d = a / 127;  q = round_to_nearest_even(x * (127 / a));  s = d * sum(q)
//   a < 2^-119 (127 / a would overflow): d = s = 0 and q = 0
//   any x is NaN or infinite:            d = s = NaN and q = 0, so every output of that row becomes NaN
// The arithmetic is f32, one rounding an operation.
//
// Layout: tiles of kTileRows (6) rows, the last one of what is left. A tile of m rows is, for each block of
// 32 in order of k, 48 m bytes: int8 q[m][32], f32 d[m], f32 s[m], i32 minus8[m] = -8 sum(q), i32 minus128[m]
// = -128 sum(q). The two integers undo the offsets of unsigned weights and cost the kernels one load instead
// of a multiplication.
#pragma once

#include <cstdint>

#include "core/buffer.h"
#include "core/context.h"
#include "ops/quant_layout.h"
#include "ops/rows.h"

namespace tessera::ops {

struct QuantizedRowsView {
  uint8_t* data = nullptr;
  int64_t rows = 0;
  int64_t k = 0;  // a multiple of 32

  int64_t blocks() const { return k / kQuantBlock; }
  static int64_t bytes(int64_t rows, int64_t k) { return rows * (k / kQuantBlock) * kQuantBytes; }
  int64_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  uint8_t* tile(int64_t index) const { return data + index * kTileRows * blocks() * kQuantBytes; }
  int tile_rows(int64_t index) const {
    const int64_t left = rows - index * kTileRows;
    return static_cast<int>(left < kTileRows ? left : kTileRows);
  }
  QuantizedRowPointer row(int64_t index) const {
    const int64_t t = index / kTileRows, lane = index % kTileRows, m = tile_rows(t);
    uint8_t* base = tile(t);
    return {base + lane * kQuantBlock, base + m * kQuantBlock + lane * 4, m * 4, m * kQuantBytes};
  }
};

// Owned and grow-only. Not thread-safe.
class QuantizedRows {
 public:
  // Contents become unspecified. REQUIRES: k % 32 == 0. Memory out is an InternalError (the step fails).
  void resize(int64_t rows, int64_t k);
  const QuantizedRowsView& view() const { return view_; }
  int64_t rows() const { return view_.rows; }
  int64_t k() const { return view_.k; }

 private:
  Buffer storage_;
  QuantizedRowsView view_;
};

// Quantises x [x.rows][k]; resizes `out`. Parallel over rows. REQUIRES: k % 32 == 0.
void quantize(Context& context, ConstRowsView x, int64_t k, QuantizedRows& out);
// The same into memory of the caller. REQUIRES: out.rows == x.rows.
void quantize(Context& context, ConstRowsView x, const QuantizedRowsView& out);
// One row back to f32: out[k] = d * q. For tests and explanations.
void dequantize_row(const QuantizedRowsView& rows, int64_t row, float* out);

}  // namespace tessera::ops
