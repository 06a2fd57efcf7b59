#include "attention/cuda/steps/combine.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/cuda/steps/launch.h"

namespace tessera::attention::cuda::steps {
namespace {

template <typename T, int kDim>
const void* combine_kernel_of(bool listed, bool features) {
  if (listed) {
    return features ? reinterpret_cast<const void*>(&combine_kernel<T, kDim, true, true>)
                    : reinterpret_cast<const void*>(&combine_kernel<T, kDim, true, false>);
  }
  return features ? reinterpret_cast<const void*>(&combine_kernel<T, kDim, false, true>)
                  : reinterpret_cast<const void*>(&combine_kernel<T, kDim, false, false>);
}

template <typename T>
const void* combine_kernel_of(int dim, bool listed, bool features) {
  return dim == 64    ? combine_kernel_of<T, 64>(listed, features)
         : dim == 128 ? combine_kernel_of<T, 128>(listed, features)
                      : combine_kernel_of<T, 256>(listed, features);
}

}  // namespace

const void* combine_kernel_for(DType dtype, int dim, bool listed, bool features) {
  return dtype == DType::f32   ? combine_kernel_of<float>(dim, listed, features)
         : dtype == DType::f16 ? combine_kernel_of<__half>(dim, listed, features)
                               : combine_kernel_of<__nv_bfloat16>(dim, listed, features);
}

}  // namespace tessera::attention::cuda::steps
