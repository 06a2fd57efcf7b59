#include "attention/cuda/steps/append.h"

#include <algorithm>

#include "attention/cuda/steps/launch.h"
#include "core/format.h"

namespace tessera::attention::cuda::steps {
namespace {

constexpr int64_t kMost = int64_t{1} << 30;

}  // namespace

Status write_new_rows(tessera::cuda::Launch& launch, const AttentionProblem& problem, const CacheView& cache,
                      const CacheAppend& append, TokenRows<const void>& q) {
  const bool packed = problem.cu_seqlens_q != nullptr;
  AppendParams a{};
  a.k = rows_of(append.k);
  a.v = rows_of(append.v);
  a.k_cache = rows_of(cache.k);
  a.v_cache = rows_of(cache.v);
  a.q = q;
  a.batch = static_cast<int32_t>(problem.batch);
  a.appended = static_cast<int32_t>(append.seqlen);
  a.tokens = static_cast<int32_t>(problem.seqlen_q);
  a.rows = static_cast<int32_t>(packed ? problem.total_q : problem.batch * problem.seqlen_q);
  a.cu_seqlens_q = problem.cu_seqlens_q;
  a.heads = problem.heads;
  a.kv_heads = problem.kv_heads;
  a.head_dim = problem.head_dim;
  a.v_head_dim = problem.v_head_dim;
  a.block_table = cache.block_table;
  a.block_of = cache.cache_batch_idx;
  a.table_stride = table_stride_of(cache);
  a.page = static_cast<int32_t>(cache.block_size);
  a.capacity = capacity_of(cache);
  a.num_blocks = static_cast<int32_t>(cache.num_blocks);
  a.seqlens = cache.seqlens;
  a.seqlen = static_cast<int32_t>(cache.seqlen);
  if (append.rotary != nullptr) {
    const Rotary& rotary = *append.rotary;
    const auto refuse = [](const std::string& message, const char* field) {
      return invalid_argument(message, field);
    };
    if (rotary.rotary_dim < 2 || rotary.rotary_dim % 2 != 0 || rotary.rotary_dim > problem.head_dim) {
      return refuse(format("rotary_dim={} must be even, from 2 to head_dim", rotary.rotary_dim),
                    "rotary_dim");
    }
    if (rotary.cos == nullptr || rotary.sin == nullptr)
      return refuse("rotary.cos and rotary.sin must not be null", "rotary");
    a.rotary_dim = rotary.rotary_dim;
    a.interleaved = rotary.style == RopeStyle::interleaved ? 1 : 0;
    a.cos = rotary.cos;
    a.sin = rotary.sin;
    a.table_dtype = rotary.dtype;
    a.table_row_stride = rotary.row_stride > 0 ? rotary.row_stride : rotary.rotary_dim / 2;
    a.table_positions = static_cast<int32_t>(std::min(kMost, rotary.positions));
    a.advancing_q =
        problem.mask.causal || problem.mask.window_left >= 0 || problem.mask.window_right >= 0 ? 1 : 0;
    if (a.rows > 0) {
      const int64_t width = int64_t{problem.heads} * problem.head_dim;
      TESSERA_ASSIGN_OR_RETURN(
          a.rotated, launch.workspace.get(
                         kRotatedSlot, static_cast<size_t>(info(problem.dtype).block_bytes * a.rows * width),
                         launch.stream));
      q = {a.rotated, packed ? 0 : a.tokens * width, width, problem.head_dim};
    }
  }
  return launch_kernel(launch, append_kernel_for(problem.dtype), static_cast<int>(append_blocks(a)), 128, 0,
                       true, &a, "append");
}

}  // namespace tessera::attention::cuda::steps
