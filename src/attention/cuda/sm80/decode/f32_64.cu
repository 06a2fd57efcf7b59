// Step kernels of f32 (as tf32), head_dim up to 64.
#include "attention/cuda/sm80/decode/kernels.cuh"

namespace tessera::attention::cuda::sm80 {

DecodeKernel f32_step_kernel_64(bool listed, bool features) {
  return any_step_kernel_of<float, 64>(listed, features);
}

}  // namespace tessera::attention::cuda::sm80
