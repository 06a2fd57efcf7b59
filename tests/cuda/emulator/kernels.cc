// The sm_80 step kernels and what is launched beside them, as host code, and their launch.
#include "attention/cuda/sm80/decode/kernels.cuh"

#include <functional>

#include "attention/cuda/steps/append.cu"   // NOLINT: device code, here the host's
#include "attention/cuda/steps/combine.cu"  // NOLINT
#include "tests/cuda/emulator/grid.h"

namespace tessera::attention::cuda {
// The kernels' shared memory.
namespace sm80 {
alignas(1024) unsigned char memory[99 * 1024];
}
namespace steps {
alignas(1024) unsigned char combine_memory[32 * 1024];
}
}  // namespace tessera::attention::cuda

namespace tessera::attention::cuda::sm80 {

DecodeKernel step_kernel_64(DType dtype, bool listed, bool features) {
  return step_kernel_of<64>(dtype, listed, features);
}
DecodeKernel step_kernel_128(DType dtype, bool listed, bool features) {
  return step_kernel_of<128>(dtype, listed, features);
}
DecodeKernel step_kernel_256(DType dtype, bool listed, bool features) {
  return step_kernel_of<256>(dtype, listed, features);
}
template <int kDim>
DecodeKernel listed_features(DType dtype) {
  return dtype == DType::f16 ? step_kernel_of<__half, kDim, true, true>()
                             : step_kernel_of<__nv_bfloat16, kDim, true, true>();
}
DecodeKernel listed_features_64(DType dtype) {
  return listed_features<64>(dtype);
}
DecodeKernel listed_features_128(DType dtype) {
  return listed_features<128>(dtype);
}
DecodeKernel listed_features_256(DType dtype) {
  return listed_features<256>(dtype);
}

DecodeKernel f32_step_kernel_64(bool listed, bool features) {
  return any_step_kernel_of<float, 64>(listed, features);
}
DecodeKernel f32_step_kernel_128(bool listed, bool features) {
  return any_step_kernel_of<float, 128>(listed, features);
}
DecodeKernel f32_step_kernel_256(bool listed, bool features) {
  return any_step_kernel_of<float, 256>(listed, features);
}

}  // namespace tessera::attention::cuda::sm80

namespace {

using namespace tessera::attention::cuda;  // NOLINT
using tessera::DType;

bool is_combine(const void* kernel) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const int dim : {64, 128, 256}) {
      for (const bool listed : {false, true}) {
        for (const bool features : {false, true}) {
          if (kernel == steps::combine_kernel_for(dtype, dim, listed, features)) return true;
        }
      }
    }
  }
  return false;
}

template <typename Params>
cudaError_t run(const void* kernel, void* argument, const cudaLaunchConfig_t& config) {
  const auto function = reinterpret_cast<void (*)(Params)>(const_cast<void*>(kernel));
  const Params& params = *static_cast<const Params*>(argument);
  emulator::run_grid(config.gridDim.x, static_cast<int>(config.blockDim.x),
                     is_combine(kernel) ? steps::combine_memory : sm80::memory, config.dynamicSmemBytes,
                     [&] { function(params); });
  return cudaSuccess;
}

bool is_append(const void* kernel) {
  return kernel == steps::append_kernel_for(DType::f16) || kernel == steps::append_kernel_for(DType::bf16) ||
         kernel == steps::append_kernel_for(DType::f32);
}

}  // namespace

// What steps/launch.cc calls of CUDA's runtime.
extern "C" cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
extern "C" cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel,
                                           void** arguments) {
  if (is_append(kernel)) return run<steps::AppendParams>(kernel, arguments[0], *config);
  return run<steps::DecodeParams>(kernel, arguments[0], *config);
}
