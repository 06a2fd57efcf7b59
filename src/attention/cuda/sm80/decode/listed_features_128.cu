// Step kernels of head_dim up to 128 that walk a list, with windows, soft caps, ALiBi and left padding.
#include "attention/cuda/sm80/decode/kernels.cuh"

namespace tessera::attention::cuda::sm80 {

DecodeKernel listed_features_128(DType dtype) {
  return dtype == DType::f16 ? step_kernel_of<__half, 128, true, true>()
                             : step_kernel_of<__nv_bfloat16, 128, true, true>();
}

}  // namespace tessera::attention::cuda::sm80
