#include "tessera/attention.h"

#include <numeric>
#include <vector>

#include "attention/kv_storage.h"
#include "attention/pack_tile.h"
#include "attention/paged.h"
#include "attention/plan_runner.h"
#include "attention/registry.h"
#include "core/format.h"

namespace tessera::attention {
namespace {

constexpr int kTileSlot = 1;

Status refuse_null(const void* data, const char* field, int64_t elements) {
  if (data != nullptr || elements == 0) return {};
  return invalid_argument(format("{} is null but has {} elements", field, elements), field);
}

}  // namespace

Status forward(Context& context, const AttentionProblem& problem, const ForwardTensors& t,
               const Tuning& tuning) {
  TESSERA_RETURN_IF_ERROR(validate(problem));
  if (tuning.schedule != Schedule::fa2) {
    return unsupported("schedule=fa1 has no kernel in this build", "schedule");
  }
  const int64_t tiles = (problem.seqlen_k + kKeyTile - 1) / kKeyTile;
  if (problem.batch * problem.seqlen_q > INT32_MAX || problem.batch * tiles > INT32_MAX) {
    return invalid_argument(format("batch={} x seqlen_q={} (or seqlen_k={} / 64) exceeds 2^31 - 1",
                                   problem.batch, problem.seqlen_q, problem.seqlen_k),
                            "batch");
  }
  const int64_t rows = problem.batch * problem.seqlen_q, keys = problem.batch * problem.seqlen_k;
  TESSERA_RETURN_IF_ERROR(refuse_null(t.q.data, "q", rows * problem.heads * problem.head_dim));
  TESSERA_RETURN_IF_ERROR(refuse_null(t.k.data, "k", keys * problem.kv_heads * problem.head_dim));
  TESSERA_RETURN_IF_ERROR(refuse_null(t.v.data, "v", keys * problem.kv_heads * problem.v_head_dim));
  TESSERA_RETURN_IF_ERROR(refuse_null(t.o.data, "o", rows * problem.heads * problem.v_head_dim));
  TESSERA_RETURN_IF_ERROR(find(problem, Kind::prefill).status());
  if (rows == 0) return {};

  const KvFormat kv{problem.dtype, problem.kv_heads, problem.head_dim, problem.v_head_dim, kKeyTile};
  const int64_t blocks = problem.batch * tiles;
  void* memory = context.workspace(0).get(kTileSlot, static_cast<size_t>(kv.bytes_per_block(1) * blocks));
  KvStorage storage = KvStorage::over(kv, 1, static_cast<int>(blocks), memory);
  const int64_t element = kv.element_bytes();
  context.pool.parallel_for(blocks * problem.kv_heads, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i / problem.kv_heads, head = i % problem.kv_heads;
      const int64_t batch = block / tiles, first = block % tiles * kKeyTile;
      const int64_t count = std::min<int64_t>(kKeyTile, problem.seqlen_k - first);
      const auto at = [&](const Strided<const void*>& s) {
        return static_cast<const char*>(s.data) +
               (batch * s.batch_stride + first * s.row_stride + head * s.head_stride) * element;
      };
      pack_tile(kv, at(t.k), t.k.row_stride * element, at(t.v), t.v.row_stride * element,
                static_cast<int>(count),
                storage.mutable_pair(0, static_cast<int>(block), static_cast<int>(head)));
    }
  });

  std::vector<int32_t> table(static_cast<size_t>(blocks));
  std::iota(table.begin(), table.end(), 0);
  std::vector<PagedSequence> sequences(static_cast<size_t>(problem.batch));
  for (int64_t batch = 0; batch < problem.batch; ++batch) {
    PagedSequence& sequence = sequences[static_cast<size_t>(batch)];
    sequence.first_row = static_cast<int32_t>(batch * problem.seqlen_q);
    sequence.rows = static_cast<int32_t>(problem.seqlen_q);
    sequence.first_position = static_cast<int32_t>(problem.seqlen_k - problem.seqlen_q);
    sequence.keys = static_cast<int32_t>(problem.seqlen_k);
    sequence.blocks = table.data() + batch * tiles;
  }
  const WorkPlan plan(sequences, problem, {.threads = context.pool.size()});
  RowsIo io;
  io.q = t.q.data;
  io.q_batch_stride = t.q.batch_stride;
  io.q_row_stride = t.q.row_stride;
  io.q_head_stride = t.q.head_stride;
  io.o = t.o.data;
  io.o_batch_stride = t.o.batch_stride;
  io.o_row_stride = t.o.row_stride;
  io.o_head_stride = t.o.head_stride;
  io.lse = t.lse;
  io.seqlen = problem.seqlen_q;
  io.bf16_rows = problem.dtype == DType::bf16;
  PlanRunner(context, problem, storage, 0, plan, io).run();
  return {};
}

}  // namespace tessera::attention
