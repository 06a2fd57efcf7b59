#include "ops/cpu/kernels.h"
#include "ops/logits.h"

namespace tessera::ops {

void argmax(Context& context, ConstRowsView x, int64_t n, int32_t* out) {
  TESSERA_CHECK(n >= 1 && n <= INT32_MAX && (x.stride >= n || x.rows <= 1));
  context.pool.parallel_for(x.rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) out[r] = static_cast<int32_t>(kernels().argmax(x.row(r), n));
  });
}

void any_nonfinite(Context& context, ConstRowsView x, int64_t n, bool* out) {
  TESSERA_CHECK(x.stride >= n || x.rows <= 1);
  context.pool.parallel_for(x.rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) out[r] = kernels().any_nonfinite(x.row(r), n);
  });
}

}  // namespace tessera::ops
