#include "ops/cpu/kernels.h"
#include "ops/rms_norm.h"

namespace tessera::ops {
namespace {

// A row of the model costs ~0.1 us, so rows are handed out in tiles.
constexpr int64_t kGrain = kTileRows;

void check(const RmsNorm& norm, ConstRowsView x) {
  TESSERA_CHECK(norm.n >= 1 && norm.weight != nullptr && (x.stride >= norm.n || x.rows <= 1));
}

}  // namespace

void rms_norm(Context& context, const RmsNorm& norm, ConstRowsView x, RowsView y) {
  check(norm, x);
  TESSERA_CHECK(y.rows >= x.rows && (y.stride >= norm.n || y.rows <= 1));
  const Kernels& table = kernels();
  context.pool.parallel_for(x.rows, kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r)
      table.rms_norm(x.row(r), norm.weight, norm.n, norm.epsilon, y.row(r));
  });
}

void rms_norm(Context& context, const RmsNorm& norm, ConstRowsView x, QuantizedRows& y) {
  check(norm, x);
  y.resize(x.rows, norm.n);
  const Kernels& table = kernels();
  context.pool.parallel_for(x.rows, kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      table.rms_norm_quantized(x.row(r), norm.weight, norm.n, norm.epsilon, y.view().row(r));
    }
  });
}

void add_rms_norm(Context& context, const RmsNorm& norm, ConstRowsView delta, RowsView residual, RowsView y) {
  check(norm, residual);
  TESSERA_CHECK(delta.rows == residual.rows && y.rows >= residual.rows &&
                (y.stride >= norm.n || y.rows <= 1));
  const Kernels& table = kernels();
  context.pool.parallel_for(residual.rows, kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      table.add(delta.row(r), norm.n, residual.row(r));
      table.rms_norm(residual.row(r), norm.weight, norm.n, norm.epsilon, y.row(r));
    }
  });
}

void add_rms_norm(Context& context, const RmsNorm& norm, ConstRowsView delta, RowsView residual,
                  QuantizedRows& y) {
  check(norm, residual);
  TESSERA_CHECK(delta.rows == residual.rows);
  y.resize(residual.rows, norm.n);
  const Kernels& table = kernels();
  context.pool.parallel_for(residual.rows, kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      table.add(delta.row(r), norm.n, residual.row(r));
      table.rms_norm_quantized(residual.row(r), norm.weight, norm.n, norm.epsilon, y.view().row(r));
    }
  });
}

}  // namespace tessera::ops
