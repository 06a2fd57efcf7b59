// What is done to one row of a tensor, per ISA: conversion, rotation, a weighted sum. Plain data between TUs.
#pragma once

#include "tessera/dtype.h"

namespace tessera::attention {

struct RowKernels {
  // `count` elements of dtype f32, f16 or bf16 to f32, and back (to nearest even).
  void (*widen)(DType dtype, const void* from, int count, float* to);
  void (*narrow)(DType dtype, const float* from, int count, void* to);
  // x [2 * pairs] in place: (a cos - b s, a s + b cos), s = sign * sin, for pairs (i, i + pairs) or (2i, 2i +
  // 1).
  void (*rotate_half)(float* x, const float* cos, const float* sin, int pairs, float sign);
  void (*rotate_interleaved)(float* x, const float* cos, const float* sin, int pairs, float sign);
  // sum[i] = fma(weight, x[i], sum[i])
  void (*accumulate)(float weight, const float* x, int count, float* sum);
};

extern const RowKernels kRowKernels_scalar, kRowKernels_avx2, kRowKernels_avx512;

// Of the ISA that TESSERA_ISA asks for, or this machine's best.
const RowKernels& row_kernels();

}  // namespace tessera::attention
