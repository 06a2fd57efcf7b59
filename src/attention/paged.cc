#include "attention/paged.h"

#include "attention/plan_runner.h"

namespace tessera::attention {

void paged_attention(Context& context, const AttentionProblem& problem, const KvStorage& storage, int layer,
                     const WorkPlan& plan, const float* q, int64_t q_row_stride, float* o,
                     int64_t o_row_stride) {
  RowsIo io;
  io.q = q;
  io.q_row_stride = q_row_stride;
  io.q_head_stride = problem.head_dim;
  io.o = o;
  io.o_row_stride = o_row_stride;
  io.o_head_stride = problem.v_head_dim;
  PlanRunner(context, problem, storage, layer, plan, io).run();
}

}  // namespace tessera::attention
