#include "ops/cpu/linear_scalar.h"

namespace tessera::ops {
namespace scalar {
namespace {

uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

void quantize_block(const float* x, uint8_t* q, uint8_t* f, int64_t field) {
  uint32_t largest = 0;  // bits of |x|: their order is that of the values, and NaN is above infinity
  for (int i = 0; i < kQuantBlock; ++i) {
    const uint32_t bits = bits_of(x[i]) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  float a;
  __builtin_memcpy(&a, &largest, sizeof a);
  const bool finite = largest < 0x7f800000u, usable = finite && a >= 0x1p-119f;
  const float d = finite ? (usable ? a / 127.0f : 0.0f) : __builtin_nanf("");
  const float inverse = usable ? 127.0f / a : 0.0f;
  int32_t sum = 0;
  for (int i = 0; i < kQuantBlock; ++i) {
    const int32_t value = usable ? static_cast<int32_t>(__builtin_rintf(x[i] * inverse)) : 0;
    q[i] = static_cast<uint8_t>(value);
    sum += value;
  }
  const float s = d * static_cast<float>(sum);
  const int32_t minus8 = -8 * sum, minus128 = -128 * sum;
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

float norm_factor(const float* x, int64_t n, float epsilon) {
  float sums[16] = {};
  for (int64_t i = 0; i < n; ++i) sums[i % 16] = __builtin_fmaf(x[i], x[i], sums[i % 16]);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
  }
  return 1.0f / __builtin_sqrtf(sums[0] / static_cast<float>(n) + epsilon);
}

void rms_norm(const float* x, const float* weight, int64_t n, float epsilon, float* y) {
  const float factor = norm_factor(x, n, epsilon);
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * factor * weight[i];
}

void rms_norm_quantized(const float* x, const float* weight, int64_t n, float epsilon,
                        const QuantizedRowPointer& out) {
  const float factor = norm_factor(x, n, epsilon);
  for (int64_t b = 0; b < n / kQuantBlock; ++b) {
    float block[kQuantBlock];
    for (int i = 0; i < kQuantBlock; ++i) {
      block[i] = x[b * kQuantBlock + i] * factor * weight[b * kQuantBlock + i];
    }
    quantize_block(block, out.q + b * out.step, out.f + b * out.step, out.field);
  }
}

void add(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

float silu_of(float x) {
  return x / (1.0f + __builtin_expf(-x));
}

void silu(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = silu_of(x[i]);
}

void silu_mul(const float* gate, const float* up, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = silu_of(gate[i]) * up[i];
}

void rotate(float* a, float* b, float c, float s) {
  const float x = *a, y = *b;
  *a = __builtin_fmaf(x, c, -(y * s));
  *b = __builtin_fmaf(y, c, x * s);
}

void rope_half(float* x, const float* cos_sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) rotate(x + i, x + half + i, cos_sin[i], cos_sin[half + i]);
}

void rope_interleaved(float* x, const float* cos_sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) rotate(x + 2 * i, x + 2 * i + 1, cos_sin[i], cos_sin[half + i]);
}

int64_t argmax(const float* x, int64_t n) {
  int64_t best = 0;
  bool nan = false;
  for (int64_t i = 0; i < n; ++i) {
    nan |= x[i] != x[i];
    if (x[i] > x[best]) best = i;
  }
  return nan ? -1 : best;
}

bool any_nonfinite(const float* x, int64_t n) {
  bool found = false;
  for (int64_t i = 0; i < n; ++i) found |= (bits_of(x[i]) & 0x7f800000u) == 0x7f800000u;
  return found;
}

}  // namespace
}  // namespace scalar

const Kernels kKernelsScalar = {
    "scalar",
    scalar::linear_q4_0,
    scalar::linear_q4_1,
    scalar::linear_q8_0,
    scalar::linear_f32,
    scalar::linear_f16,
    scalar::linear_bf16,
    scalar::quantize,
    scalar::rms_norm,
    scalar::rms_norm_quantized,
    scalar::add,
    scalar::silu,
    scalar::silu_mul,
    scalar::rope_half,
    scalar::rope_interleaved,
    scalar::argmax,
    scalar::any_nonfinite,
};

}  // namespace tessera::ops
