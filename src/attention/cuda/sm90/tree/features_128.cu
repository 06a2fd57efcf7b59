// Tree kernels of head_dim up to 128 with windows, soft caps, ALiBi and left padding.
#include "attention/cuda/sm90/decode/kernels.cuh"

namespace tessera::attention::cuda::sm90 {

DecodeKernel tree_features_128(DType dtype) {
  return dtype == DType::f16 ? listed_kernel<__half, 128, true>() : listed_kernel<__nv_bfloat16, 128, true>();
}

}  // namespace tessera::attention::cuda::sm90
