#include "attention/cuda/tree/tree.h"

#include <algorithm>
#include <cstring>

#include "attention/cuda/sm80/decode/decode.h"
#include "attention/cuda/sm80/decode/kernels.h"
#include "attention/cuda/sm90/decode/decode.h"
#include "attention/cuda/sm90/decode/launch.h"
#include "core/format.h"

namespace tessera::attention::cuda::steps {
namespace {

template <typename T>
size_t padded_bytes(const std::vector<T>& values) {
  return (values.size() * sizeof(T) + 15) / 16 * 16;
}

DecodeKernel kernel_for(bool on_hopper, const AttentionProblem& problem) {
  return on_hopper ? sm90::tree_kernel_for(problem) : sm80::step_kernel_for(problem, true);
}

}  // namespace

Result<TreePlan> TreePlan::create(tessera::cuda::Launch& launch, const AttentionProblem& problem,
                                  std::span<const TreeSequence> sequences, int64_t block_size,
                                  TreePlanOptions options) {
  TreePlan plan;
  plan.problem_ = problem;
  plan.problem_.batch = static_cast<int64_t>(sequences.size());
  plan.on_hopper_ =
      launch.device.sm() == 90 && !options.for_any_device && sm90::supports_decode(plan.problem_).ok();
  if (!plan.on_hopper_) TESSERA_RETURN_IF_ERROR(sm80::supports_decode(launch.device, plan.problem_));
  if (problem.seqlen_q != 1) {
    return unsupported(format("seqlen_q={} of a prefix tree must be 1", problem.seqlen_q), "seqlen_q");
  }
  if (block_size < 1)
    return invalid_argument(format("block_size={} must be at least 1", block_size), "block_size");
  const int group = problem.heads / problem.kv_heads;
  const int most_rows = kernel_for(plan.on_hopper_, problem).most_rows;
  options.most_rows = options.most_rows > 0 ? std::min(options.most_rows, most_rows) : most_rows;
  options.blocks = std::min(launch.device.multiprocessors, kMostBlocks);
  std::string why;
  if (group > std::min(options.most_rows, 8 * kMostRowGroups)) {
    why = format("not shared: {} query heads a kv head are more rows than a piece's {}\n", group,
                 std::min(options.most_rows, 8 * kMostRowGroups));
  }
  // Were every row cut at every unit.
  int64_t partial_rows = 0;
  for (const TreeSequence& s : sequences) {
    const int64_t keys = std::min(s.keys + options.reserve, std::max(s.keys, options.capacity));
    partial_rows += (keys / kUnit + 1) * problem.heads;
  }
  const int64_t bytes_at_most = partial_bytes(partial_rows, kernel_dim(problem));
  if (bytes_at_most > kMostPartialBytes) {
    why =
        format("not shared: partial states of all keys (with reserve={}) could take {} bytes, more than {}\n",
               options.reserve, bytes_at_most, kMostPartialBytes);
  }
  if (!why.empty()) options.sharing = TreeSharing::never;
  plan.options_ = options;
  plan.work_ = plan_tree(sequences, problem.kv_heads, group, block_size, options);
  plan.work_.explanation += why;
  if (!plan.work_.shares) return plan;
  const TreeWork& w = plan.work_;
  std::vector<char> bytes(padded_bytes(w.pieces) + padded_bytes(w.tokens) + padded_bytes(w.partials) +
                          padded_bytes(w.entries));
  size_t at = 0;
  const auto add = [&](const auto& values) {
    if (!values.empty()) std::memcpy(bytes.data() + at, values.data(), values.size() * sizeof values[0]);
    at += padded_bytes(values);
  };
  add(w.pieces);
  add(w.tokens);
  add(w.partials);
  add(w.entries);
  TESSERA_ASSIGN_OR_RETURN(plan.memory_,
                           tessera::cuda::DevicePool::take(launch.pool, bytes.size(), "the tree's plan"));
  // Pageable memory has been staged when this returns: `bytes` may go.
  TESSERA_RETURN_IF_ERROR(
      tessera::cuda::copy(plan.memory_->data(), bytes.data(), bytes.size(), launch.stream));
  return plan;
}

Status TreePlan::attend(tessera::cuda::Launch& launch, const CacheView& cache, const CacheAppend& append,
                        const CacheTensors& tensors) const {
  if (!work_.shares) {
    return on_hopper_ ? sm90::decode(launch, problem_, cache, append, tensors, {options_.blocks})
                      : sm80::decode(launch, problem_, cache, append, tensors, {options_.blocks});
  }
  DecodeParams p{};
  set_problem(problem_, p);
  TESSERA_RETURN_IF_ERROR(on_hopper_ ? sm90::set_cache(problem_, cache, false, p)
                                     : sm80::set_cache(problem_, cache, p));
  TESSERA_RETURN_IF_ERROR(set_rows(append, tensors, p));
  TESSERA_RETURN_IF_ERROR(append_rows(launch, problem_, cache, append, p));
  const char* at = memory_->as<char>();
  const auto next = [&]<typename T>(const std::vector<T>& values) {
    const T* here = reinterpret_cast<const T*>(at);
    at += padded_bytes(values);
    return here;
  };
  p.pieces = next(work_.pieces);
  std::copy(work_.piece_first.begin(), work_.piece_first.end(), p.piece_first);
  p.token_list = next(work_.tokens);
  p.partials = next(work_.partials);
  p.entries = next(work_.entries);
  p.entry_stride = work_.entry_stride;
  TESSERA_RETURN_IF_ERROR(set_partials(launch, work_.partial_rows, kernel_dim(problem_), p));
  // Where all ends at once there is nothing to begin with earlier.
  if (on_hopper_ && work_.has_tails) {
    TESSERA_ASSIGN_OR_RETURN(
        void* const progress,
        launch.workspace.get(kProgressSlot, kMostBlocks * sizeof(BlockProgress), launch.stream));
    p.progress = static_cast<BlockProgress*>(progress);
  }
  const DecodeKernel kernel = kernel_for(on_hopper_, problem_);
  TESSERA_RETURN_IF_ERROR(launch_kernel(launch, kernel.kernel, options_.blocks, kernel.threads,
                                        kernel.shared_bytes, true, &p, "tree"));
  return launch_combine(launch, problem_, true, p);
}

}  // namespace tessera::attention::cuda::steps
