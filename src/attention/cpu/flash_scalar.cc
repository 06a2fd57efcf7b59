#include "attention/cpu/kernels.h"
#include "attention/cpu/rows_kernel.inc.h"

namespace tessera::attention {
const TileKernel kFlashF32_scalar = scalar::make_kernel<scalar::MultiplyF32>(
    "flash_f32_scalar", simd::Isa::scalar, DType::f32, scalar::walk_rows_f32);
const TileKernel kFlashBf16_scalar = scalar::make_kernel<scalar::MultiplySplit>(
    "flash_bf16_scalar", simd::Isa::scalar, DType::bf16, scalar::walk_rows_of<scalar::RowsOfSplit>);
}  // namespace tessera::attention
