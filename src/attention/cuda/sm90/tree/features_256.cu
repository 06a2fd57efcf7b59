// Tree kernels of head_dim up to 256 with windows, soft caps, ALiBi and left padding.
// ptxas-spill-bytes: 8
#include "attention/cuda/sm90/decode/kernels.cuh"

namespace tessera::attention::cuda::sm90 {

DecodeKernel tree_features_256(DType dtype) {
  return dtype == DType::f16 ? listed_kernel<__half, 256, true>() : listed_kernel<__nv_bfloat16, 256, true>();
}

}  // namespace tessera::attention::cuda::sm90
