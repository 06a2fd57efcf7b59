// Tree kernels of head_dim 128.
#include "attention/cuda/sm90/decode/kernels.cuh"

namespace tessera::attention::cuda::sm90 {

DecodeKernel tree_kernel_128(DType dtype) {
  return dtype == DType::f16 ? listed_kernel<__half, 128, false>()
                             : listed_kernel<__nv_bfloat16, 128, false>();
}

}  // namespace tessera::attention::cuda::sm90
