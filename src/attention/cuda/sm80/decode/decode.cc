#include "attention/cuda/sm80/decode/decode.h"

#include "attention/cuda/sm80/checks.h"
#include "attention/cuda/sm80/decode/kernels.h"

namespace tessera::attention::cuda::sm80 {

Status supports_decode(const tessera::cuda::DeviceProperties& device, const AttentionProblem& problem) {
  TESSERA_RETURN_IF_ERROR(check_device(device));
  TESSERA_RETURN_IF_ERROR(check_step_problem(problem));
  return check_shared(device, step_kernel_for(problem, false).shared_bytes, kernel_dim(problem));
}

Status set_cache(const AttentionProblem& problem, const CacheView& cache, DecodeParams& p) {
  TESSERA_RETURN_IF_ERROR(set_table(problem, cache, p));
  TESSERA_RETURN_IF_ERROR(check_rows("k_cache", cache.k));
  TESSERA_RETURN_IF_ERROR(check_rows("v_cache", cache.v));
  p.k = rows_of(read_only(cache.k));
  p.v = rows_of(read_only(cache.v));
  return {};
}

Status decode(tessera::cuda::Launch& launch, const AttentionProblem& problem, const CacheView& cache,
              const CacheAppend& append, const CacheTensors& tensors, const DecodeTuning& tuning) {
  TESSERA_RETURN_IF_ERROR(supports_decode(launch.device, problem));
  if (problem.batch == 0 || problem.seqlen_q == 0) return {};
  DecodeParams p{};
  set_problem(problem, p);
  TESSERA_RETURN_IF_ERROR(set_cache(problem, cache, p));
  TESSERA_RETURN_IF_ERROR(set_rows(append, tensors, p));
  TESSERA_RETURN_IF_ERROR(append_rows(launch, problem, cache, append, p));
  return launch_decode(launch, problem, step_kernel_for(problem, false), tuning, p);
}

DecodeKernel step_kernel_for(const AttentionProblem& problem, bool listed) {
  const DType dtype = problem.dtype;
  const int dim = kernel_dim(problem);
  const bool features = has_features(problem);
  if (dtype == DType::f32) {
    return dim == 64    ? f32_step_kernel_64(listed, features)
           : dim == 128 ? f32_step_kernel_128(listed, features)
                        : f32_step_kernel_256(listed, features);
  }
  if (listed && features) {
    return dim == 64    ? listed_features_64(dtype)
           : dim == 128 ? listed_features_128(dtype)
                        : listed_features_256(dtype);
  }
  return dim == 64    ? step_kernel_64(dtype, listed, features)
         : dim == 128 ? step_kernel_128(dtype, listed, features)
                      : step_kernel_256(dtype, listed, features);
}

}  // namespace tessera::attention::cuda::sm80
