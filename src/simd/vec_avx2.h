// The vec names on AVX2 with FMA and F16C. Include simd/vec.h instead.
#pragma once

#include <immintrin.h>

namespace tessera::simd {
inline namespace TESSERA_SIMD_NAMESPACE {

inline constexpr int kLanes = 8;
inline constexpr const char* kName = "avx2";
inline constexpr bool kHasBf16Dot = false;

struct F32 {
  __m256 v;
};
struct I32 {
  __m256i v;
};
struct Mask {
  __m256 v;  // all bits of a lane set or clear
};

TESSERA_VEC I32 and_(I32 a, I32 b) {
  return {_mm256_and_si256(a.v, b.v)};
}
TESSERA_VEC F32 as_f32(I32 a) {
  return {_mm256_castsi256_ps(a.v)};
}
TESSERA_VEC I32 as_i32(F32 a) {
  return {_mm256_castps_si256(a.v)};
}

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::simd

#define TESSERA_MM(name) _mm256_##name
#include "simd/vec_x86.h"
#undef TESSERA_MM

namespace tessera::simd {
inline namespace TESSERA_SIMD_NAMESPACE {

TESSERA_VEC I32 iota_i32() {
  return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)};
}
TESSERA_VEC __m256i first_n_bits(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), iota_i32().v);
}
TESSERA_VEC Mask first_n(int n) {
  return {_mm256_castsi256_ps(first_n_bits(n))};
}

TESSERA_VEC F32 load_n(const float* p, int n) {
  return {_mm256_maskload_ps(p, first_n_bits(n))};
}
TESSERA_VEC void store_n(float* p, F32 a, int n) {
  _mm256_maskstore_ps(p, first_n_bits(n), a.v);
}
TESSERA_VEC F32 abs(F32 a) {
  return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)};
}
TESSERA_VEC F32 round(F32 a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

TESSERA_VEC Mask lt(F32 a, F32 b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)};
}
TESSERA_VEC Mask le(F32 a, F32 b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)};
}
TESSERA_VEC Mask gt(F32 a, F32 b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)};
}
TESSERA_VEC Mask ge(F32 a, F32 b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)};
}
TESSERA_VEC Mask gt(I32 a, I32 b) {
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.v, b.v))};
}
TESSERA_VEC Mask lt(I32 a, I32 b) {
  return gt(b, a);
}
TESSERA_VEC Mask invert(Mask m) {
  return {_mm256_xor_ps(m.v, _mm256_castsi256_ps(_mm256_set1_epi32(-1)))};
}
TESSERA_VEC Mask le(I32 a, I32 b) {
  return invert(gt(a, b));
}
TESSERA_VEC Mask ge(I32 a, I32 b) {
  return invert(gt(b, a));
}
TESSERA_VEC Mask and_(Mask a, Mask b) {
  return {_mm256_and_ps(a.v, b.v)};
}
TESSERA_VEC F32 select(Mask m, F32 a, F32 b) {
  return {_mm256_blendv_ps(b.v, a.v, m.v)};
}
TESSERA_VEC bool any(Mask m) {
  return _mm256_movemask_ps(m.v) != 0;
}

TESSERA_VEC float reduce_add(F32 a) {
  return reduce_add(_mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1)));
}
TESSERA_VEC float reduce_max(F32 a) {
  return reduce_max(_mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1)));
}
TESSERA_VEC float reduce_min(F32 a) {
  return reduce_min(_mm_min_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1)));
}

TESSERA_VEC I32 load_i32(const void* p) {
  return {_mm256_loadu_si256(static_cast<const __m256i*>(p))};
}
TESSERA_VEC void store_i32(void* p, I32 a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), a.v);
}
TESSERA_VEC I32 xor_(I32 a, I32 b) {
  return {_mm256_xor_si256(a.v, b.v)};
}
TESSERA_VEC I32 mul_high_u32(I32 a, I32 b) {
  const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(a.v, b.v), 32);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a.v, 32), _mm256_srli_epi64(b.v, 32));
  return {_mm256_blend_epi32(even, odd, 0xaa)};
}
// vpmaddubsw saturates its sums of two: exact only while |a0 * b0 + a1 * b1| <= 32767 (a <= 127 is enough).
TESSERA_VEC I32 dot4(I32 acc, I32 a_u8, I32 b_i8) {
  const __m256i pairs = _mm256_maddubs_epi16(a_u8.v, b_i8.v);
  return {_mm256_add_epi32(acc.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
}

TESSERA_VEC F32 clamp_power(F32 x) {
  return max(set1(-127.0f), min(set1(128.0f), x));
}
// The factor is built from its bits: n = -127 gives 0 and n = 128 gives inf.
TESSERA_VEC F32 scale_by_power(F32 p, F32 n) {
  return p * as_f32(shift_left<23>(to_i32(n) + set1_i32(127)));
}

TESSERA_VEC F32 widen_bf16(__m128i bits) {
  return as_f32(shift_left<16>(I32{_mm256_cvtepu16_epi32(bits)}));
}
TESSERA_VEC __m128i narrow_bf16(F32 a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256 nan = _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i chosen = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(nan)), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(chosen), _mm256_extracti128_si256(chosen, 1));
}
TESSERA_VEC F32 load_bf16(const uint16_t* p) {
  return widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
TESSERA_VEC F32 load_bf16_n(const uint16_t* p, int n) {
  uint16_t full[kLanes] = {};
  __builtin_memcpy(full, p, static_cast<size_t>(n) * sizeof(uint16_t));
  return load_bf16(full);
}
TESSERA_VEC void store_bf16(uint16_t* p, F32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_bf16(a));
}
TESSERA_VEC void store_bf16_pair(uint16_t* p, F32 low, F32 high) {
  store_bf16(p, low);
  store_bf16(p + kLanes, high);
}
TESSERA_VEC void store_bf16_n(uint16_t* p, F32 a, int n) {
  uint16_t full[kLanes];
  store_bf16(full, a);
  __builtin_memcpy(p, full, static_cast<size_t>(n) * sizeof(uint16_t));
}

TESSERA_VEC F32 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
TESSERA_VEC void store_f16(uint16_t* p, F32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}

TESSERA_VEC I32 load_i8(const int8_t* p) {
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
TESSERA_VEC I32 load_u8(const uint8_t* p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
TESSERA_VEC void store_i8(int8_t* p, I32 a) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::simd
