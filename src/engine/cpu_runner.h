// CpuRunner: carries out StepPlans with an Executor and samples on the same threads.
#pragma once

#include <functional>
#include <memory>

#include "core/thread_pool.h"
#include "engine/runner.h"
#include "model/executor.h"

namespace tessera::engine {

// Sees every row of logits before it is sampled; for tests and explanations. [vocab] each, valid during the
// call.
using LogitsHook = std::function<void(const StepPlan& plan, const float* logits)>;

// Executor and pool must outlive the runner; `limits` are those of the plans it will get.
Result<std::unique_ptr<Runner>> create_cpu_runner(model::Executor& executor, ThreadPool& pool,
                                                  const StepLimits& limits, LogitsHook hook = {});

}  // namespace tessera::engine
