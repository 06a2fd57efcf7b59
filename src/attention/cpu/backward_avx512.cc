#include "attention/cpu/backward_kernel.inc.h"
#include "attention/cpu/backward_kernels.h"

namespace tessera::attention {
const BackwardKernel kBackwardF32_avx512 =
    avx512::make_backward<avx512::DotF32>("backward_f32_avx512", simd::Isa::avx512, kPlainDTypes);
}  // namespace tessera::attention
