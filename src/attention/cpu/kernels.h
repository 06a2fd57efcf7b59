// The kernel tables of every ISA TU. f32 storage has no use for bf16 dots, so avx512bf16 and amx add
// only the bf16 one.
#pragma once

#include "attention/cpu/tile_kernel.h"

namespace tessera::attention {

extern const TileKernel kFlashF32_scalar, kFlashBf16_scalar;
extern const TileKernel kFlashF32_avx2, kFlashBf16_avx2;
extern const TileKernel kFlashF32_avx512, kFlashBf16_avx512;
extern const TileKernel kFlashBf16_avx512bf16;
extern const TileKernel kFlashBf16_amx;

}  // namespace tessera::attention
