#include "attention/cpu/kernels.h"
#include "attention/cpu/rows_kernel.inc.h"

namespace tessera::attention {
const TileKernel kFlashBf16_avx512bf16 = avx512bf16::make_kernel<avx512bf16::MultiplyPairs>(
    "flash_bf16_avx512bf16", simd::Isa::avx512bf16, DType::bf16,
    avx512bf16::walk_rows_of<avx512bf16::RowsOfPairs>);
}  // namespace tessera::attention
