// Rows of K and V as vectors of the tile layout (kv_storage.h): words of kLanes keys, elements of two keys
// side by side. The packing kernels store them, the kernels that read rows multiply them. On a Zen 5 core 16
// keys at a time as here (128-bit pieces of rows loaded straight to their lane, which costs no shuffle, then
// a 4x4 transpose in every lane) is more than twice as fast as 4 keys at a time by 128-bit shuffles.
#pragma once

#include "simd/vec.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tessera::attention {
inline namespace TESSERA_SIMD_NAMESPACE {

// transpose_words: in: kLanes rows, row_bytes apart -> out[i], lane j: word i of row j, four words.
// split_halves: lanes of two f16 -> both as f32.
// interleave_rows: 2 * kLanes 16-bit elements of each row -> out[i], lane j: element kLanes * i + j of `a` in
// the low half, of `b` in the high one.
#if defined(__AVX512F__)

// Rows i, i + 4, i + 8, i + 12: their 16 bytes to lanes 0 to 3.
TESSERA_VEC simd::I32 gather_lanes(const char* p, int64_t row_bytes) {
  const auto piece = [](const char* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); };
  __m512i v = _mm512_broadcast_i32x4(piece(p));
  v = _mm512_mask_broadcast_i32x4(v, 0x00f0, piece(p + 4 * row_bytes));
  v = _mm512_mask_broadcast_i32x4(v, 0x0f00, piece(p + 8 * row_bytes));
  return {_mm512_mask_broadcast_i32x4(v, 0xf000, piece(p + 12 * row_bytes))};
}
TESSERA_VEC void split_halves(simd::I32 halves, simd::F32 (&out)[2]) {
  out[0].v = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(halves.v));
  out[1].v = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(halves.v, 16)));
}
// The same of rows in registers.
TESSERA_VEC void interleave_halves(simd::I32 a, simd::I32 b, simd::I32 (&out)[2]) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7,
                                       38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  out[0].v = _mm512_permutex2var_epi16(a.v, low, b.v);
  out[1].v = _mm512_permutex2var_epi16(a.v, high, b.v);
}
TESSERA_VEC void interleave_rows(const char* a, const char* b, simd::I32 (&out)[2]) {
  interleave_halves(simd::load_i32(a), simd::load_i32(b), out);
}

#elif defined(__AVX2__)

TESSERA_VEC simd::I32 gather_lanes(const char* p, int64_t row_bytes) {
  const auto piece = [](const char* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); };
  return {_mm256_inserti128_si256(_mm256_castsi128_si256(piece(p)), piece(p + 4 * row_bytes), 1)};
}
TESSERA_VEC void split_halves(simd::I32 halves, simd::F32 (&out)[2]) {
  const __m256i low = _mm256_and_si256(halves.v, _mm256_set1_epi32(0xffff)),
                high = _mm256_srli_epi32(halves.v, 16);
  const __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
  out[0].v = _mm256_cvtph_ps(_mm256_castsi256_si128(both));
  out[1].v = _mm256_cvtph_ps(_mm256_extracti128_si256(both, 1));
}
TESSERA_VEC void interleave_rows(const char* a, const char* b, simd::I32 (&out)[2]) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)),
                y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
  const __m256i low = _mm256_unpacklo_epi16(x, y), high = _mm256_unpackhi_epi16(x, y);
  out[0].v = _mm256_permute2x128_si256(low, high, 0x20);
  out[1].v = _mm256_permute2x128_si256(low, high, 0x31);
}

#else

TESSERA_VEC void transpose_words(const char* in, int64_t row_bytes, simd::I32 (&out)[4]) {
  using simd::Int4;
  Int4 row[4];
  for (int i = 0; i < 4; ++i) row[i] = simd::load_i32(in + i * row_bytes).v;
  const Int4 ab_low = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5),
             ab_high = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
  const Int4 cd_low = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5),
             cd_high = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
  out[0].v = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
  out[1].v = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
  out[2].v = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
  out[3].v = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}
TESSERA_VEC void split_halves(simd::I32 halves, simd::F32 (&out)[2]) {
  uint16_t low[4], high[4];
  for (int i = 0; i < 4; ++i) {
    low[i] = static_cast<uint16_t>(halves.v[i]);
    high[i] = static_cast<uint16_t>(static_cast<uint32_t>(halves.v[i]) >> 16);
  }
  out[0] = simd::load_f16(low);
  out[1] = simd::load_f16(high);
}
TESSERA_VEC void interleave_rows(const char* a, const char* b, simd::I32 (&out)[2]) {
  typedef uint16_t Halves __attribute__((vector_size(16)));
  Halves x, y;
  __builtin_memcpy(&x, a, sizeof x);
  __builtin_memcpy(&y, b, sizeof y);
  const Halves low = __builtin_shufflevector(x, y, 0, 8, 1, 9, 2, 10, 3, 11),
               high = __builtin_shufflevector(x, y, 4, 12, 5, 13, 6, 14, 7, 15);
  __builtin_memcpy(&out[0].v, &low, sizeof low);
  __builtin_memcpy(&out[1].v, &high, sizeof high);
}

#endif

#if defined(__AVX2__)
TESSERA_VEC void transpose_words(const char* in, int64_t row_bytes, simd::I32 (&out)[4]) {
  using simd::I32;
  const I32 a = gather_lanes(in, row_bytes), b = gather_lanes(in + row_bytes, row_bytes);
  const I32 c = gather_lanes(in + 2 * row_bytes, row_bytes), d = gather_lanes(in + 3 * row_bytes, row_bytes);
  const I32 ab_low = simd::unpack_low(a, b), ab_high = simd::unpack_high(a, b);
  const I32 cd_low = simd::unpack_low(c, d), cd_high = simd::unpack_high(c, d);
  out[0] = simd::unpack_low_pairs(ab_low, cd_low);
  out[1] = simd::unpack_high_pairs(ab_low, cd_low);
  out[2] = simd::unpack_low_pairs(ab_high, cd_high);
  out[3] = simd::unpack_high_pairs(ab_high, cd_high);
}
#endif

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::attention
