#include "ops/quantized_rows.h"

#include <cstring>

#include "ops/cpu/kernels.h"

namespace tessera::ops {

void QuantizedRows::resize(int64_t rows, int64_t k) {
  TESSERA_CHECK(rows >= 0 && k >= 0 && k % kQuantBlock == 0);
  const size_t bytes = static_cast<size_t>(QuantizedRowsView::bytes(rows, k));
  if (storage_.size() < bytes) {
    Result<Buffer> grown = Buffer::create(bytes, "quantised rows");
    TESSERA_CHECK_MSG(grown.ok(), grown.status().message());
    storage_ = std::move(grown).value();
  }
  view_ = {storage_.as<uint8_t>(), rows, k};
}

void quantize(Context& context, ConstRowsView x, int64_t k, QuantizedRows& out) {
  out.resize(x.rows, k);
  quantize(context, x, out.view());
}

void quantize(Context& context, ConstRowsView x, const QuantizedRowsView& out) {
  TESSERA_CHECK(out.rows == x.rows && x.stride >= out.k);
  const Kernels& table = kernels();
  context.pool.parallel_for(x.rows, kTileRows, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) table.quantize(x.row(r), out.blocks(), out.row(r));
  });
}

void dequantize_row(const QuantizedRowsView& rows, int64_t row, float* out) {
  const QuantizedRowPointer at = rows.row(row);
  for (int64_t b = 0; b < rows.blocks(); ++b) {
    float d;
    std::memcpy(&d, at.f + b * at.step, sizeof d);
    for (int i = 0; i < kQuantBlock; ++i) {
      out[b * kQuantBlock + i] = d * static_cast<float>(static_cast<int8_t>(at.q[b * at.step + i]));
    }
  }
}

}  // namespace tessera::ops
