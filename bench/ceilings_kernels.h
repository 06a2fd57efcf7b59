#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera::bench {

struct CeilingKernels {
  double flops_per_turn;
  float (*f32_turns)(int64_t turns);
  double bf16_flops_per_turn;
  float (*bf16_turns)(int64_t turns);  // null without bf16 products
  double int8_ops_per_turn;
  float (*int8_turns)(int64_t turns);
  float (*read)(const float* data, size_t count);
};

extern const CeilingKernels kCeilings_scalar, kCeilings_avx2, kCeilings_avx512, kCeilings_avx512bf16,
    kCeilings_amx;

}  // namespace tessera::bench
