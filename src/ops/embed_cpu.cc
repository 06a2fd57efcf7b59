#include "ops/embed.h"

#include "core/format.h"

namespace tessera::ops {

void embed(Context& context, const PackedWeight& table, std::span<const int32_t> tokens, RowsView out) {
  const int64_t rows = static_cast<int64_t>(tokens.size());
  TESSERA_CHECK(out.rows >= rows && (out.stride >= table.k() || rows <= 1));
  for (int32_t token : tokens) {
    TESSERA_CHECK_MSG(token >= 0 && token < table.n(), format("token {} of {}", token, table.n()));
  }
  context.pool.parallel_for(rows, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) table.dequantize_row(tokens[static_cast<size_t>(r)], out.row(r));
  });
}

}  // namespace tessera::ops
