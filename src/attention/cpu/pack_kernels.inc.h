// The packing kernels. Cost: a decode step over rows in a caller's cache packs every key that it reads, so
// this runs at the speed of the cache below it or is the whole step. On a Zen 5 core, bf16, head_dim 64: 4
// keys at a time by 128-bit shuffles made decode 7.5 GB/s; 16 at a time as here (128-bit pieces of rows
// loaded straight to their lane, which costs no shuffle, then a 4x4 transpose in every lane) lets the walk
// set the pace.
#pragma once

#include "attention/cpu/pack_kernels.h"
#include "simd/vec.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

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
    const Words ab_low = __builtin_shuffle(a, b, Words{0, 4, 1, 5}),
                ab_high = __builtin_shuffle(a, b, Words{2, 6, 3, 7});
    const Words cd_low = __builtin_shuffle(c, d, Words{0, 4, 1, 5}),
                cd_high = __builtin_shuffle(c, d, Words{2, 6, 3, 7});
    put<kHalves>(__builtin_shuffle(ab_low, cd_low, Words{0, 1, 4, 5}), out, word);
    put<kHalves>(__builtin_shuffle(ab_low, cd_low, Words{2, 3, 6, 7}), out, word + 1);
    put<kHalves>(__builtin_shuffle(ab_high, cd_high, Words{0, 1, 4, 5}), out, word + 2);
    put<kHalves>(__builtin_shuffle(ab_high, cd_high, Words{2, 3, 6, 7}), out, word + 3);
  }
}

#if defined(__AVX512F__)
constexpr int kWideKeys = 16;
// Rows i, i + 4, i + 8, i + 12: their 16 bytes to lanes 0 to 3.
TESSERA_VEC __m512i gather_lanes(const char* p, int64_t row_bytes) {
  const auto piece = [](const char* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); };
  __m512i v = _mm512_broadcast_i32x4(piece(p));
  v = _mm512_mask_broadcast_i32x4(v, 0x00f0, piece(p + 4 * row_bytes));
  v = _mm512_mask_broadcast_i32x4(v, 0x0f00, piece(p + 8 * row_bytes));
  return _mm512_mask_broadcast_i32x4(v, 0xf000, piece(p + 12 * row_bytes));
}
template <bool kHalves>
TESSERA_VEC void put(__m512i v, char* out, int word) {
  if constexpr (!kHalves) {
    _mm512_storeu_si512(out + word * kOutRow, v);
  } else {
    const __m512 low = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
    const __m512 high = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16)));
    _mm512_storeu_ps(out + 2 * word * kOutRow, low);
    _mm512_storeu_ps(out + (2 * word + 1) * kOutRow, high);
  }
}
template <bool kHalves>
TESSERA_VEC void transpose_wide(const char* in, int64_t row_bytes, int words, char* out) {
  for (int word = 0; word < words; word += 4, in += 16) {
    const __m512i a = gather_lanes(in, row_bytes), b = gather_lanes(in + row_bytes, row_bytes),
                  c = gather_lanes(in + 2 * row_bytes, row_bytes),
                  d = gather_lanes(in + 3 * row_bytes, row_bytes);
    const __m512i ab_low = _mm512_unpacklo_epi32(a, b), ab_high = _mm512_unpackhi_epi32(a, b);
    const __m512i cd_low = _mm512_unpacklo_epi32(c, d), cd_high = _mm512_unpackhi_epi32(c, d);
    put<kHalves>(_mm512_unpacklo_epi64(ab_low, cd_low), out, word);
    put<kHalves>(_mm512_unpackhi_epi64(ab_low, cd_low), out, word + 1);
    put<kHalves>(_mm512_unpacklo_epi64(ab_high, cd_high), out, word + 2);
    put<kHalves>(_mm512_unpackhi_epi64(ab_high, cd_high), out, word + 3);
  }
}
constexpr int kWideColumns = 32;
TESSERA_VEC void interleave_wide(const char* a, const char* b, char* out) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7,
                                       38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const __m512i x = _mm512_loadu_si512(a), y = _mm512_loadu_si512(b);
  _mm512_storeu_si512(out, _mm512_permutex2var_epi16(x, low, y));
  _mm512_storeu_si512(out + 64, _mm512_permutex2var_epi16(x, high, y));
}
#elif defined(__AVX2__)
constexpr int kWideKeys = 8;
TESSERA_VEC __m256i gather_lanes(const char* p, int64_t row_bytes) {
  const auto piece = [](const char* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); };
  return _mm256_inserti128_si256(_mm256_castsi128_si256(piece(p)), piece(p + 4 * row_bytes), 1);
}
template <bool kHalves>
TESSERA_VEC void put(__m256i v, char* out, int word) {
  if constexpr (!kHalves) {
    store(out + word * kOutRow, v);
  } else {
    const __m256i low = _mm256_and_si256(v, _mm256_set1_epi32(0xffff)), high = _mm256_srli_epi32(v, 16);
    const __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
    store(out + 2 * word * kOutRow, _mm256_cvtph_ps(_mm256_castsi256_si128(both)));
    store(out + (2 * word + 1) * kOutRow, _mm256_cvtph_ps(_mm256_extracti128_si256(both, 1)));
  }
}
template <bool kHalves>
TESSERA_VEC void transpose_wide(const char* in, int64_t row_bytes, int words, char* out) {
  for (int word = 0; word < words; word += 4, in += 16) {
    const __m256i a = gather_lanes(in, row_bytes), b = gather_lanes(in + row_bytes, row_bytes),
                  c = gather_lanes(in + 2 * row_bytes, row_bytes),
                  d = gather_lanes(in + 3 * row_bytes, row_bytes);
    const __m256i ab_low = _mm256_unpacklo_epi32(a, b), ab_high = _mm256_unpackhi_epi32(a, b);
    const __m256i cd_low = _mm256_unpacklo_epi32(c, d), cd_high = _mm256_unpackhi_epi32(c, d);
    put<kHalves>(_mm256_unpacklo_epi64(ab_low, cd_low), out, word);
    put<kHalves>(_mm256_unpackhi_epi64(ab_low, cd_low), out, word + 1);
    put<kHalves>(_mm256_unpacklo_epi64(ab_high, cd_high), out, word + 2);
    put<kHalves>(_mm256_unpackhi_epi64(ab_high, cd_high), out, word + 3);
  }
}
constexpr int kWideColumns = 16;
TESSERA_VEC void interleave_wide(const char* a, const char* b, char* out) {
  const __m256i x = load<__m256i>(a), y = load<__m256i>(b);
  const __m256i low = _mm256_unpacklo_epi16(x, y), high = _mm256_unpackhi_epi16(x, y);
  store(out, _mm256_permute2x128_si256(low, high, 0x20));
  store(out + 32, _mm256_permute2x128_si256(low, high, 0x31));
}
#else
constexpr int kWideKeys = 4;
template <bool kHalves>
TESSERA_VEC void transpose_wide(const char* in, int64_t row_bytes, int words, char* out) {
  transpose4<kHalves>(in, row_bytes, words, out);
}
constexpr int kWideColumns = 8;
TESSERA_VEC void interleave_wide(const char* a, const char* b, char* out) {
  const Halves x = load<Halves>(a), y = load<Halves>(b);
  store(out, __builtin_shuffle(x, y, Halves{0, 8, 1, 9, 2, 10, 3, 11}));
  store(out + 16, __builtin_shuffle(x, y, Halves{4, 12, 5, 13, 6, 14, 7, 15}));
}
#endif

template <bool kHalves>
TESSERA_VEC void transpose_rows(const char* in, int64_t row_bytes, int words, int keys,
                                const PackAhead* ahead, char* out) {
  const int parts = (keys + kWideKeys - 1) / kWideKeys;
  int key = 0;
  for (; key + kWideKeys <= keys; key += kWideKeys) {
    fetch(ahead, key / kWideKeys, parts);
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
    for (; d + kWideColumns <= columns; d += kWideColumns) interleave_wide(a + d * 2, b + d * 2, out + d * 4);
    for (; d < columns; d += 8) {
      const Halves x = load<Halves>(a + d * 2), y = load<Halves>(b + d * 2);
      store(out + d * 4, __builtin_shuffle(x, y, Halves{0, 8, 1, 9, 2, 10, 3, 11}));
      store(out + d * 4 + 16, __builtin_shuffle(x, y, Halves{4, 12, 5, 13, 6, 14, 7, 15}));
    }
  }
}

}  // namespace pack

inline constexpr PackKernels kPackTable = {pack::transpose, pack::transpose_f16, pack::interleave,
                                           pack::widen};

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::attention
