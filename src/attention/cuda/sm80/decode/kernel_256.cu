// Step kernels of head_dim 256.
#include "attention/cuda/sm80/decode/kernels.cuh"

namespace tessera::attention::cuda::sm80 {

DecodeKernel step_kernel_256(DType dtype, bool listed, bool features) {
  return step_kernel_of<256>(dtype, listed, features);
}

}  // namespace tessera::attention::cuda::sm80
