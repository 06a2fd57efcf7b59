#include "attention/cuda/dispatch.h"

#include <span>

#include "attention/cuda/rows/rows.h"
#include "attention/cuda/sm80/backward/backward.h"
#include "attention/cuda/sm80/decode/decode.h"
#include "attention/cuda/sm80/prefill/forward.h"
#include "attention/cuda/sm90/decode/decode.h"
#include "attention/cuda/sm90/prefill/launch.h"
#include "attention/cuda/sm90/prefill/prompt.h"
#include "attention/cuda/steps/append.h"
#include "attention/cuda/tree/tree.h"
#include "attention/merge.h"
#include "attention/rope.h"
#include "attention/sequences.h"
#include "core/format.h"

namespace tessera::attention::cuda {
namespace {

using tessera::cuda::DeviceGuard;
using tessera::cuda::DeviceProperties;
using tessera::cuda::Launch;

// A kernel as the tables have it, best first: what it takes, on which device, and its call.
template <typename Tensors>
struct Kernel {
  const char* name;
  Status (*supports)(const DeviceProperties& device, const AttentionProblem& problem);
  Status (*run)(Launch& launch, const AttentionProblem& problem, const Tensors& tensors);
  // What explain() adds about a problem that it takes; null: nothing.
  std::string (*detail)(const DeviceProperties& device, const AttentionProblem& problem) = nullptr;
};

// Kernels of compute capability 9.0 alone ("sm_90a").
Status only_on_hopper(const DeviceProperties& device, const char* kernel) {
  if (device.sm() == 90) return {};
  return unsupported(format("{} is for sm_90, device {} is sm_{}", kernel, device.name, device.sm()),
                     "device");
}

Status supports_sm90_prefill(const DeviceProperties& device, const AttentionProblem& problem) {
  TESSERA_RETURN_IF_ERROR(only_on_hopper(device, "sm90 prefill"));
  return sm90::prefill_supports(problem, {});
}
Status run_sm90_prefill(Launch& launch, const AttentionProblem& problem, const ForwardTensors& tensors) {
  return sm90::prefill(launch, problem, tensors);
}

std::string describe_sm90_prefill(const DeviceProperties& device, const AttentionProblem& problem) {
  if (!sm90::prefill_packs(problem, device.multiprocessors)) return {};
  return format(", the {} query heads of a kv head packed into one tile", problem.heads / problem.kv_heads);
}

constexpr Kernel<ForwardTensors> kForwardKernels[] = {
    {"sm90 prefill (TMA, wgmma)", supports_sm90_prefill, run_sm90_prefill, describe_sm90_prefill},
    {"sm80 prefill (mma.sync)", sm80::supports_forward, sm80::forward},
};
constexpr Kernel<BackwardTensors> kBackwardKernels[] = {
    {"sm80 backward (mma.sync)", sm80::supports_backward, sm80::backward},
};
// What a step over a cache has in the place of tensors.
struct CacheStep {
  const CacheView& cache;
  const CacheAppend& append;
  const CacheTensors& tensors;
};

Status supports_sm90_step(const DeviceProperties& device, const AttentionProblem& problem) {
  TESSERA_RETURN_IF_ERROR(only_on_hopper(device, "sm90 step"));
  return sm90::supports_decode(problem);
}
Status run_sm90_step(Launch& launch, const AttentionProblem& problem, const CacheStep& step) {
  return sm90::decode(launch, problem, step.cache, step.append, step.tensors);
}
Status run_sm80_step(Launch& launch, const AttentionProblem& problem, const CacheStep& step) {
  return sm80::decode(launch, problem, step.cache, step.append, step.tensors);
}

Status supports_sm90_prompt(const DeviceProperties& device, const AttentionProblem& problem) {
  TESSERA_RETURN_IF_ERROR(only_on_hopper(device, "sm90 prefill over a cache"));
  AttentionProblem some_keys = problem;  // seqlen_k is not read over a cache
  some_keys.seqlen_k = 1;
  return sm90::prefill_supports(some_keys, {});
}
Status run_sm90_prompt(Launch& launch, const AttentionProblem& problem, const CacheStep& step) {
  return sm90::attend_prompt(launch, problem, step.cache, step.append, step.tensors);
}
Status run_sm80_prompt(Launch& launch, const AttentionProblem& problem, const CacheStep& step) {
  return sm80::attend_prompt(launch, problem, step.cache, step.append, step.tensors);
}

constexpr Kernel<CacheStep> kPromptKernels[] = {
    {"sm90 prefill over a cache (TMA, wgmma)", supports_sm90_prompt, run_sm90_prompt},
    {"sm80 prefill over a cache (cp.async, mma.sync)", sm80::supports_prompt, run_sm80_prompt},
};
// Both give the same bits.
constexpr Kernel<CacheStep> kStepKernels[] = {
    {"sm90 step over a cache (TMA, mma.sync)", supports_sm90_step, run_sm90_step},
    {"sm80 step over a cache (cp.async, mma.sync)", sm80::supports_decode, run_sm80_step},
};
constexpr std::span<const Kernel<ForwardTensors>> kForward{kForwardKernels};
constexpr std::span<const Kernel<BackwardTensors>> kBackward{kBackwardKernels};
constexpr std::span<const Kernel<CacheStep>> kPrompt{kPromptKernels};
constexpr std::span<const Kernel<CacheStep>> kStep{kStepKernels};

// The first that takes the problem, and its tensors: a kernel that refuses their strides does so before it
// launches anything. When none does, the last one's reason, which is the widest's.
template <typename Tensors>
Status run_best(std::span<const Kernel<Tensors>> kernels, Launch& launch, const AttentionProblem& problem,
                const Tensors& tensors) {
  Status why = unsupported(format("no CUDA kernel for device {}", launch.device.name), "device");
  for (const Kernel<Tensors>& kernel : kernels) {
    why = kernel.supports(launch.device, problem);
    if (why.ok()) why = kernel.run(launch, problem, tensors);
    if (why.code() != StatusCode::unsupported) return why;
  }
  return why;
}

template <typename Tensors>
std::string explain_table(std::span<const Kernel<Tensors>> kernels, const DeviceProperties& device,
                          const AttentionProblem& problem) {
  std::string lines;
  bool found = false;
  for (const Kernel<Tensors>& kernel : kernels) {
    const Status status = kernel.supports(device, problem);
    const bool best = status.ok() && !found;
    found |= best;
    const std::string detail =
        best && kernel.detail != nullptr ? kernel.detail(device, problem) : std::string();
    lines += format("{}{}: {}\n", best ? "> " : "  ", kernel.name,
                    best          ? format("taken on {} (sm_{}){}", device.name, device.sm(), detail)
                    : status.ok() ? "would do, but a faster kernel is there"
                                  : status.message());
  }
  return lines;
}

// A pointer of the problem or a tensor with elements: memory of the device.
struct Place {
  const char* field;
  const void* pointer;
};
Status check_places(const Launch& launch, std::initializer_list<Place> places) {
  for (const Place& place : places) {
    if (place.pointer == nullptr) continue;
    TESSERA_RETURN_IF_ERROR(tessera::cuda::check_resident(place.field, place.pointer, launch.device.ordinal));
  }
  return {};
}

// Numbers of so many bytes that kernels read as such.
Status check_words(std::initializer_list<Place> places, uintptr_t bytes = 4) {
  for (const Place& place : places) {
    if (reinterpret_cast<uintptr_t>(place.pointer) % bytes != 0) {
      return invalid_argument(format("{} must be aligned to its {} byte elements", place.field, bytes),
                              place.field);
    }
  }
  return {};
}

Status check_problem(const Launch& launch, const AttentionProblem& p) {
  TESSERA_RETURN_IF_ERROR(validate_sizes_and_options(p));
  if (p.cu_seqlens_q != nullptr && p.batch > 0) {
    for (const auto& [total, longest, field] :
         {std::tuple{p.total_q, p.seqlen_q, "total_q"}, std::tuple{p.total_k, p.seqlen_k, "total_k"}}) {
      if (total > 0 || longest == 0) continue;
      return invalid_argument(
          format("{}=0 must be the last entry of cu_seqlens_{}, which a device's host does not read (with no "
                 "{} at all, set seqlen_{}=0)",
                 field, field[6], field[6] == 'q' ? "rows" : "keys", field[6]),
          field);
    }
  }
  const std::initializer_list<Place> words = {{"cu_seqlens_q", p.cu_seqlens_q},
                                              {"cu_seqlens_k", p.cu_seqlens_k},
                                              {"seqused_k", p.seqused_k},
                                              {"leftpad_k", p.leftpad_k},
                                              {"alibi_slopes", p.alibi_slopes}};
  TESSERA_RETURN_IF_ERROR(check_words(words));
  TESSERA_RETURN_IF_ERROR(check_words({{"ancestors.bits", p.mask.ancestors.bits}}, 8));
  TESSERA_RETURN_IF_ERROR(check_words({{"ancestors.depth", p.mask.ancestors.depth}}));
  TESSERA_RETURN_IF_ERROR(check_places(launch, words));
  return check_places(launch, {{"mask.data", p.mask.tensor.data},
                               {"ancestors.bits", p.mask.ancestors.bits},
                               {"ancestors.depth", p.mask.ancestors.depth}});
}

// Names a tensor, checks it as on the CPU and asks where it lies.
class TensorCheck {
 public:
  TensorCheck(const Launch& launch, const AttentionProblem& problem)
      : launch_(launch), problem_(problem), axes_(device_tensor_axes(problem)) {}
  template <typename Pointer>
  Status rows(const char* field, const Strided<Pointer>& tensor, int dim) const {
    return check(field, tensor, axes_.rows, problem_.heads, dim);
  }
  template <typename Pointer>
  Status keys(const char* field, const Strided<Pointer>& tensor, int dim) const {
    return check(field, tensor, axes_.keys, problem_.kv_heads, dim);
  }
  Status lse(const float* lse) const {
    TESSERA_RETURN_IF_ERROR(check_words({{"lse", lse}}));
    return check_places(launch_, {{"lse", lse}});
  }
  const TensorAxes& axes() const { return axes_; }

 private:
  template <typename Pointer>
  Status check(const char* field, const Strided<Pointer>& tensor, int64_t rows, int heads, int dim) const {
    TESSERA_RETURN_IF_ERROR(check_tensor(field, tensor, axes_.batches, rows, heads, dim, problem_.dtype));
    if (axes_.batches * rows == 0) return {};
    return check_places(launch_, {{field, tensor.data}});
  }
  const Launch& launch_;
  const AttentionProblem& problem_;
  const TensorAxes axes_;
};

}  // namespace

Status CudaKernels::forward(const AttentionProblem& problem, const ForwardTensors& t) {
  const DeviceGuard guard(launch_.device.ordinal);
  TESSERA_RETURN_IF_ERROR(guard.status());
  TESSERA_RETURN_IF_ERROR(check_problem(launch_, problem));
  const TensorCheck check(launch_, problem);
  TESSERA_RETURN_IF_ERROR(check.rows("q", t.q, problem.head_dim));
  TESSERA_RETURN_IF_ERROR(check.keys("k", t.k, problem.head_dim));
  TESSERA_RETURN_IF_ERROR(check.keys("v", t.v, problem.v_head_dim));
  TESSERA_RETURN_IF_ERROR(check.rows("o", t.o, problem.v_head_dim));
  TESSERA_RETURN_IF_ERROR(check.lse(t.lse));
  if (check.axes().batches * check.axes().rows == 0) return {};
  return run_best(kForward, launch_, problem, t);
}

Status CudaKernels::backward(const AttentionProblem& problem, const BackwardTensors& t) {
  const DeviceGuard guard(launch_.device.ordinal);
  TESSERA_RETURN_IF_ERROR(guard.status());
  TESSERA_RETURN_IF_ERROR(check_problem(launch_, problem));
  const TensorCheck check(launch_, problem);
  TESSERA_RETURN_IF_ERROR(check.rows("q", t.q, problem.head_dim));
  TESSERA_RETURN_IF_ERROR(check.keys("k", t.k, problem.head_dim));
  TESSERA_RETURN_IF_ERROR(check.keys("v", t.v, problem.v_head_dim));
  TESSERA_RETURN_IF_ERROR(check.rows("o", t.o, problem.v_head_dim));
  TESSERA_RETURN_IF_ERROR(check.rows("dout", t.dout, problem.v_head_dim));
  TESSERA_RETURN_IF_ERROR(check.rows("dq", t.dq, problem.head_dim));
  TESSERA_RETURN_IF_ERROR(check.keys("dk", t.dk, problem.head_dim));
  TESSERA_RETURN_IF_ERROR(check.keys("dv", t.dv, problem.v_head_dim));
  const TensorAxes& axes = check.axes();
  if (t.lse == nullptr && axes.batches * axes.rows > 0) {
    return invalid_argument(format("lse is null but has {} elements; pass what forward gave",
                                   axes.batches * axes.rows * problem.heads),
                            "lse");
  }
  TESSERA_RETURN_IF_ERROR(check.lse(t.lse));
  if (axes.batches * (axes.rows + axes.keys) == 0) return {};
  return run_best(kBackward, launch_, problem, t);
}

namespace {

// From so many query rows of a sequence on, and with cu_seqlens_q, rows are a prompt's and go by tiles of 64
// and more; fewer are a step's. The call says it, not the batch or the lengths, so a row's bits do not depend
// on who comes with it.
constexpr int64_t kPromptRows = 17;

bool is_prompt(const AttentionProblem& p) {
  return p.cu_seqlens_q != nullptr || p.seqlen_q >= kPromptRows;
}

// A call without query rows, on any device.
Status append_alone(Launch& launch, const AttentionProblem& p, const CacheView& c,
                    const CacheAppend& append) {
  if (p.batch == 0 || append.seqlen == 0) return {};
  steps::TokenRows<const void> none{};
  return steps::write_new_rows(launch, p, c, append, none);
}

Status check_cache(const AttentionProblem& p, const CacheView& c, const CacheAppend& append) {
  if (p.mask.tensor.kind != MaskKind::none) {
    return unsupported("mask: a mask tensor over a cache is not supported; use causal, windows or leftpad",
                       "mask");
  }
  if (p.mask.ancestors.tree_keys != 0)
    return unsupported("mask: ancestors over a cache are not supported", "mask");
  if (p.dropout.p != 0)
    return unsupported(format("dropout={} over a cache must be 0", p.dropout.p), "dropout");
  if (p.seqused_k != nullptr)
    return invalid_argument("seqused_k must be null: give the cache's seqlens", "seqused_k");
  if (p.cu_seqlens_k != nullptr) {
    return invalid_argument("cu_seqlens_k must be null: the cache's seqlens say how many keys there are",
                            "cu_seqlens_k");
  }
  if (c.struct_size != sizeof(CacheView)) {
    return invalid_argument(format("struct_size={} must be sizeof(CacheView) of this build", c.struct_size),
                            "struct_size");
  }
  for (const auto& [value, least, field] : {std::tuple{c.num_blocks, int64_t{0}, "num_blocks"},
                                            std::tuple{c.block_size, int64_t{1}, "block_size"},
                                            std::tuple{c.max_blocks, int64_t{0}, "max_blocks"},
                                            std::tuple{c.table_stride, int64_t{0}, "table_stride"},
                                            std::tuple{append.seqlen, int64_t{0}, "append.seqlen"}}) {
    if (value < least || value > INT32_MAX) {
      return invalid_argument(format("{}={} must be from {} to 2^31 - 1", field, value, least), field);
    }
  }
  if (c.block_table != nullptr && c.cache_batch_idx != nullptr)
    return invalid_argument("cache_batch_idx must be null when block_table is given", "cache_batch_idx");
  if (c.block_table == nullptr && c.cache_batch_idx == nullptr && p.batch > c.num_blocks) {
    return invalid_argument(
        format("batch={} must be at most the cache's first extent, {}", p.batch, c.num_blocks), "batch");
  }
  const int64_t capacity = c.block_table != nullptr ? c.max_blocks * c.block_size : c.block_size;
  if (c.seqlens == nullptr && (c.seqlen < 0 || c.seqlen > capacity - append.seqlen)) {
    return invalid_argument(format("seqlen={} must be from 0 to {} (capacity {} less {} new keys)", c.seqlen,
                                   capacity - append.seqlen, capacity, append.seqlen),
                            "seqlen");
  }
  if (append.rotary == nullptr) return {};
  if (append.seqlen == 0)
    return invalid_argument("rotary is given but no new keys; rotate q with rope_forward", "rotary");
  TESSERA_RETURN_IF_ERROR(validate_rotary(*append.rotary, p.head_dim));
  return check_words({{"rotary_cos", append.rotary->cos}, {"rotary_sin", append.rotary->sin}},
                     static_cast<uintptr_t>(info(append.rotary->dtype).block_bytes));
}

// Everything that a call over a cache can get wrong without a look into device memory.
Status check_cache_call(const Launch& launch, const AttentionProblem& problem, const CacheView& cache,
                        const CacheAppend& append, const CacheTensors& t) {
  TESSERA_RETURN_IF_ERROR(check_cache(problem, cache, append));
  AttentionProblem plain = problem;  // cu_seqlens_q may come alone here
  plain.cu_seqlens_q = nullptr;
  plain.total_q = plain.total_k = plain.seqlen_k = 0;
  TESSERA_RETURN_IF_ERROR(check_problem(launch, plain));
  const bool packed = problem.cu_seqlens_q != nullptr;
  const int64_t batches = packed ? 1 : problem.batch, rows = packed ? problem.total_q : problem.seqlen_q;
  if (packed && rows == 0 && problem.seqlen_q > 0 && problem.batch > 0) {
    return invalid_argument(
        "total_q=0 must be the last entry of cu_seqlens_q, which a device's host does not read", "total_q");
  }
  const auto check = [&](const char* field, const auto& tensor, int64_t of_batches, int64_t of_rows,
                         int heads, int dim) -> Status {
    TESSERA_RETURN_IF_ERROR(check_tensor(field, tensor, of_batches, of_rows, heads, dim, problem.dtype));
    return of_batches * of_rows == 0 ? Status() : check_places(launch, {{field, tensor.data}});
  };
  TESSERA_RETURN_IF_ERROR(check("q", t.q, batches, rows, problem.heads, problem.head_dim));
  TESSERA_RETURN_IF_ERROR(check("o", t.o, batches, rows, problem.heads, problem.v_head_dim));
  TESSERA_RETURN_IF_ERROR(
      check("k_cache", cache.k, cache.num_blocks, cache.block_size, problem.kv_heads, problem.head_dim));
  TESSERA_RETURN_IF_ERROR(
      check("v_cache", cache.v, cache.num_blocks, cache.block_size, problem.kv_heads, problem.v_head_dim));
  TESSERA_RETURN_IF_ERROR(
      check("k", append.k, problem.batch, append.seqlen, problem.kv_heads, problem.head_dim));
  TESSERA_RETURN_IF_ERROR(
      check("v", append.v, problem.batch, append.seqlen, problem.kv_heads, problem.v_head_dim));
  const std::initializer_list<Place> words = {{"lse", t.lse},
                                              {"cu_seqlens_q", problem.cu_seqlens_q},
                                              {"block_table", cache.block_table},
                                              {"cache_seqlens", cache.seqlens},
                                              {"cache_batch_idx", cache.cache_batch_idx}};
  TESSERA_RETURN_IF_ERROR(check_words(words));
  TESSERA_RETURN_IF_ERROR(check_places(launch, words));
  if (append.rotary == nullptr) return {};
  return check_places(launch, {{"rotary_cos", append.rotary->cos}, {"rotary_sin", append.rotary->sin}});
}

// A plan and the device that it is for.
class CudaTreePlan : public DeviceTreePlan {
 public:
  CudaTreePlan(steps::TreePlan plan_in, int device_in, int kv_heads)
      : plan(std::move(plan_in)), device(device_in), kv_heads_(static_cast<uint64_t>(kv_heads)) {}
  Limits limits(int64_t sequence) const override {
    const steps::KeyLimits limits = plan.limits(sequence);
    return {limits.least, limits.most};
  }
  CacheReads reads() const override {
    const steps::TreeReads reads = plan.reads();
    const auto all = [&](int64_t tiles) { return static_cast<uint64_t>(tiles) * kv_heads_; };
    return {all(reads.tiles), all(reads.shared), all(reads.unshared)};
  }
  std::string explain() const override { return plan.explain(); }
  const steps::TreePlan plan;
  const int device;

 private:
  const uint64_t kv_heads_;
};

}  // namespace

Status CudaKernels::check_host_memory(const char* field, const void* pointer) const {
  const DeviceGuard guard(launch_.device.ordinal);
  TESSERA_RETURN_IF_ERROR(guard.status());
  return tessera::cuda::check_host_memory(field, pointer);
}

Result<std::unique_ptr<DeviceTreePlan>> CudaKernels::plan_tree(const AttentionProblem& problem,
                                                               const CacheTables& tables,
                                                               const CacheTreeOptions& options) {
  const int device = launch_.device.ordinal;
  const DeviceGuard guard(device);
  TESSERA_RETURN_IF_ERROR(guard.status());
  AttentionProblem plain = problem;  // what concerns keys in tensors is the cache's business
  plain.total_q = plain.total_k = plain.seqlen_k = 0;
  TESSERA_RETURN_IF_ERROR(check_problem(launch_, plain));
  TESSERA_ASSIGN_OR_RETURN(const bool capturing, launch_.stream.capturing());
  if (capturing) {
    return invalid_argument(
        "context: its stream is being captured into a graph; make the plan before, and keep it with the "
        "graph",
        "context");
  }
  const int64_t stride = tables.table_stride > 0 ? tables.table_stride : tables.max_blocks;
  std::vector<steps::TreeSequence> sequences;
  for (int64_t b = 0; b < problem.batch; ++b) {
    const int64_t keys = tables.seqlens[b] + tables.appended;
    const int64_t window = problem.mask.window_left;
    sequences.push_back(
        {tables.block_table + b * stride, keys, window < 0 ? 0 : std::max<int64_t>(0, keys - 1 - window)});
  }
  steps::TreePlanOptions plan_options;
  plan_options.sharing = options.sharing;
  plan_options.reserve = options.reserve;
  plan_options.capacity = tables.max_blocks * tables.block_size;
  TESSERA_ASSIGN_OR_RETURN(steps::TreePlan plan, steps::TreePlan::create(launch_, problem, sequences,
                                                                         tables.block_size, plan_options));
  return std::unique_ptr<DeviceTreePlan>(new CudaTreePlan(std::move(plan), device, problem.kv_heads));
}

Status CudaKernels::attend_tree(const DeviceTreePlan& device_plan, const CacheView& cache,
                                const CacheAppend& append, const CacheTensors& t) {
  const DeviceGuard guard(launch_.device.ordinal);
  TESSERA_RETURN_IF_ERROR(guard.status());
  const auto& made = static_cast<const CudaTreePlan&>(device_plan);
  if (made.device != launch_.device.ordinal) {
    return invalid_argument(format("context: the plan was made for CUDA device {} and this context is of {}",
                                   made.device, launch_.device.ordinal),
                            "context");
  }
  TESSERA_RETURN_IF_ERROR(check_cache_call(launch_, made.plan.problem(), cache, append, t));
  return made.plan.attend(launch_, cache, append, t);
}

Status CudaKernels::attend_cache(const AttentionProblem& problem, const CacheView& cache,
                                 const CacheAppend& append, const CacheTensors& t) {
  const DeviceGuard guard(launch_.device.ordinal);
  TESSERA_RETURN_IF_ERROR(guard.status());
  TESSERA_RETURN_IF_ERROR(check_cache_call(launch_, problem, cache, append, t));
  const bool packed = problem.cu_seqlens_q != nullptr;
  const int64_t batches = packed ? 1 : problem.batch, rows = packed ? problem.total_q : problem.seqlen_q;
  if (batches * rows == 0) return append_alone(launch_, problem, cache, append);
  const CacheStep call{cache, append, t};
  if (is_prompt(problem)) {
    // What no prompt kernel takes (f32 of more than 192 columns where shared memory is short) the step kernel
    // does, 8 rows at a time.
    const Status status = run_best(kPrompt, launch_, problem, call);
    if (status.code() != StatusCode::unsupported || packed) return status;
  }
  return run_best(kStep, launch_, problem, call);
}

Status CudaKernels::rope(const RopeProblem& p, const Strided<const void*>& x, const Strided<void*>& out,
                         bool backward) {
  const DeviceGuard guard(launch_.device.ordinal);
  TESSERA_RETURN_IF_ERROR(guard.status());
  TESSERA_RETURN_IF_ERROR(check_rope(p));
  const bool packed = p.cu_seqlens != nullptr;
  const int64_t batches = packed ? 1 : p.batch, rows = packed ? p.total : p.seqlen;
  if (batches * rows == 0) return {};
  if (batches * rows > INT32_MAX)
    return invalid_argument(format("rope: {} rows must be below 2^31", batches * rows), "seqlen");
  if (p.rotary.positions < 1) return invalid_argument("rope: positions=0 must be at least 1", "positions");
  TESSERA_RETURN_IF_ERROR(check_tensor("x", x, batches, rows, p.heads, p.head_dim, p.dtype));
  TESSERA_RETURN_IF_ERROR(check_tensor("out", out, batches, rows, p.heads, p.head_dim, p.dtype));
  const std::initializer_list<Place> words = {
      {"cu_seqlens", p.cu_seqlens}, {"offsets", p.offsets}, {"positions", p.positions}};
  TESSERA_RETURN_IF_ERROR(check_words(words));
  TESSERA_RETURN_IF_ERROR(check_words({{"cos", p.rotary.cos}, {"sin", p.rotary.sin}},
                                      static_cast<uintptr_t>(info(p.rotary.dtype).block_bytes)));
  TESSERA_RETURN_IF_ERROR(check_places(launch_, words));
  TESSERA_RETURN_IF_ERROR(check_places(
      launch_, {{"x", x.data}, {"out", out.data}, {"cos", p.rotary.cos}, {"sin", p.rotary.sin}}));
  return rotate(launch_, p, batches * rows, x, out, backward);
}

Status CudaKernels::merge_states(const MergeProblem& p, std::span<const AttentionPart> parts,
                                 const Strided<void*>& o, const Strided<float*>& lse) {
  const DeviceGuard guard(launch_.device.ordinal);
  TESSERA_RETURN_IF_ERROR(guard.status());
  TESSERA_RETURN_IF_ERROR(check_merge(p, parts, o));
  if (parts.size() > kMostParts) {
    return unsupported(format("merge_states: {} parts on CUDA must be at most {}; merge in several calls",
                              parts.size(), kMostParts),
                       "parts");
  }
  const int64_t rows = p.batch * p.seqlen;
  if (rows == 0) return {};
  if (rows * p.heads > INT32_MAX) {
    return invalid_argument(
        format("merge_states: batch x seqlen x heads = {} must be below 2^31", rows * p.heads), "seqlen");
  }
  for (const AttentionPart& part : parts) {
    TESSERA_RETURN_IF_ERROR(check_tensor("o", part.o, p.batch, p.seqlen, p.heads, p.head_dim, p.dtype));
    TESSERA_RETURN_IF_ERROR(check_words({{"lse", part.lse.data}}));
    TESSERA_RETURN_IF_ERROR(check_places(launch_, {{"o", part.o.data}, {"lse", part.lse.data}}));
  }
  TESSERA_RETURN_IF_ERROR(check_tensor("o", o, p.batch, p.seqlen, p.heads, p.head_dim, p.out_dtype));
  TESSERA_RETURN_IF_ERROR(check_words({{"lse", lse.data}}));
  TESSERA_RETURN_IF_ERROR(check_places(launch_, {{"o", o.data}, {"lse", lse.data}}));
  return merge(launch_, p, parts, o, lse);
}

std::string explain_on(const DeviceProperties& device, const AttentionProblem& problem, Pass pass) {
  std::string lines = pass == Pass::forward
                          ? explain_table(kForward, device, problem) +
                                explain_table(is_prompt(problem) ? kPrompt : kStep, device, problem)
                          : explain_table(kBackward, device, problem);
  if (const Status status = validate_sizes_and_options(problem); !status.ok())
    lines += status.message() + "\n";
  return lines;
}

std::string CudaKernels::explain(const AttentionProblem& problem, Pass pass) const {
  return explain_on(launch_.device, problem, pass);
}

}  // namespace tessera::attention::cuda
