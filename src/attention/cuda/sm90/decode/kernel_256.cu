// Decode kernels of head_dim 256.
#include "attention/cuda/sm90/decode/kernels.cuh"

namespace tessera::attention::cuda::sm90 {

DecodeKernel decode_kernel_256(DType dtype, int64_t rows, bool features) {
  return dtype == DType::f16 ? decode_kernel_of<__half, 256>(rows, features)
                             : decode_kernel_of<__nv_bfloat16, 256>(rows, features);
}

}  // namespace tessera::attention::cuda::sm90
