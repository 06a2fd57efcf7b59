// Step kernels of f32 (as tf32), head_dim up to 256.
#include "attention/cuda/sm80/decode/kernels.cuh"

namespace tessera::attention::cuda::sm80 {

DecodeKernel f32_step_kernel_256(bool listed, bool features) {
  return any_step_kernel_of<float, 256>(listed, features);
}

}  // namespace tessera::attention::cuda::sm80
