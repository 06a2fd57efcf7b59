// Rows of K and V -> one tile pair (the layout of kv_storage.h), many keys at a time.
#pragma once

#include <cstdint>

#include "attention/cpu/pack_kernels.h"
#include "attention/kv_storage.h"

namespace tessera::attention {

// Some rows of a tile: row r at k + r * k_row_bytes and v + r * v_row_bytes, head_dim and v_head_dim elements
// of them.
struct PackRows {
  DType dtype;  // format.dtype, or f16 for a format of f32
  const char* k;
  int64_t k_row_bytes;
  const char* v;
  int64_t v_row_bytes;
  int first_key;  // in the tile; even for bf16
  int keys;
  const PackAhead* k_ahead = nullptr;  // fetched meanwhile
  const PackAhead* v_ahead = nullptr;
};
// Writes keys [first_key, first_key + keys) of the pair; what lies around them stays as it is. REQUIRES: 1 <=
// keys, first_key + keys <= kKeyTile.
void pack_tile(const KvFormat& format, const PackRows& rows, char* pair);

}  // namespace tessera::attention
