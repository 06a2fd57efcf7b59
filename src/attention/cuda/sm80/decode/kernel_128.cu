// Step kernels of head_dim 128.
#include "attention/cuda/sm80/decode/kernels.cuh"

namespace tessera::attention::cuda::sm80 {

DecodeKernel step_kernel_128(DType dtype, bool listed, bool features) {
  return step_kernel_of<128>(dtype, listed, features);
}

}  // namespace tessera::attention::cuda::sm80
