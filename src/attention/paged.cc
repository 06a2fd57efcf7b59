#include "attention/paged.h"

#include "attention/plan_runner.h"

namespace tessera::attention {

void paged_attention(Context& context, const AttentionProblem& problem, const KvStorage& storage, int layer,
                     const WorkPlan& plan, const float* q, int64_t q_row_stride, float* o,
                     int64_t o_row_stride) {
  RowsIo io;
  io.q = {q, 0, q_row_stride, problem.head_dim};
  io.o = {o, 0, o_row_stride, problem.v_head_dim};
  PlanRunner(context, problem, storage, layer, plan, io).run();
}

}  // namespace tessera::attention
