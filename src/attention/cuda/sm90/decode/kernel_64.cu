// Decode kernels of head_dim 64.
#include "attention/cuda/sm90/decode/kernels.cuh"

namespace tessera::attention::cuda::sm90 {

DecodeKernel decode_kernel_64(DType dtype, int64_t rows, bool features) {
  return dtype == DType::f16 ? decode_kernel_of<__half, 64>(rows, features)
                             : decode_kernel_of<__nv_bfloat16, 64>(rows, features);
}

}  // namespace tessera::attention::cuda::sm90
