// Runner: carries out StepPlans. It owns the bytes behind the block ids, the model and the sampler.
//
// Used by one thread. Steps run in the order of submission. At most two are in flight: with one step of lag
// the engine submits a plan whose rows name the previous step's samples before it waits for those.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/request.h"
#include "engine/step_plan.h"
#include "model/executor.h"

namespace tessera::engine {

struct SampledToken {
  int32_t token = -1;      // -1 when nonfinite, or when the plan's sample has draw = false
  bool nonfinite = false;  // the row's logits hold a NaN or an infinity
  TokenLogprobs logprobs;  // filled when the plan's sample asks for it; `chosen` is the drawn or scored token
};

struct StepResult {
  std::vector<SampledToken> samples;  // [plan.num_samples], in the plan's order
};

class Runner {
 public:
  using Ticket = uint64_t;
  virtual ~Runner() = default;

  // Starts (or carries out) the step. A row may name a previous sample that was not finite (its request ends
  // when that becomes known): any token will do there. The plan may be changed when this returns.
  virtual Ticket submit(const StepPlan& plan) = 0;
  // The result of a step, once, in the order of submission. Throws InternalError for a bug in the step; the
  // runner stays usable for plans submitted afterwards.
  virtual StepResult wait(Ticket ticket) = 0;

  virtual model::ExecutorCounters counters() const = 0;
};

}  // namespace tessera::engine
