// Step kernels of head_dim 64.
#include "attention/cuda/sm80/decode/kernels.cuh"

namespace tessera::attention::cuda::sm80 {

DecodeKernel step_kernel_64(DType dtype, bool listed, bool features) {
  return step_kernel_of<64>(dtype, listed, features);
}

}  // namespace tessera::attention::cuda::sm80
