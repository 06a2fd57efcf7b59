#include "tessera/attention.h"

#include <numeric>
#include <vector>

#include "attention/dense_tiles.h"
#include "attention/device_kernels.h"
#include "attention/paged.h"
#include "attention/plan_runner.h"
#include "attention/registry.h"
#include "attention/sequences.h"
#include "core/boundary.h"
#include "core/format.h"

namespace tessera::attention {
namespace {

Status check_tensors(const AttentionProblem& p, const ForwardTensors& t) {
  const TensorAxes axes = tensor_axes(p);
  TESSERA_RETURN_IF_ERROR(check_tensor("q", t.q, axes.batches, axes.rows, p.heads, p.head_dim, p.dtype));
  TESSERA_RETURN_IF_ERROR(check_tensor("k", t.k, axes.batches, axes.keys, p.kv_heads, p.head_dim, p.dtype));
  TESSERA_RETURN_IF_ERROR(check_tensor("v", t.v, axes.batches, axes.keys, p.kv_heads, p.v_head_dim, p.dtype));
  return check_tensor("o", t.o, axes.batches, axes.rows, p.heads, p.v_head_dim, p.dtype);
}

// Rows of the plan and blocks of the cache are counted in 32 bits.
Status check_counts(const AttentionProblem& p) {
  const int64_t rows = p.batch * p.seqlen_q * (p.heads / p.kv_heads);
  const int64_t tiles = p.batch * ((p.seqlen_k + kKeyTile - 1) / kKeyTile);
  if (rows > INT32_MAX || tiles > INT32_MAX) {
    return invalid_argument(format("batch={} x seqlen_q={} x heads={} / kv_heads={} and batch x seqlen_k={} "
                                   "/ 64 must not exceed 2^31 - 1",
                                   p.batch, p.seqlen_q, p.heads, p.kv_heads, p.seqlen_k),
                            "batch");
  }
  return {};
}

Status checked_forward(Context& context, const AttentionProblem& problem, const ForwardTensors& t,
                       const Tuning& tuning) {
  TESSERA_RETURN_IF_ERROR(validate(problem));
  if (tuning.schedule != Schedule::fa2 && tuning.schedule != Schedule::fa1) {
    return invalid_argument(format("schedule={} must be fa2 or fa1", static_cast<int>(tuning.schedule)),
                            "schedule");
  }
  TESSERA_RETURN_IF_ERROR(check_counts(problem));
  TESSERA_RETURN_IF_ERROR(check_tensors(problem, t));
  TESSERA_RETURN_IF_ERROR(find(problem, Kind::dense).status());
  const TensorAxes axes = tensor_axes(problem);
  if (axes.batches * axes.rows == 0) return {};

  const DenseTiles tiles(context, problem, t.k, t.v);
  std::vector<PagedSequence> sequences(static_cast<size_t>(problem.batch));
  for (int64_t batch = 0; batch < problem.batch; ++batch) {
    const SequenceView view = sequence_of(problem, batch);
    PagedSequence& sequence = sequences[static_cast<size_t>(batch)];
    sequence.first_row = static_cast<int32_t>(view.batch_axis * problem.seqlen_q + view.first_row);
    sequence.rows = static_cast<int32_t>(view.rows);
    sequence.first_position = static_cast<int32_t>(view.keys - view.rows);
    sequence.keys = static_cast<int32_t>(view.keys);
    sequence.first_key = static_cast<int32_t>(view.leftpad);
    sequence.blocks = tiles.table(batch);
    const Ancestors& tree = problem.mask.ancestors;
    sequence.tree_keys = static_cast<int32_t>(tree.tree_keys);
    if (tree.depth != nullptr) sequence.depth = tree.depth + batch * tree.tree_keys;
  }
  AttentionProblem stored = problem;
  stored.dtype = tiles.storage().format().dtype;
  const bool keys_outside = tuning.schedule == Schedule::fa1;
  const WorkPlan plan(sequences, stored, {.threads = keys_outside ? 1 : context.pool.size(), .dense = true});
  RowsIo io;
  io.q = t.q;
  io.o = t.o;
  io.lse = t.lse;
  io.seqlen = axes.rows;
  io.dtype = problem.dtype;
  io.cu_seqlens_q = problem.cu_seqlens_q;
  io.sequences = problem.batch;
  PlanRunner runner(context, stored, tiles.storage(), 0, plan, io);
  if (keys_outside) {
    runner.run_keys_outside();
  } else {
    runner.run();
  }
  return {};
}

}  // namespace

Status forward(Context& context, const AttentionProblem& problem, const ForwardTensors& tensors,
               const Tuning& tuning) {
  return at_boundary([&] {
    if (context.attention == nullptr) return checked_forward(context, problem, tensors, tuning);
    if (tuning.schedule != Schedule::fa2) {
      return unsupported(format("schedule={} on a device must be fa2", static_cast<int>(tuning.schedule)),
                         "schedule");
    }
    return context.attention->forward(problem, tensors);
  });
}

std::string explain(Context& context, const AttentionProblem& problem, Pass pass) {
  return context.attention != nullptr ? context.attention->explain(problem, pass) : explain(problem, pass);
}

}  // namespace tessera::attention
