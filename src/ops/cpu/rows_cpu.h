// The row kernels of ops over vec: written once, compiled once per ISA by rows_ISA.cc.
//
// A sum over a row has two accumulators of kLanes and one tree at its end, so its order depends on n and the
// ISA alone. The quantiser uses only correctly rounded operations and exact integer sums: all ISAs give the
// same bits.
#pragma once

#include "ops/cpu/kernels.h"
#include "simd/vec.h"
#include "simd/vec_math.h"

namespace tessera::ops::TESSERA_SIMD_NAMESPACE {
namespace {

using simd::F32;
using simd::I32;
using simd::kLanes;
using simd::set1;
using simd::set1_i32;

constexpr int32_t kLargestFinite = 0x7f7fffff;  // |x| above it, as bits: infinite or NaN
constexpr int32_t kInfinity = 0x7f800000;

// x [32] to one block of a quantised row; quantized_rows.h has the definition.
inline void quantize_block(const float* x, uint8_t* q, uint8_t* f, int64_t field) {
  F32 largest = abs(simd::load(x));
  bool finite = !any(gt(as_i32(largest), set1_i32(kLargestFinite)));
  for (int i = kLanes; i < kQuantBlock; i += kLanes) {
    const F32 size = abs(simd::load(x + i));
    finite &= !any(gt(as_i32(size), set1_i32(kLargestFinite)));
    largest = max(largest, size);
  }
  const float a = reduce_max(largest);
  const bool usable = finite && a >= 0x1p-119f;
  const float d = finite ? (usable ? a / 127.0f : 0.0f) : __builtin_nanf("");
  const F32 inverse = set1(usable ? 127.0f / a : 0.0f);
  F32 sums = simd::zero();
  for (int i = 0; i < kQuantBlock; i += kLanes) {
    const I32 value = usable ? to_i32(simd::load(x + i) * inverse) : set1_i32(0);
    store_i8(reinterpret_cast<int8_t*>(q) + i, value);
    sums = sums + to_f32(value);  // at most 32 * 127: exact
  }
  const float sum = reduce_add(sums), s = d * sum;
  const int32_t minus8 = -8 * static_cast<int32_t>(sum), minus128 = 16 * minus8;
  __builtin_memcpy(f, &d, 4);
  __builtin_memcpy(f + field, &s, 4);
  __builtin_memcpy(f + 2 * field, &minus8, 4);
  __builtin_memcpy(f + 3 * field, &minus128, 4);
}

void quantize(const float* x, int64_t blocks, const QuantizedRowPointer& out) {
  for (int64_t b = 0; b < blocks; ++b) {
    quantize_block(x + b * kQuantBlock, out.q + b * out.step, out.f + b * out.step, out.field);
  }
}

// 1 / sqrt(mean(x^2) + epsilon).
inline float norm_factor(const float* x, int64_t n, float epsilon) {
  F32 even = simd::zero(), odd = simd::zero();
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const F32 a = simd::load(x + i), b = simd::load(x + i + kLanes);
    even = fma(a, a, even);
    odd = fma(b, b, odd);
  }
  for (; i < n; i += kLanes) {
    const F32 a = simd::load_n(x + i, n - i < kLanes ? static_cast<int>(n - i) : kLanes);
    even = fma(a, a, even);
  }
  return 1.0f / __builtin_sqrtf(reduce_add(even + odd) / static_cast<float>(n) + epsilon);
}

// Calls body(i, lanes) over [0, n) in steps of kLanes.
template <typename Body>
inline void for_lanes(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
  if (i < n) body(i, static_cast<int>(n - i));
}
inline F32 load_some(const float* p, int lanes) {
  return lanes == kLanes ? simd::load(p) : simd::load_n(p, lanes);
}
inline void store_some(float* p, F32 value, int lanes) {
  lanes == kLanes ? simd::store(p, value) : simd::store_n(p, value, lanes);
}

void rms_norm(const float* x, const float* weight, int64_t n, float epsilon, float* y) {
  const F32 factor = set1(norm_factor(x, n, epsilon));
  for_lanes(n, [&](int64_t i, int lanes) {
    store_some(y + i, load_some(x + i, lanes) * factor * load_some(weight + i, lanes), lanes);
  });
}

void rms_norm_quantized(const float* x, const float* weight, int64_t n, float epsilon,
                        const QuantizedRowPointer& out) {
  const F32 factor = set1(norm_factor(x, n, epsilon));
  for (int64_t b = 0; b < n / kQuantBlock; ++b) {
    alignas(64) float block[kQuantBlock];
    for (int i = 0; i < kQuantBlock; i += kLanes) {
      const int64_t at = b * kQuantBlock + i;
      simd::store(block + i, simd::load(x + at) * factor * simd::load(weight + at));
    }
    quantize_block(block, out.q + b * out.step, out.f + b * out.step, out.field);
  }
}

void add(const float* x, int64_t n, float* y) {
  for_lanes(n, [&](int64_t i, int lanes) {
    store_some(y + i, load_some(y + i, lanes) + load_some(x + i, lanes), lanes);
  });
}

inline F32 silu_of(F32 x) {
  return x / (set1(1.0f) + exp(simd::zero() - x));
}

void silu(const float* x, int64_t n, float* y) {
  for_lanes(n, [&](int64_t i, int lanes) { store_some(y + i, silu_of(load_some(x + i, lanes)), lanes); });
}

void silu_mul(const float* gate, const float* up, int64_t n, float* y) {
  for_lanes(n, [&](int64_t i, int lanes) {
    store_some(y + i, silu_of(load_some(gate + i, lanes)) * load_some(up + i, lanes), lanes);
  });
}

void rope_half(float* x, const float* cos_sin, int64_t half) {
  for_lanes(half, [&](int64_t i, int lanes) {
    const F32 a = load_some(x + i, lanes), b = load_some(x + half + i, lanes);
    const F32 c = load_some(cos_sin + i, lanes), s = load_some(cos_sin + half + i, lanes);
    store_some(x + i, fma(a, c, simd::zero() - b * s), lanes);
    store_some(x + half + i, fma(b, c, a * s), lanes);
  });
}

// p[0], p[0], p[1], p[1]...
inline F32 load_twice(const float* p) {
#if defined(__AVX512F__)
  const __m512i index = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return {_mm512_permutexvar_ps(index, _mm512_castps256_ps512(_mm256_loadu_ps(p)))};
#elif defined(__AVX2__)
  const __m256i index = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
  return {_mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), index)};
#else
  float twice[kLanes];
  for (int i = 0; i < kLanes; ++i) twice[i] = p[i / 2];
  return simd::load(twice);
#endif
}

// a, b, c, d... to b, a, d, c...
inline F32 swap_pairs(F32 x) {
#if defined(__AVX512F__)
  return {_mm512_permute_ps(x.v, 0xb1)};
#elif defined(__AVX2__)
  return {_mm256_permute_ps(x.v, 0xb1)};
#else
  float from[kLanes], to[kLanes];
  simd::store(from, x);
  for (int i = 0; i < kLanes; ++i) to[i] = from[i ^ 1];
  return simd::load(to);
#endif
}

void rope_interleaved(float* x, const float* cos_sin, int64_t half) {
  alignas(64) float signs[kLanes];
  for (int i = 0; i < kLanes; ++i) signs[i] = i % 2 == 0 ? -1.0f : 1.0f;
  const F32 sign = simd::load(signs);
  constexpr int kPairs = kLanes / 2;
  int64_t i = 0;
  for (; i + kPairs <= half; i += kPairs) {
    const F32 pair = simd::load(x + 2 * i);
    const F32 s = load_twice(cos_sin + half + i) * sign;
    simd::store(x + 2 * i, fma(pair, load_twice(cos_sin + i), swap_pairs(pair) * s));
  }
  for (; i < half; ++i) {
    const F32 pair = simd::load_n(x + 2 * i, 2);
    const F32 s = set1(cos_sin[half + i]) * sign;
    simd::store_n(x + 2 * i, fma(pair, set1(cos_sin[i]), swap_pairs(pair) * s), 2);
  }
}

// Two passes: the largest value, then its first place. The row is in L2 by then.
int64_t argmax(const float* x, int64_t n) {
  const int64_t whole = n / kLanes * kLanes;
  float best = -__builtin_inff();
  bool nan = false;
  if (whole > 0) {
    F32 largest = set1(best);
    for (int64_t i = 0; i < whole; i += kLanes) {
      const F32 value = simd::load(x + i);
      nan |= any(gt(as_i32(abs(value)), set1_i32(kInfinity)));
      largest = max(value, largest);
    }
    best = reduce_max(largest);
  }
  for (int64_t i = whole; i < n; ++i) {
    nan |= x[i] != x[i];
    best = x[i] > best ? x[i] : best;
  }
  if (nan) return -1;
  int64_t i = 0;
  while (i < whole && !any(ge(simd::load(x + i), set1(best)))) i += kLanes;
  while (x[i] < best) ++i;
  return i;
}

bool any_nonfinite(const float* x, int64_t n) {
  bool found = false;
  for_lanes(n, [&](int64_t i, int lanes) {
    found |= any(gt(as_i32(abs(load_some(x + i, lanes))), set1_i32(kLargestFinite)));
  });
  return found;
}

}  // namespace

// What rows_ISA.cc registers; `name` and kLinear are the ISA's.
#define TESSERA_OPS_KERNELS(name)                                                           \
  {                                                                                         \
    name, &kLinear, quantize, rms_norm, rms_norm_quantized, add, silu, silu_mul, rope_half, \
        rope_interleaved, argmax, any_nonfinite                                             \
  }

}  // namespace tessera::ops::TESSERA_SIMD_NAMESPACE
