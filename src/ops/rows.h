// Views of f32 matrices whose rows are the tokens of a step. They own nothing.
#pragma once

#include <cstdint>

namespace tessera::ops {

// [rows][columns], columns contiguous; `stride` elements from row to row, at least the columns that an op
// touches.
struct RowsView {
  float* data = nullptr;
  int64_t rows = 0;
  int64_t stride = 0;
  float* row(int64_t index) const { return data + index * stride; }
};

struct ConstRowsView {
  const float* data = nullptr;
  int64_t rows = 0;
  int64_t stride = 0;
  ConstRowsView() = default;
  ConstRowsView(const float* data_in, int64_t rows_in, int64_t stride_in)
      : data(data_in), rows(rows_in), stride(stride_in) {}
  ConstRowsView(const RowsView& view)  // NOLINT: implicit on purpose
      : data(view.data), rows(view.rows), stride(view.stride) {}
  const float* row(int64_t index) const { return data + index * stride; }
};

}  // namespace tessera::ops
