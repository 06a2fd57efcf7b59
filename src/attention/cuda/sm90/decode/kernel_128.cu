// Decode kernels of head_dim 128.
#include "attention/cuda/sm90/decode/kernels.cuh"

namespace tessera::attention::cuda::sm90 {

DecodeKernel decode_kernel_128(DType dtype, int64_t rows, bool features, bool small_boxes) {
  return dtype == DType::f16 ? lengths_kernel<__half, 128>(rows, features, small_boxes)
                             : lengths_kernel<__nv_bfloat16, 128>(rows, features, small_boxes);
}

}  // namespace tessera::attention::cuda::sm90
