// The row kernels over vec: written once, compiled once per ISA by row_ISA.cc. An element's arithmetic does
// not depend on where in the row it stands.
#pragma once

#include "attention/cpu/row_kernels.h"
#include "simd/vec.h"

namespace tessera::attention {
inline namespace TESSERA_SIMD_NAMESPACE {
namespace {

using simd::F32;
using simd::kLanes;

// f16 has no partial load or store: the last lanes go through a buffer.
inline F32 load_some_f16(const uint16_t* p, int n) {
  if (n == kLanes) return simd::load_f16(p);
  uint16_t whole[kLanes] = {};
  for (int i = 0; i < n; ++i) whole[i] = p[i];
  return simd::load_f16(whole);
}
inline void store_some_f16(uint16_t* p, F32 x, int n) {
  if (n == kLanes) return simd::store_f16(p, x);
  uint16_t whole[kLanes];
  simd::store_f16(whole, x);
  for (int i = 0; i < n; ++i) p[i] = whole[i];
}

inline int lanes_left(int count, int i) {
  return count - i < kLanes ? count - i : kLanes;
}

void widen(DType dtype, const void* from, int count, float* to) {
  const uint16_t* half = static_cast<const uint16_t*>(from);
  for (int i = 0; i < count; i += kLanes) {
    const int n = lanes_left(count, i);
    const F32 x = dtype == DType::f32   ? simd::load_n(static_cast<const float*>(from) + i, n)
                  : dtype == DType::f16 ? load_some_f16(half + i, n)
                                        : simd::load_bf16_n(half + i, n);
    simd::store_n(to + i, x, n);
  }
}

void narrow(DType dtype, const float* from, int count, void* to) {
  uint16_t* half = static_cast<uint16_t*>(to);
  for (int i = 0; i < count; i += kLanes) {
    const int n = lanes_left(count, i);
    const F32 x = simd::load_n(from + i, n);
    if (dtype == DType::f32) {
      simd::store_n(static_cast<float*>(to) + i, x, n);
    } else if (dtype == DType::f16) {
      store_some_f16(half + i, x, n);
    } else {
      simd::store_bf16_n(half + i, x, n);
    }
  }
}

void rotate_half(float* x, const float* cos, const float* sin, int pairs, float sign) {
  for (int i = 0; i < pairs; i += kLanes) {
    const int n = lanes_left(pairs, i);
    const F32 a = simd::load_n(x + i, n), b = simd::load_n(x + pairs + i, n);
    const F32 c = simd::load_n(cos + i, n), s = simd::load_n(sin + i, n) * simd::set1(sign);
    simd::store_n(x + i, fma(a, c, simd::zero() - b * s), n);
    simd::store_n(x + pairs + i, fma(b, c, a * s), n);
  }
}

// Through two short rows, so that one arithmetic serves both styles: the shuffles cost less than a step of
// the softmax for a whole head.
void rotate_interleaved(float* x, const float* cos, const float* sin, int pairs, float sign) {
  float even[kLanes], odd[kLanes];
  for (int i = 0; i < pairs; i += kLanes) {
    const int n = lanes_left(pairs, i);
    for (int j = 0; j < n; ++j) {
      even[j] = x[2 * (i + j)];
      odd[j] = x[2 * (i + j) + 1];
    }
    const F32 a = simd::load_n(even, n), b = simd::load_n(odd, n);
    const F32 c = simd::load_n(cos + i, n), s = simd::load_n(sin + i, n) * simd::set1(sign);
    simd::store_n(even, fma(a, c, simd::zero() - b * s), n);
    simd::store_n(odd, fma(b, c, a * s), n);
    for (int j = 0; j < n; ++j) {
      x[2 * (i + j)] = even[j];
      x[2 * (i + j) + 1] = odd[j];
    }
  }
}

void accumulate(float weight, const float* x, int count, float* sum) {
  for (int i = 0; i < count; i += kLanes) {
    const int n = lanes_left(count, i);
    simd::store_n(sum + i, fma(simd::set1(weight), simd::load_n(x + i, n), simd::load_n(sum + i, n)), n);
  }
}

}  // namespace

inline constexpr RowKernels kRowTable = {widen, narrow, rotate_half, rotate_interleaved, accumulate};

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::attention
