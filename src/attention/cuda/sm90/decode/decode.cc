#include "attention/cuda/sm90/decode/decode.h"

#include <numeric>

#include "attention/cuda/common/tma.h"
#include "attention/cuda/sm90/decode/launch.h"
#include "core/format.h"

namespace tessera::attention::cuda::sm90 {

Status check_device(const tessera::cuda::Launch& launch) {
  if (launch.device.major == 9) return {};
  return unsupported(
      format("device {} (sm_{}): this kernel is compiled for sm_90a", launch.device.name, launch.device.sm()),
      "device");
}

Status set_cache(const AttentionProblem& problem, const CacheView& cache, bool small_boxes, DecodeParams& p) {
  const bool any_dim = has_features(problem);  // those kernels take a box a panel
  if (any_dim) small_boxes = false;
  TESSERA_RETURN_IF_ERROR(set_table(problem, cache, p));
  const bool paged = cache.block_table != nullptr;
  if (paged && cache.block_size % 8 != 0)
    return unsupported(format("block_size={} on CUDA must be a multiple of 8", cache.block_size),
                       "block_size");
  // Boxes of whole tiles where a block has whole tiles; then boxes of 16 whole rows, for which decode has
  // kernels of their own; else boxes of 8 rows of a panel, which make the same tile as a whole box.
  const int panels = kernel_dim(problem) / 64;
  p.box_rows = !paged || cache.block_size % kTile == 0     ? kTile
               : small_boxes && cache.block_size % 16 == 0 ? 16
                                                           : 8;
  if (!small_boxes && p.box_rows == 8)
    p.box_rows = static_cast<int32_t>(std::gcd(cache.block_size, int64_t{kTile}));
  p.box_panels = any_dim ? 1 : p.box_rows == kTile || (small_boxes && p.box_rows == 16) ? panels : 1;
  const auto map = [&](CUtensorMap* map, const char* what, const Strided<void*>& rows) {
    const Strided<const void*> tensor = read_only(rows);
    if (any_dim) {
      return row_map(map, what, problem.dtype, tensor, cache.num_blocks, cache.block_size, problem.kv_heads,
                     problem.head_dim, p.box_rows, Promotion::none);
    }
    return tensor_map(map, what, problem.dtype, tensor, cache.num_blocks, cache.block_size, problem.kv_heads,
                      problem.head_dim, p.box_rows, p.box_panels, Promotion::none);
  };
  TESSERA_RETURN_IF_ERROR(map(&p.k_map, "k_cache", cache.k));
  return map(&p.v_map, "v_cache", cache.v);
}

Status supports_decode(const AttentionProblem& problem) {
  TESSERA_RETURN_IF_ERROR(check_step_problem(problem));
  if (problem.dtype == DType::f32)
    return unsupported("dtype=f32 over a cache is for the step kernel of every device", "dtype");
  if (problem.v_head_dim != problem.head_dim)
    return unsupported(
        format("v_head_dim={} unlike head_dim={} over a cache is for the step kernel of every device",
               problem.v_head_dim, problem.head_dim),
        "v_head_dim");
  return {};
}

Status decode(tessera::cuda::Launch& launch, const AttentionProblem& problem, const CacheView& cache,
              const CacheAppend& append, const CacheTensors& tensors, const DecodeTuning& tuning) {
  TESSERA_RETURN_IF_ERROR(supports_decode(problem));
  TESSERA_RETURN_IF_ERROR(check_device(launch));
  if (problem.batch == 0 || problem.seqlen_q == 0) return {};
  DecodeParams p{};
  set_problem(problem, p);
  TESSERA_RETURN_IF_ERROR(set_cache(problem, cache, true, p));
  TESSERA_RETURN_IF_ERROR(set_rows(append, tensors, p));
  TESSERA_RETURN_IF_ERROR(append_rows(launch, problem, cache, append, p));
  const int64_t rows = int64_t{p.tokens} * p.group;
  const DecodeKernel kernel = decode_kernel_for(problem, rows, p.box_panels > 1 && p.box_rows == 16);
  return launch_decode(launch, problem, kernel, tuning, p);
}

DecodeKernel decode_kernel_for(const AttentionProblem& problem, int64_t rows, bool small_boxes) {
  const DType dtype = problem.dtype;
  const int dim = kernel_dim(problem);
  const bool features = has_features(problem);
  return dim == 64    ? decode_kernel_64(dtype, rows, features, small_boxes)
         : dim == 128 ? decode_kernel_128(dtype, rows, features, small_boxes)
                      : decode_kernel_256(dtype, rows, features, small_boxes);
}

DecodeKernel tree_kernel_for(const AttentionProblem& problem) {
  const DType dtype = problem.dtype;
  const int dim = kernel_dim(problem);
  if (has_features(problem))
    return dim == 64    ? tree_features_64(dtype)
           : dim == 128 ? tree_features_128(dtype)
                        : tree_features_256(dtype);
  return dim == 64 ? tree_kernel_64(dtype) : dim == 128 ? tree_kernel_128(dtype) : tree_kernel_256(dtype);
}

}  // namespace tessera::attention::cuda::sm90
