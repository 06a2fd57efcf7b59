#include "attention/cuda/steps/launch.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "attention/cuda/steps/append.h"
#include "core/format.h"

namespace tessera::attention::cuda::steps {
namespace {

constexpr int64_t kMost = int64_t{1} << 30;

// Shared memory of a multiprocessor of sm_90, and what a block takes of it besides its own.
constexpr int kSharedOfHopper = 228 * 1024, kSharedOfBlock = 1024;

Status refuse(const char* field, int64_t value, const char* limit) {
  return invalid_argument(format("{}={} must be {}", field, value, limit), field);
}

// Blocks that start while the kernel before ends go to the first multiprocessors that it leaves, as many on
// each as fit: there they take turns, and the next step starts late. Where rows are folded one by one as
// their parts come (progress), those multiprocessors are better left to the next step.
int shared_bytes_of_combine(const tessera::cuda::Launch& launch, const DecodeParams& p, int dim, int blocks) {
  const int needed = kCombineWarps * combine_rows(dim) * dim * 4;
  if (launch.device.sm() != 90 || p.progress != nullptr) return needed;
  const int spread_over = launch.device.multiprocessors / 2;
  const int on_each = (blocks + spread_over - 1) / spread_over;
  return std::max(needed, kSharedOfHopper / on_each - kSharedOfBlock);
}

}  // namespace

template <typename Pointer>
Status check_rows(const char* what, const Strided<Pointer>& rows) {
  if (rows.data == nullptr) return invalid_argument(format("{} is null", what), what);
  if (reinterpret_cast<uintptr_t>(rows.data) % 16 != 0) {
    return invalid_argument(
        format("{}'s address {} must be a multiple of 16 bytes", what, static_cast<const void*>(rows.data)),
        what);
  }
  for (const int64_t stride : {rows.batch_stride, rows.row_stride, rows.head_stride}) {
    if (stride % 8 != 0) return refuse(what, stride, "a stride of a multiple of 8 elements");
  }
  return {};
}

template Status check_rows(const char*, const Strided<const void*>&);
template Status check_rows(const char*, const Strided<void*>&);

Status check_step_problem(const AttentionProblem& p) {
  if (p.mask.tensor.kind != MaskKind::none)
    return unsupported("mask: a mask tensor over a cache is not supported; use causal, windows or leftpad",
                       "mask");
  if (p.mask.ancestors.tree_keys != 0)
    return unsupported("mask: ancestors over a cache are not supported", "mask");
  if (p.dropout.p != 0)
    return unsupported(format("dropout={} over a cache must be 0", p.dropout.p), "dropout");
  if (p.cu_seqlens_q != nullptr || p.cu_seqlens_k != nullptr)
    return unsupported("cu_seqlens: decode on CUDA takes the same number of query rows of every sequence",
                       "cu_seqlens_q");
  if (p.seqused_k != nullptr)
    return invalid_argument("seqused_k must be null: give the cache's seqlens", "seqused_k");
  if (p.batch < 0 || p.batch > kMost) return refuse("batch", p.batch, "from 0 to 2^30");
  if (p.seqlen_q < 0 || p.seqlen_q > kMost) return refuse("seqlen_q", p.seqlen_q, "from 0 to 2^30");
  AttentionProblem plain = p;  // its pointers are the device's
  plain.leftpad_k = nullptr;
  plain.alibi_slopes = nullptr;
  plain.alibi_batch_stride = 0;
  plain.seqlen_k = 0;
  return validate(plain);
}

int kernel_dim(const AttentionProblem& p) {
  const int dim = std::max(p.head_dim, p.v_head_dim);
  return dim <= 64 ? 64 : dim <= 128 ? 128 : 256;
}

bool has_features(const AttentionProblem& p) {
  return p.head_dim != kernel_dim(p) || p.v_head_dim != kernel_dim(p) || (p.mask.causal && p.seqlen_q > 1) ||
         p.mask.window_left >= 0 || p.mask.window_right >= 0 || p.softcap != 0 || p.alibi_slopes != nullptr ||
         p.leftpad_k != nullptr;
}

void set_problem(const AttentionProblem& problem, DecodeParams& p) {
  p.batch = static_cast<int32_t>(problem.batch);
  p.tokens = static_cast<int32_t>(problem.seqlen_q);
  p.kv_heads = problem.kv_heads;
  p.head_dim = problem.head_dim;
  p.v_head_dim = problem.v_head_dim;
  p.group = problem.heads / problem.kv_heads;
  p.by_tokens = Divisor(problem.seqlen_q);
  p.by_kv_heads = Divisor(problem.kv_heads);
  p.by_group = Divisor(p.group);
  p.scale = problem.scale;
  p.scale_log2 = problem.scale * 1.44269504088896341f;
  const auto window = [](int64_t w) { return static_cast<int32_t>(std::min<int64_t>(w, kMost)); };
  p.features = {problem.mask.causal ? 1 : 0,
                window(problem.mask.window_left),
                window(problem.mask.window_right),
                problem.softcap,
                problem.alibi_slopes,
                problem.alibi_batch_stride,
                problem.leftpad_k};
}

Status set_table(const AttentionProblem& problem, const CacheView& cache, DecodeParams& p) {
  if (cache.struct_size != sizeof(CacheView))
    return refuse("struct_size", cache.struct_size, "sizeof(CacheView) of this build");
  if (cache.num_blocks < 1 || cache.num_blocks > kMost)
    return refuse("num_blocks", cache.num_blocks, "from 1 to 2^30");
  if (cache.block_size < 1 || cache.block_size > kMost)
    return refuse("block_size", cache.block_size, "from 1 to 2^30");
  const bool paged = cache.block_table != nullptr;
  if (paged && cache.cache_batch_idx != nullptr)
    return invalid_argument("cache_batch_idx must be null when block_table is given", "cache_batch_idx");
  if (paged && (cache.max_blocks < 0 || cache.max_blocks > kMost))
    return refuse("max_blocks", cache.max_blocks, "from 0 to 2^30");
  if (!paged && cache.cache_batch_idx == nullptr && problem.batch > cache.num_blocks)
    return refuse("batch", problem.batch, "at most the cache's first extent");
  if (cache.seqlen < 0 || cache.seqlen > kMost) return refuse("seqlen", cache.seqlen, "from 0 to 2^30");
  p.block_table = cache.block_table;
  p.block_of = cache.cache_batch_idx;
  p.table_stride = table_stride_of(cache);
  p.page = static_cast<int32_t>(cache.block_size);
  p.num_blocks = static_cast<int32_t>(cache.num_blocks);
  p.by_page = Divisor(cache.block_size);
  p.seqlens = cache.seqlens;
  p.seqlen = static_cast<int32_t>(cache.seqlen);
  p.capacity = capacity_of(cache);
  p.units_most = std::max(1, (p.capacity + kUnit - 1) / kUnit);
  return {};
}

Status set_rows(const CacheAppend& append, const CacheTensors& tensors, DecodeParams& p) {
  if (append.seqlen < 0 || append.seqlen > kMost)
    return refuse("append.seqlen", append.seqlen, "from 0 to 2^30");
  if (append.rotary != nullptr && append.seqlen == 0)
    return invalid_argument("rotary is given but no new keys; rotate q with rope_forward", "rotary");
  TESSERA_RETURN_IF_ERROR(check_rows("q", tensors.q));
  TESSERA_RETURN_IF_ERROR(check_rows("o", tensors.o));
  if (append.seqlen > 0) {
    TESSERA_RETURN_IF_ERROR(check_rows("k", append.k));
    TESSERA_RETURN_IF_ERROR(check_rows("v", append.v));
  }
  p.q = rows_of(tensors.q);
  p.o = rows_of(tensors.o);
  p.lse = tensors.lse;
  p.appended = static_cast<int32_t>(append.seqlen);
  return {};
}

Status append_rows(tessera::cuda::Launch& launch, const AttentionProblem& problem, const CacheView& cache,
                   const CacheAppend& append, DecodeParams& p) {
  if (append.seqlen == 0) return {};
  return write_new_rows(launch, problem, cache, append, p.q);
}

Result<int> set_division(tessera::cuda::Launch& launch, const AttentionProblem& problem,
                         const DecodeKernel& kernel, const DecodeTuning& tuning, DecodeParams& p) {
  const int64_t rows = int64_t{p.tokens} * p.group;
  p.piece_rows = static_cast<int32_t>(std::min<int64_t>(rows, kernel.most_rows));
  p.row_blocks = static_cast<int32_t>((rows + p.piece_rows - 1) / p.piece_rows);
  const int64_t items = int64_t{p.batch} * p.kv_heads * p.row_blocks;
  // What the device adds up in 32 bits: tiles of all items, and rows of partials.
  if (items * std::max<int64_t>(p.capacity / kTile + 4, p.piece_rows) > INT32_MAX)
    return refuse("batch x heads x tiles of the table", items * (p.capacity / kTile + 4), "below 2^31");
  const int most = tuning.blocks > 0 ? tuning.blocks : launch.device.multiprocessors;
  const int64_t partial_rows = items * p.units_most * p.piece_rows;
  // Whole items are faster from some one and a half items a block on (measured).
  if (tuning.split && 2 * items < 3 * most && p.units_most > kSplitAbove &&
      partial_bytes(partial_rows, kernel_dim(problem)) <= kMostPartialBytes) {
    p.may_split = 1;
    TESSERA_RETURN_IF_ERROR(set_partials(launch, partial_rows, kernel_dim(problem), p));
  }
  p.by_row_blocks = Divisor(p.row_blocks);
  const int blocks = p.may_split != 0 ? most : static_cast<int>(std::min<int64_t>(most, items));
  p.by_blocks = Divisor(blocks);
  return blocks;
}

int64_t partial_bytes(int64_t rows, int head_dim) {
  return rows * (head_dim + 2) * 4;
}

Status set_partials(tessera::cuda::Launch& launch, int64_t rows, int head_dim, DecodeParams& p) {
  const auto bytes = [](int64_t count, int64_t size) {
    return static_cast<size_t>(std::max<int64_t>(1, count) * size);
  };
  TESSERA_ASSIGN_OR_RETURN(void* o,
                           launch.workspace.get(kPartialSlot, bytes(rows, 4 * head_dim), launch.stream));
  TESSERA_ASSIGN_OR_RETURN(void* ml, launch.workspace.get(kPartialStateSlot, bytes(rows, 8), launch.stream));
  p.partial_o = static_cast<float*>(o);
  p.partial_ml = static_cast<float2*>(ml);
  return {};
}

Status launch_kernel(const tessera::cuda::Launch& launch, const void* kernel, int blocks, int threads,
                     int shared_bytes, bool dependent, const void* params, const char* name) {
  if (shared_bytes > 48 * 1024) {
    TESSERA_RETURN_IF_ERROR(tessera::cuda::to_status(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        format("shared memory of kernel {}", name)));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(launch.stream.handle());
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = dependent && launch.device.major >= 9 ? 1 : 0;
  void* arguments[] = {const_cast<void*>(params)};
  return tessera::cuda::to_status(cudaLaunchKernelExC(&config, kernel, arguments), format("kernel {}", name));
}

Status launch_combine(tessera::cuda::Launch& launch, const AttentionProblem& problem, bool listed,
                      const DecodeParams& p) {
  const int dim = kernel_dim(problem);
  const void* const kernel = combine_kernel_for(problem.dtype, dim, listed, has_features(problem));
  const int64_t rows = int64_t{p.batch} * p.tokens * p.kv_heads * p.group;
  const int blocks = static_cast<int>((rows + kCombineWarps - 1) / kCombineWarps);
  return launch_kernel(launch, kernel, blocks, 32 * kCombineWarps,
                       shared_bytes_of_combine(launch, p, dim, blocks), true, &p, "decode combine");
}

Status launch_decode(tessera::cuda::Launch& launch, const AttentionProblem& problem,
                     const DecodeKernel& kernel, const DecodeTuning& tuning, DecodeParams& p) {
  TESSERA_ASSIGN_OR_RETURN(const int blocks, set_division(launch, problem, kernel, tuning, p));
  TESSERA_RETURN_IF_ERROR(launch_kernel(launch, kernel.kernel, blocks, kernel.threads, kernel.shared_bytes,
                                        tuning.early, &p, "decode"));
  if (p.may_split == 0) return {};
  return launch_combine(launch, problem, false, p);
}

}  // namespace tessera::attention::cuda::steps
