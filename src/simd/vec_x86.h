// What AVX2 and AVX-512 say alike but for the width in an intrinsic's name. Included by vec_avx2.h and
// vec_avx512.h behind their types, as_f32, as_i32 and and_; TESSERA_MM(add_ps) is _mm256_add_ps or
// _mm512_add_ps.
#pragma once

namespace tessera::simd {
inline namespace TESSERA_SIMD_NAMESPACE {

TESSERA_VEC I32 set1_i32(int32_t x) {
  return {TESSERA_MM(set1_epi32)(x)};
}
TESSERA_VEC F32 zero() {
  return {TESSERA_MM(setzero_ps)()};
}
TESSERA_VEC F32 set1(float x) {
  return {TESSERA_MM(set1_ps)(x)};
}
TESSERA_VEC F32 load(const float* p) {
  return {TESSERA_MM(loadu_ps)(p)};
}
TESSERA_VEC void store(float* p, F32 a) {
  TESSERA_MM(storeu_ps)(p, a.v);
}
TESSERA_VEC F32 operator+(F32 a, F32 b) {
  return {TESSERA_MM(add_ps)(a.v, b.v)};
}
TESSERA_VEC F32 operator-(F32 a, F32 b) {
  return {TESSERA_MM(sub_ps)(a.v, b.v)};
}
TESSERA_VEC F32 operator*(F32 a, F32 b) {
  return {TESSERA_MM(mul_ps)(a.v, b.v)};
}
TESSERA_VEC F32 operator/(F32 a, F32 b) {
  return {TESSERA_MM(div_ps)(a.v, b.v)};
}
TESSERA_VEC F32 fma(F32 a, F32 b, F32 c) {
  return {TESSERA_MM(fmadd_ps)(a.v, b.v, c.v)};
}
TESSERA_VEC F32 fnma(F32 a, F32 b, F32 c) {
  return {TESSERA_MM(fnmadd_ps)(a.v, b.v, c.v)};
}
TESSERA_VEC F32 max(F32 a, F32 b) {
  return {TESSERA_MM(max_ps)(a.v, b.v)};
}
TESSERA_VEC F32 min(F32 a, F32 b) {
  return {TESSERA_MM(min_ps)(a.v, b.v)};
}
TESSERA_VEC F32 sqrt(F32 a) {
  return {TESSERA_MM(sqrt_ps)(a.v)};
}
// In each 128 bits: the low (high) words, or pairs of words, of both in turn.
TESSERA_VEC I32 unpack_low(I32 a, I32 b) {
  return {TESSERA_MM(unpacklo_epi32)(a.v, b.v)};
}
TESSERA_VEC I32 unpack_high(I32 a, I32 b) {
  return {TESSERA_MM(unpackhi_epi32)(a.v, b.v)};
}
TESSERA_VEC I32 unpack_low_pairs(I32 a, I32 b) {
  return {TESSERA_MM(unpacklo_epi64)(a.v, b.v)};
}
TESSERA_VEC I32 unpack_high_pairs(I32 a, I32 b) {
  return {TESSERA_MM(unpackhi_epi64)(a.v, b.v)};
}
TESSERA_VEC I32 operator+(I32 a, I32 b) {
  return {TESSERA_MM(add_epi32)(a.v, b.v)};
}
TESSERA_VEC I32 operator-(I32 a, I32 b) {
  return {TESSERA_MM(sub_epi32)(a.v, b.v)};
}
TESSERA_VEC I32 operator*(I32 a, I32 b) {
  return {TESSERA_MM(mullo_epi32)(a.v, b.v)};
}
template <int n>
TESSERA_VEC I32 shift_left(I32 a) {
  return {TESSERA_MM(slli_epi32)(a.v, n)};
}
template <int n>
TESSERA_VEC I32 shift_right(I32 a) {
  return {TESSERA_MM(srai_epi32)(a.v, n)};
}
TESSERA_VEC F32 to_f32(I32 a) {
  return {TESSERA_MM(cvtepi32_ps)(a.v)};
}
TESSERA_VEC I32 to_i32(F32 a) {
  return {TESSERA_MM(cvtps_epi32)(a.v)};
}
TESSERA_VEC F32 low_bf16(I32 pairs) {
  return as_f32(shift_left<16>(pairs));
}
TESSERA_VEC F32 high_bf16(I32 pairs) {
  return as_f32(and_(pairs, set1_i32(static_cast<int32_t>(0xffff0000u))));
}
TESSERA_VEC I32 keep_low(I32 pairs) {
  return and_(pairs, set1_i32(0xffff));
}
TESSERA_VEC void prefetch_near(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}
TESSERA_VEC void prefetch_far(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

// The last two levels of a fold.
TESSERA_VEC float reduce_add(__m128 c) {
  const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
TESSERA_VEC float reduce_max(__m128 c) {
  const __m128 d = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}
TESSERA_VEC float reduce_min(__m128 c) {
  const __m128 d = _mm_min_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_min_ss(d, _mm_movehdup_ps(d)));
}

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::simd
