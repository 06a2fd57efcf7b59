#include "attention/pack_tile.h"

#include <cstring>

#include "attention/cpu/pack_kernels.h"

namespace tessera::attention {

void pack_tile(const KvFormat& format, const char* k, int64_t k_row_bytes, const char* v, int64_t v_row_bytes,
               int keys, char* pair, const PackAhead* next_k, const PackAhead* next_v) {
  const PackKernels& kernels = pack_kernels();
  char* v_tile = pair + format.k_tile_bytes();
  const int64_t v_step = int64_t{format.v_width()} * 4;
  if (format.dtype == DType::f32) {
    kernels.transpose(k, k_row_bytes, format.head_dim, keys, next_k, pair);
    for (int key = 0; key < keys; ++key) {
      if (next_v != nullptr && key < next_v->rows) {
        for (int line = 0; line < next_v->lines; ++line)
          __builtin_prefetch(next_v->at + key * next_v->row_bytes + line * 64);
      }
      std::memcpy(v_tile + key * v_step, v + key * v_row_bytes, static_cast<size_t>(format.v_head_dim) * 4);
    }
    return;
  }
  // Pairs along d lie side by side in a row already: they move as words. The missing half of an odd last pair
  // of V is never read.
  kernels.transpose(k, k_row_bytes, format.head_dim / 2, keys, next_k, pair);
  kernels.interleave(v, v_row_bytes, format.v_head_dim, keys, next_v, v_tile, v_step);
}

}  // namespace tessera::attention
