#include "attention/cpu/kernels.h"
#include "attention/cpu/tile_kernel.inc.h"

namespace tessera::attention {
const TileKernel kFlashF32_avx512 =
    avx512::make_kernel<avx512::MultiplyF32>("flash_f32_avx512", simd::Isa::avx512, DType::f32);
const TileKernel kFlashBf16_avx512 =
    avx512::make_kernel<avx512::MultiplySplit>("flash_bf16_avx512", simd::Isa::avx512, DType::bf16);
}  // namespace tessera::attention
