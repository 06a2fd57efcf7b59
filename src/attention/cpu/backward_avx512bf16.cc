#include "attention/cpu/backward_kernel.inc.h"
#include "attention/cpu/backward_kernels.h"

namespace tessera::attention {
const BackwardKernel kBackwardPairs_avx512bf16 = avx512bf16::make_backward<avx512bf16::DotPairs>(
    "backward_pairs_avx512bf16", simd::Isa::avx512bf16, 1u << static_cast<int>(DType::bf16));
}  // namespace tessera::attention
