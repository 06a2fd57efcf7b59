#include "attention/cpu/kernels.h"
#include "attention/cpu/rows_kernel.inc.h"

namespace tessera::attention {
const TileKernel kFlashF32_avx512 = avx512::make_kernel<avx512::MultiplyF32>(
    "flash_f32_avx512", simd::Isa::avx512, DType::f32, avx512::walk_rows_f32);
const TileKernel kFlashBf16_avx512 = avx512::make_kernel<avx512::MultiplySplit>(
    "flash_bf16_avx512", simd::Isa::avx512, DType::bf16, avx512::walk_rows_of<avx512::RowsOfSplit>);
}  // namespace tessera::attention
