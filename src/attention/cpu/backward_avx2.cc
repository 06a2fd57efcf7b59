#include "attention/cpu/backward_kernel.inc.h"
#include "attention/cpu/backward_kernels.h"

namespace tessera::attention {
const BackwardKernel kBackwardF32_avx2 =
    avx2::make_backward<avx2::DotF32>("backward_f32_avx2", simd::Isa::avx2, kPlainDTypes);
}  // namespace tessera::attention
