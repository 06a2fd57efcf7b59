// The packing kernels. Cost: rows of a caller's cache that many query rows read are packed once and walked by
// all; few rows read them where they lie (rows_kernel.inc.h).
#pragma once

#include "attention/cpu/pack_kernels.h"
#include "attention/cpu/row_vectors.inc.h"
#include "simd/vec.h"

namespace tessera::attention {
inline namespace TESSERA_SIMD_NAMESPACE {
namespace pack {

constexpr int64_t kOutRow = 64 * 4;  // bytes of a word of all keys

// The compiler's own vectors: every machine has these shuffles in some form.
typedef uint32_t Words __attribute__((vector_size(16)));
typedef uint16_t Halves __attribute__((vector_size(16)));

template <typename V>
TESSERA_VEC V load(const char* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <typename V>
TESSERA_VEC void store(char* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Part `part` of `parts` of what comes later.
TESSERA_VEC void fetch(const PackAhead* ahead, int part, int parts) {
  if (ahead == nullptr) return;
  const int total = ahead->rows * ahead->lines;
  const int end = total * (part + 1) / parts;
  int line = total * part / parts, row = line / ahead->lines, column = line % ahead->lines;
  for (; line < end; ++line) {
    simd::prefetch_near(ahead->at + row * ahead->row_bytes + column * 64);
    if (++column == ahead->lines) {
      column = 0;
      ++row;
    }
  }
}

// A word of some keys to its row, or, of words that are two f16, both to theirs.
template <bool kHalves>
TESSERA_VEC void put(Words v, char* out, int word) {
  if constexpr (!kHalves) {
    store(out + word * kOutRow, v);
  } else {
    uint16_t low[simd::kLanes] = {}, high[simd::kLanes] = {};
    for (int i = 0; i < 4; ++i) {
      low[i] = static_cast<uint16_t>(v[i]);
      high[i] = static_cast<uint16_t>(v[i] >> 16);
    }
    simd::store_n(reinterpret_cast<float*>(out + 2 * word * kOutRow), simd::load_f16(low), 4);
    simd::store_n(reinterpret_cast<float*>(out + (2 * word + 1) * kOutRow), simd::load_f16(high), 4);
  }
}

// 4 keys x `words`.
template <bool kHalves>
TESSERA_VEC void transpose4(const char* in, int64_t row_bytes, int words, char* out) {
  for (int word = 0; word < words; word += 4, in += 16) {
    const Words a = load<Words>(in), b = load<Words>(in + row_bytes), c = load<Words>(in + 2 * row_bytes),
                d = load<Words>(in + 3 * row_bytes);
    const Words ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5),
                ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const Words cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5),
                cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    put<kHalves>(__builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5), out, word);
    put<kHalves>(__builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7), out, word + 1);
    put<kHalves>(__builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5), out, word + 2);
    put<kHalves>(__builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7), out, word + 3);
  }
}

// kLanes keys x `words`.
template <bool kHalves>
TESSERA_VEC void transpose_wide(const char* in, int64_t row_bytes, int words, char* out) {
  for (int word = 0; word < words; word += 4, in += 16) {
    simd::I32 keys[4];
    transpose_words(in, row_bytes, keys);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      if constexpr (!kHalves) {
        simd::store_i32(out + (word + i) * kOutRow, keys[i]);
      } else {
        simd::F32 wide[2];
        split_halves(keys[i], wide);
        simd::store(reinterpret_cast<float*>(out + 2 * (word + i) * kOutRow), wide[0]);
        simd::store(reinterpret_cast<float*>(out + (2 * (word + i) + 1) * kOutRow), wide[1]);
      }
    }
  }
}

template <bool kHalves>
TESSERA_VEC void transpose_rows(const char* in, int64_t row_bytes, int words, int keys,
                                const PackAhead* ahead, char* out) {
  const int parts = (keys + simd::kLanes - 1) / simd::kLanes;
  int key = 0;
  for (; key + simd::kLanes <= keys; key += simd::kLanes) {
    fetch(ahead, key / simd::kLanes, parts);
    transpose_wide<kHalves>(in + key * row_bytes, row_bytes, words, out + key * 4);
  }
  for (; key + 4 <= keys; key += 4)
    transpose4<kHalves>(in + key * row_bytes, row_bytes, words, out + key * 4);
  for (; key < keys; ++key) {
    for (int word = 0; word < words; ++word) {
      const char* from = in + key * row_bytes + word * 4;
      if constexpr (!kHalves) {
        __builtin_memcpy(out + word * kOutRow + int64_t{key} * 4, from, 4);
      } else {
        uint16_t pair[simd::kLanes] = {};
        __builtin_memcpy(pair, from, 4);
        float wide[simd::kLanes];
        simd::store(wide, simd::load_f16(pair));
        __builtin_memcpy(out + 2 * word * kOutRow + key * 4, wide, 4);
        __builtin_memcpy(out + (2 * word + 1) * kOutRow + key * 4, wide + 1, 4);
      }
    }
  }
}
inline void transpose(const char* in, int64_t row_bytes, int words, int keys, const PackAhead* ahead,
                      char* out) {
  transpose_rows<false>(in, row_bytes, words, keys, ahead, out);
}
inline void transpose_f16(const char* in, int64_t row_bytes, int words, int keys, const PackAhead* ahead,
                          char* out) {
  transpose_rows<true>(in, row_bytes, words, keys, ahead, out);
}

inline void widen(bool f16, const char* in, int64_t row_bytes, int columns, int keys, const PackAhead* ahead,
                  char* out, int64_t out_bytes) {
  for (int key = 0; key < keys; ++key) {
    fetch(ahead, key, keys);
    const char* from = in + key * row_bytes;
    float* to = reinterpret_cast<float*>(out + key * out_bytes);
    for (int d = 0; d < columns; d += simd::kLanes) {
      const int n = columns - d < simd::kLanes ? columns - d : simd::kLanes;
      if (!f16) {
        simd::store_n(to + d, simd::load_n(reinterpret_cast<const float*>(from) + d, n), n);
        continue;
      }
      uint16_t halves[simd::kLanes] = {};
      const char* at = from + d * 2;
      if (n < simd::kLanes) {
        for (int i = 0; i < n; ++i) __builtin_memcpy(halves + i, at + i * 2, 2);
        at = reinterpret_cast<const char*>(halves);
      }
      simd::store_n(to + d, simd::load_f16(reinterpret_cast<const uint16_t*>(at)), n);
    }
  }
}

inline void interleave(const char* in, int64_t row_bytes, int columns, int keys, const PackAhead* ahead,
                       char* out, int64_t out_bytes) {
  for (int key = 0; key < keys; key += 2, out += out_bytes) {
    const char* a = in + key * row_bytes;
    const char* b = key + 1 < keys ? a + row_bytes : a;
    fetch(ahead, key / 2, (keys + 1) / 2);
    int d = 0;
    for (; d + 2 * simd::kLanes <= columns; d += 2 * simd::kLanes) {
      simd::I32 pairs[2];
      interleave_rows(a + d * 2, b + d * 2, pairs);
      simd::store_i32(out + d * 4, pairs[0]);
      simd::store_i32(out + d * 4 + sizeof pairs[0], pairs[1]);
    }
    for (; d < columns; d += 8) {
      const Halves x = load<Halves>(a + d * 2), y = load<Halves>(b + d * 2);
      store(out + d * 4, __builtin_shufflevector(x, y, 0, 8, 1, 9, 2, 10, 3, 11));
      store(out + d * 4 + 16, __builtin_shufflevector(x, y, 4, 12, 5, 13, 6, 14, 7, 15));
    }
  }
}

}  // namespace pack

inline constexpr PackKernels kPackTable = {pack::transpose, pack::transpose_f16, pack::interleave,
                                           pack::widen};

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::attention
