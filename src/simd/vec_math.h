// exp2, exp and tanh over vec lanes, written once. Include simd/vec.h first (this does).
//
// exp2(x) = 2^n * p(x - n), n = round(x), p(f) = 1 + f * (c1 + f * ...) on [-1/2, 1/2]. The constant is
// exactly 1, so exp2(0) is exactly 1 and a factor of "no change" changes no bit. The coefficients minimise
// the relative error with that constraint (Lawson's iteration on 4,001 Chebyshev points, rounded to f32).
#pragma once

#include "simd/vec.h"

namespace tessera::simd {
inline namespace TESSERA_SIMD_NAMESPACE {

TESSERA_VEC F32 exp2_polynomial(F32 f) {
  F32 p = set1(0x1.41fbbcp-13f);
  p = fma(p, f, set1(0x1.5f3e54p-10f));
  p = fma(p, f, set1(0x1.3b2d4cp-7f));
  p = fma(p, f, set1(0x1.c6aee8p-5f));
  p = fma(p, f, set1(0x1.ebfbdcp-3f));
  p = fma(p, f, set1(0x1.62e43p-1f));
  return fma(p, f, set1(1.0f));
}

// 2^x, relative error below 8e-8 for -126 <= x <= 127. exp2(0) == 1; far below -126 gives 0 (also for -1e38),
// far above gives inf; NaN stays NaN. REQUIRES: x finite or NaN.
TESSERA_VEC F32 exp2(F32 x) {
  const F32 clamped = clamp_power(x);
  const F32 n = round(clamped);
  return scale_by_power(exp2_polynomial(clamped - n), n);
}

// The same with relative error below 1.1e-4: for values that are then rounded to bf16 (half an ulp
// is 3.9e-3).
TESSERA_VEC F32 exp2_coarse(F32 x) {
  const F32 clamped = clamp_power(x);
  const F32 n = round(clamped);
  const F32 f = clamped - n;
  F32 p = set1(0x1.c2a218p-5f);
  p = fma(p, f, set1(0x1.f00c4ep-3f));
  p = fma(p, f, set1(0x1.62f5fap-1f));
  return scale_by_power(fma(p, f, set1(1.0f)), n);
}

// e^x, relative error below 2e-7 for -87 <= x <= 88; below that at most 1e-38, above it inf. NaN stays NaN.
// ln 2 is split so that n * its first part is exact.
TESSERA_VEC F32 exp(F32 x) {
  const F32 limited = max(set1(-88.0f), min(set1(88.8f), x));
  const F32 n = round(limited * set1(0x1.715476p+0f));
  const F32 r = fnma(n, set1(-0x1.bd0106p-13f), fnma(n, set1(0x1.63p-1f), limited));
  return scale_by_power(exp2_polynomial(r * set1(0x1.715476p+0f)), n);
}

// Absolute error below 3e-7 and relative error below 4e-7.
TESSERA_VEC F32 tanh(F32 x) {
  const F32 z = x * x;
  F32 q = set1(-0x1.722aeap-8f);
  q = fma(q, z, set1(0x1.5157f8p-6f));
  q = fma(q, z, set1(-0x1.b81dcp-5f));
  q = fma(q, z, set1(0x1.110646p-3f));
  q = fma(q, z, set1(-0x1.55552ep-2f));
  const F32 small = fma(x * z, q, x);
  const F32 e = exp(abs(x) + abs(x));
  const F32 large = set1(1.0f) - set1(2.0f) / (e + set1(1.0f));
  const F32 signed_large = select(lt(x, zero()), zero() - large, large);
  return select(lt(abs(x), set1(0.625f)), small, signed_large);
}

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::simd
