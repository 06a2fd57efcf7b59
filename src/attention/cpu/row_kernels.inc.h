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

inline int lanes_left(int count, int i) {
  return count - i < kLanes ? count - i : kLanes;
}

// Whole vectors without masks, then what is left: rows are short, and a mask costs as much as the rest.
template <typename Load>
void widen_with(int count, float* to, Load&& load_some) {
  const int whole = count / kLanes * kLanes;
  for (int i = 0; i < whole; i += kLanes) simd::store(to + i, load_some(i, kLanes));
  if (whole < count) simd::store_n(to + whole, load_some(whole, count - whole), count - whole);
}

// f16 has no partial load or store: the last lanes go through a buffer.
void widen(DType dtype, const void* from, int count, float* to) {
  const uint16_t* half = static_cast<const uint16_t*>(from);
  const float* wide = static_cast<const float*>(from);
  if (dtype == DType::f32) {
    widen_with(count, to,
               [&](int i, int n) { return n == kLanes ? simd::load(wide + i) : simd::load_n(wide + i, n); });
  } else if (dtype == DType::bf16) {
    widen_with(count, to, [&](int i, int n) {
      return n == kLanes ? simd::load_bf16(half + i) : simd::load_bf16_n(half + i, n);
    });
  } else {
    widen_with(count, to, [&](int i, int n) {
      if (n == kLanes) return simd::load_f16(half + i);
      uint16_t lanes[kLanes] = {};
      for (int lane = 0; lane < n; ++lane) lanes[lane] = half[i + lane];
      return simd::load_f16(lanes);
    });
  }
}

void narrow(DType dtype, const float* from, int count, void* to) {
  uint16_t* half = static_cast<uint16_t*>(to);
  const int whole = count / kLanes * kLanes, n = count - whole;
  if (dtype == DType::f32) {
    float* wide = static_cast<float*>(to);
    for (int i = 0; i < whole; i += kLanes) simd::store(wide + i, simd::load(from + i));
    if (n > 0) simd::store_n(wide + whole, simd::load_n(from + whole, n), n);
  } else if (dtype == DType::bf16) {
    for (int i = 0; i < whole; i += kLanes) simd::store_bf16(half + i, simd::load(from + i));
    if (n > 0) simd::store_bf16_n(half + whole, simd::load_n(from + whole, n), n);
  } else {
    for (int i = 0; i < whole; i += kLanes) simd::store_f16(half + i, simd::load(from + i));
    if (n > 0) {
      uint16_t lanes[kLanes];
      simd::store_f16(lanes, simd::load_n(from + whole, n));
      for (int lane = 0; lane < n; ++lane) half[whole + lane] = lanes[lane];
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
