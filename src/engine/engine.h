// Engine: the thread that owns the scheduler and the runner, and the doors to it.
//
// Each turn: take in what came (requests, cancellations), plan a step, submit it, wait for the result (of the
// previous step, with one step of lag), judge the new tokens, tell the clients once per request. With nothing
// to do the thread sleeps on a condition variable.
//
// Errors: what runner or scheduler throw (InternalError) ends the requests of that step with an error; their
// unpublished blocks are dropped, the invariants are checked, and the engine goes on.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/log.h"
#include "engine/request.h"
#include "engine/runner.h"
#include "engine/service.h"
#include "engine/step_plan.h"
#include "engine/stop.h"
#include "tessera/status.h"

namespace tessera::engine {

struct EngineOptions {
  // Of the model and its storage.
  Limits limits;
  std::vector<int32_t> eos_ids;
  int num_blocks = 0;
  int block_tokens = 64;
  int64_t block_bytes = 0;
  std::string adapter, revision;  // with tenant and cache_salt they choose the tree's root
  // Behaviour.
  bool prefix_caching = true;
  bool kv_sharing = true;
  uint64_t seed = 0;  // request without a seed: drawn from this and a counter
  // Performance.
  Batching batching = Batching::continuous;
  int max_num_seqs = 32;
  int max_num_batched_tokens = 256;
  int max_queued_requests = 1024;
  int lag = 0;  // 1: plan and submit a step before the previous one's tokens are known

  Clock* clock = &system_clock();
  LogSink log;
  std::function<std::unique_ptr<TextDecoder>()> make_decoder;  // one for each sample; engine's thread
};

// Prompt rows of one step whose logits are kept for prompt_logprobs: some 200 kB each.
inline constexpr int kMaxScoredRows = 64;

// The capacity that the engine's plans will have, for a runner that sizes its buffers by it.
StepLimits step_limits(const EngineOptions& options);

// Thread-safe.
class Engine {
 public:
  // Checks the options (field, value, limit) and starts the thread. The runner must outlive the engine.
  static Result<std::unique_ptr<Engine>> create(EngineOptions options, Runner* runner);
  virtual ~Engine() = default;  // cancels what runs and joins

  // As Service declares them.
  virtual Status submit(Request request, OutputSink sink) = 0;
  virtual void cancel(const std::string& id) = 0;
  virtual MetricsSnapshot metrics() const = 0;
  virtual void drain(int deadline_ms) = 0;
};

}  // namespace tessera::engine
