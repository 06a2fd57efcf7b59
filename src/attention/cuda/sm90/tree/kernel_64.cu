// Tree kernels of head_dim 64.
#include "attention/cuda/sm90/decode/kernels.cuh"

namespace tessera::attention::cuda::sm90 {

DecodeKernel tree_kernel_64(DType dtype) {
  return dtype == DType::f16 ? listed_kernel<__half, 64, false>() : listed_kernel<__nv_bfloat16, 64, false>();
}

}  // namespace tessera::attention::cuda::sm90
