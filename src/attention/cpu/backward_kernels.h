// The backward kernels of every ISA TU.
#pragma once

#include "attention/cpu/backward_kernel.h"

namespace tessera::attention {

// What a kernel takes that unpacks to f32.
inline constexpr uint32_t kPlainDTypes = 1u << static_cast<int>(DType::f32) |
                                         1u << static_cast<int>(DType::f16) |
                                         1u << static_cast<int>(DType::bf16);

extern const BackwardKernel kBackwardF32_scalar, kBackwardF32_avx2, kBackwardF32_avx512;
extern const BackwardKernel kBackwardPairs_avx512bf16;  // bf16 only
extern const BackwardKernel kBackward_amx;              // bf16 only, plain shapes only

}  // namespace tessera::attention
