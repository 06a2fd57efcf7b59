#include "attention/cpu/kernels.h"
#include "attention/cpu/tile_kernel.inc.h"

namespace tessera::attention {
const TileKernel kFlashBf16_avx512bf16 = avx512bf16::make_kernel<avx512bf16::MultiplyPairs>(
    "flash_bf16_avx512bf16", simd::Isa::avx512bf16, DType::bf16);
}  // namespace tessera::attention
