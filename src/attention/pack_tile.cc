#include "attention/pack_tile.h"

#include "attention/cpu/pack_kernels.h"
#include "core/check.h"

namespace tessera::attention {

void pack_tile(const KvFormat& format, const PackRows& rows, char* pair) {
  const PackKernels& kernels = pack_kernels();
  const bool f16 = rows.dtype == DType::f16;
  TESSERA_CHECK(rows.dtype == format.dtype || (f16 && format.dtype == DType::f32));
  char* k_tile = pair + rows.first_key * 4;
  char* v_tile = pair + format.k_tile_bytes();
  const int64_t v_step = int64_t{format.v_width()} * 4;
  if (format.dtype == DType::f32) {
    if (f16) {
      kernels.transpose_f16(rows.k, rows.k_row_bytes, format.head_dim / 2, rows.keys, rows.k_ahead, k_tile);
    } else {
      kernels.transpose(rows.k, rows.k_row_bytes, format.head_dim, rows.keys, rows.k_ahead, k_tile);
    }
    kernels.widen(f16, rows.v, rows.v_row_bytes, format.v_head_dim, rows.keys, rows.v_ahead,
                  v_tile + rows.first_key * v_step, v_step);
    return;
  }
  // Pairs along d lie side by side in a row already: they move as words. The missing half of an odd last pair
  // of V is never read.
  TESSERA_CHECK(rows.first_key % 2 == 0);
  kernels.transpose(rows.k, rows.k_row_bytes, format.head_dim / 2, rows.keys, rows.k_ahead, k_tile);
  kernels.interleave(rows.v, rows.v_row_bytes, format.v_head_dim, rows.keys, rows.v_ahead,
                     v_tile + rows.first_key / 2 * v_step, v_step);
}

}  // namespace tessera::attention
