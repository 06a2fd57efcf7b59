// out[i] = row tokens[i] of a packed table, as f32. A table that is also the head (tied) is stored once.
#pragma once

#include <cstdint>
#include <span>

#include "core/context.h"
#include "ops/packed_weight.h"
#include "ops/rows.h"

namespace tessera::ops {

// out [tokens.size()][k]. REQUIRES: 0 <= tokens[i] < table.n(), out.rows >= tokens.size(). Reads one row's
// bytes a token, scattered over its panel.
void embed(Context& context, const PackedWeight& table, std::span<const int32_t> tokens, RowsView out);

}  // namespace tessera::ops
