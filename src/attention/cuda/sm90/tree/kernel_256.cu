// Tree kernels of head_dim 256.
#include "attention/cuda/sm90/decode/kernels.cuh"

namespace tessera::attention::cuda::sm90 {

DecodeKernel tree_kernel_256(DType dtype) {
  return dtype == DType::f16 ? listed_kernel<__half, 256, false>()
                             : listed_kernel<__nv_bfloat16, 256, false>();
}

}  // namespace tessera::attention::cuda::sm90
