#include "attention/cpu/kernels.h"
#include "attention/cpu/rows_kernel.inc.h"

namespace tessera::attention {
const TileKernel kFlashF32_avx2 =
    avx2::make_kernel<avx2::MultiplyF32>("flash_f32_avx2", simd::Isa::avx2, DType::f32, avx2::walk_rows_f32);
const TileKernel kFlashBf16_avx2 = avx2::make_kernel<avx2::MultiplySplit>(
    "flash_bf16_avx2", simd::Isa::avx2, DType::bf16, avx2::walk_rows_of<avx2::RowsOfSplit>);
}  // namespace tessera::attention
