// The vec names on AVX-512 F/BW/VL/DQ/VNNI, with the bf16 dot where AVX512_BF16 is there. Include simd/vec.h
// instead.
#pragma once

#include <immintrin.h>

namespace tessera::simd {
inline namespace TESSERA_SIMD_NAMESPACE {

inline constexpr int kLanes = 16;
#if defined(__AVX512BF16__)
inline constexpr const char* kName = "avx512bf16";
inline constexpr bool kHasBf16Dot = true;
#else
inline constexpr const char* kName = "avx512";
inline constexpr bool kHasBf16Dot = false;
#endif

struct F32 {
  __m512 v;
};
struct I32 {
  __m512i v;
};
struct Mask {
  __mmask16 v;
};

TESSERA_VEC I32 and_(I32 a, I32 b) {
  return {_mm512_and_si512(a.v, b.v)};
}
TESSERA_VEC F32 as_f32(I32 a) {
  return {_mm512_castsi512_ps(a.v)};
}
TESSERA_VEC I32 as_i32(F32 a) {
  return {_mm512_castps_si512(a.v)};
}

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::simd

#define TESSERA_MM(name) _mm512_##name
#include "simd/vec_x86.h"
#undef TESSERA_MM

namespace tessera::simd {
inline namespace TESSERA_SIMD_NAMESPACE {

TESSERA_VEC Mask first_n(int n) {
  return {static_cast<__mmask16>((1u << n) - 1u)};
}

TESSERA_VEC F32 load_n(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(first_n(n).v, p)};
}
TESSERA_VEC void store_n(float* p, F32 a, int n) {
  _mm512_mask_storeu_ps(p, first_n(n).v, a.v);
}
TESSERA_VEC F32 abs(F32 a) {
  return {_mm512_abs_ps(a.v)};
}
TESSERA_VEC F32 round(F32 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT)};
}
TESSERA_VEC F32 clamp_power(F32 x) {
  return x;
}
TESSERA_VEC F32 scale_by_power(F32 p, F32 n) {
  return {_mm512_scalef_ps(p.v, n.v)};
}

TESSERA_VEC Mask lt(F32 a, F32 b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)};
}
TESSERA_VEC Mask le(F32 a, F32 b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)};
}
TESSERA_VEC Mask gt(F32 a, F32 b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)};
}
TESSERA_VEC Mask ge(F32 a, F32 b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)};
}
TESSERA_VEC Mask lt(I32 a, I32 b) {
  return {_mm512_cmplt_epi32_mask(a.v, b.v)};
}
TESSERA_VEC Mask le(I32 a, I32 b) {
  return {_mm512_cmple_epi32_mask(a.v, b.v)};
}
TESSERA_VEC Mask gt(I32 a, I32 b) {
  return {_mm512_cmpgt_epi32_mask(a.v, b.v)};
}
TESSERA_VEC Mask ge(I32 a, I32 b) {
  return {_mm512_cmpge_epi32_mask(a.v, b.v)};
}
TESSERA_VEC Mask and_(Mask a, Mask b) {
  return {static_cast<__mmask16>(a.v & b.v)};
}
TESSERA_VEC F32 select(Mask m, F32 a, F32 b) {
  return {_mm512_mask_blend_ps(m.v, b.v, a.v)};
}
TESSERA_VEC bool any(Mask m) {
  return m.v != 0;
}

TESSERA_VEC __m256 low_half(F32 a) {
  return _mm512_castps512_ps256(a.v);
}
TESSERA_VEC __m256 high_half(F32 a) {
  return _mm512_extractf32x8_ps(a.v, 1);
}
TESSERA_VEC float reduce_add(F32 a) {
  const __m256 b = _mm256_add_ps(low_half(a), high_half(a));
  return reduce_add(_mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1)));
}
TESSERA_VEC float reduce_max(F32 a) {
  const __m256 b = _mm256_max_ps(low_half(a), high_half(a));
  return reduce_max(_mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1)));
}
TESSERA_VEC float reduce_min(F32 a) {
  const __m256 b = _mm256_min_ps(low_half(a), high_half(a));
  return reduce_min(_mm_min_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1)));
}

TESSERA_VEC I32 load_i32(const void* p) {
  return {_mm512_loadu_si512(p)};
}
TESSERA_VEC void store_i32(void* p, I32 a) {
  _mm512_storeu_si512(p, a.v);
}
TESSERA_VEC I32 iota_i32() {
  return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
}
TESSERA_VEC I32 xor_(I32 a, I32 b) {
  return {_mm512_xor_si512(a.v, b.v)};
}
TESSERA_VEC I32 mul_high_u32(I32 a, I32 b) {
  const __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(a.v, b.v), 32);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a.v, 32), _mm512_srli_epi64(b.v, 32));
  return {_mm512_mask_blend_epi32(0xaaaa, even, odd)};
}
TESSERA_VEC I32 dot4(I32 acc, I32 a_u8, I32 b_i8) {
  return {_mm512_dpbusd_epi32(acc.v, a_u8.v, b_i8.v)};
}

TESSERA_VEC F32 widen_bf16(__m256i bits) {
  return as_f32(shift_left<16>(I32{_mm512_cvtepu16_epi32(bits)}));
}
TESSERA_VEC __m256i narrow_bf16(F32 a) {
#if defined(__AVX512BF16__)
  // vcvtneps2bf16 takes subnormals for zero; bf16 subnormals are below 1.2e-38 and carry nothing here.
  const __m256bh bits = _mm512_cvtneps_pbh(a.v);
  __m256i out;
  __builtin_memcpy(&out, &bits, sizeof out);
  return out;
#else
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16));
#endif
}
TESSERA_VEC F32 load_bf16(const uint16_t* p) {
  return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
TESSERA_VEC F32 load_bf16_n(const uint16_t* p, int n) {
  return widen_bf16(_mm256_maskz_loadu_epi16(first_n(n).v, p));
}
TESSERA_VEC void store_bf16(uint16_t* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(a));
}
TESSERA_VEC void store_bf16_n(uint16_t* p, F32 a, int n) {
  _mm256_mask_storeu_epi16(p, first_n(n).v, narrow_bf16(a));
}
#if defined(__AVX512BF16__)
// Both as bf16, `low` in the lower half.
TESSERA_VEC I32 narrow_bf16_pair(F32 low, F32 high) {
  const __m512bh bits = _mm512_cvtne2ps_pbh(high.v, low.v);
  I32 out;
  __builtin_memcpy(&out.v, &bits, sizeof bits);
  return out;
}
#endif
TESSERA_VEC void store_bf16_pair(uint16_t* p, F32 low, F32 high) {
#if defined(__AVX512BF16__)
  store_i32(p, narrow_bf16_pair(low, high));
#else
  store_bf16(p, low);
  store_bf16(p + kLanes, high);
#endif
}
#if defined(__AVX512BF16__)
TESSERA_VEC F32 dot2_bf16(F32 acc, I32 a, I32 b) {
  __m512bh x, y;
  __builtin_memcpy(&x, &a.v, sizeof x);
  __builtin_memcpy(&y, &b.v, sizeof y);
  return {_mm512_dpbf16_ps(acc.v, x, y)};
}
#endif

TESSERA_VEC F32 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
TESSERA_VEC void store_f16(uint16_t* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}

TESSERA_VEC I32 load_i8(const int8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
TESSERA_VEC I32 load_u8(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
TESSERA_VEC void store_i8(int8_t* p, I32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a.v));
}

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::simd
