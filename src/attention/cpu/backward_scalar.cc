#include "attention/cpu/backward_kernel.inc.h"
#include "attention/cpu/backward_kernels.h"

namespace tessera::attention {
const BackwardKernel kBackwardF32_scalar =
    scalar::make_backward<scalar::DotF32>("backward_f32_scalar", simd::Isa::scalar, kPlainDTypes);
}  // namespace tessera::attention
