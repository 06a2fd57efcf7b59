#include "attention/pack_tile.h"

#include <cstring>

namespace tessera::attention {
namespace {

// The compiler's own vectors: every x86-64 has these shuffles, and packing is bound by memory, not by their
// width.
typedef uint32_t Words __attribute__((vector_size(16)));
typedef uint16_t Halves __attribute__((vector_size(16)));

template <typename V>
V load(const char* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <typename V>
void store(char* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

// in: [keys] rows of `words` 32-bit words -> out [words][kKeyTile].
void transpose_words(const char* in, int64_t row_bytes, int words, int keys, char* out) {
  constexpr int64_t kOutRow = kKeyTile * 4;
  int key = 0;
  for (; key + 4 <= keys; key += 4) {
    const char* from = in + key * row_bytes;
    char* to = out + key * 4;
    for (int word = 0; word < words; word += 4, from += 16, to += 4 * kOutRow) {
      const Words a = load<Words>(from), b = load<Words>(from + row_bytes),
                  c = load<Words>(from + 2 * row_bytes), d = load<Words>(from + 3 * row_bytes);
      const Words ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5),
                  ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const Words cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5),
                  cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
      store(to, __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5));
      store(to + kOutRow, __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7));
      store(to + 2 * kOutRow, __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5));
      store(to + 3 * kOutRow, __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7));
    }
  }
  for (; key < keys; ++key) {
    for (int word = 0; word < words; ++word) {
      std::memcpy(out + word * kOutRow + key * 4, in + key * row_bytes + word * 4, 4);
    }
  }
}

// Two rows of 16-bit elements -> pairs. columns is a multiple of 8.
void interleave(const char* first, const char* second, int columns, char* out) {
  for (int d = 0; d < columns; d += 8) {
    const Halves a = load<Halves>(first + d * 2), b = load<Halves>(second + d * 2);
    store(out + d * 4, __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11));
    store(out + d * 4 + 16, __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15));
  }
}

}  // namespace

void pack_tile(const KvFormat& format, const char* k, int64_t k_row_bytes, const char* v, int64_t v_row_bytes,
               int keys, char* pair) {
  char* v_tile = pair + format.k_tile_bytes();
  const int64_t v_step = int64_t{format.v_width()} * 4;
  if (format.dtype == DType::f32) {
    transpose_words(k, k_row_bytes, format.head_dim, keys, pair);
    for (int key = 0; key < keys; ++key) {
      std::memcpy(v_tile + key * v_step, v + key * v_row_bytes, static_cast<size_t>(format.v_head_dim) * 4);
    }
    return;
  }
  // Pairs along d lie side by side in a row already: they move as words.
  transpose_words(k, k_row_bytes, format.head_dim / 2, keys, pair);
  for (int key = 0; key < keys; key += 2) {
    const char* first = v + key * v_row_bytes;
    // The missing half of an odd last pair is never read.
    interleave(first, key + 1 < keys ? first + v_row_bytes : first, format.v_head_dim,
               v_tile + key / 2 * v_step);
  }
}

}  // namespace tessera::attention
