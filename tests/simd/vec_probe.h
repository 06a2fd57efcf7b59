// The vec names behind function pointers, one table an ISA, so that a test built without ISA flags can call
// them.
#pragma once

#include <cstdint>

namespace tessera::simd {

struct VecProbe {
  const char* name;
  int lanes;
  bool has_bf16_dot;
  // y[i] = f(x[i]); n is a multiple of lanes.
  void (*exp2)(const float* x, float* y, int n);
  void (*exp2_coarse)(const float* x, float* y, int n);
  void (*exp)(const float* x, float* y, int n);
  void (*tanh)(const float* x, float* y, int n);
  void (*round)(const float* x, float* y, int n);
  void (*arithmetic)(const float* a, const float* b, const float* c,
                     float* out);                                      // out [10][lanes], see the .h of it
  void (*compare)(const float* a, const float* b, float* out);         // out [5][lanes]
  void (*tails)(const float* x, float* y, int n);                      // y = load_n/store_n of x, n <= lanes
  void (*reduce)(const float* x, float* out);                          // out [3]: sum, max, min
  void (*bf16)(const float* x, uint16_t* narrow, float* wide, int n);  // n is a multiple of lanes
  void (*bf16_tail)(const float* x, uint16_t* narrow, float* wide, int n);           // n <= lanes
  void (*bf16_pairs)(const uint32_t* pairs, float* low, float* high);                // [lanes]
  void (*dot2)(const float* acc, const uint32_t* a, const uint32_t* b, float* out);  // null without it
  void (*f16)(const float* x, uint16_t* narrow, float* wide, int n);
  void (*integers)(const int32_t* a, const int32_t* b, int32_t* out);  // out [10][lanes]
  void (*bytes)(const int8_t* signed_bytes, const uint8_t* unsigned_bytes, const int32_t* wide, int32_t* out,
                int8_t* narrow);  // out [2][lanes]
  void (*dot4)(const int32_t* acc, const uint8_t* a, const int8_t* b, int32_t* out);
};

extern const VecProbe kProbeScalar, kProbeAvx2, kProbeAvx512, kProbeAvx512bf16;

}  // namespace tessera::simd
