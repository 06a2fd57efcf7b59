#include "ops/cpu/kernels.h"
#include "ops/glu.h"

namespace tessera::ops {

void silu(Context& context, ConstRowsView x, int64_t n, RowsView y) {
  TESSERA_CHECK(y.rows >= x.rows && (x.rows <= 1 || (x.stride >= n && y.stride >= n)));
  context.pool.parallel_for(x.rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) kernels().silu(x.row(r), n, y.row(r));
  });
}

void silu_mul(Context& context, ConstRowsView gate, ConstRowsView up, int64_t n, RowsView y) {
  TESSERA_CHECK(up.rows == gate.rows && y.rows >= gate.rows);
  TESSERA_CHECK(gate.rows <= 1 || (gate.stride >= n && up.stride >= n && y.stride >= n));
  context.pool.parallel_for(gate.rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) kernels().silu_mul(gate.row(r), up.row(r), n, y.row(r));
  });
}

}  // namespace tessera::ops
