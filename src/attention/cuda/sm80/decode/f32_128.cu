// Step kernels of f32 (as tf32), head_dim up to 128.
#include "attention/cuda/sm80/decode/kernels.cuh"

namespace tessera::attention::cuda::sm80 {

DecodeKernel f32_step_kernel_128(bool listed, bool features) {
  return any_step_kernel_of<float, 128>(listed, features);
}

}  // namespace tessera::attention::cuda::sm80
