// EngineCore: one turn of the engine after another, without a thread of its own. Engine runs it on one; tests
// run it by hand.
//
// Invariants:
//  1. Every request that start() took is told exactly one `last` output, and nothing after it.
//  2. Outputs come once per turn and request.
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/engine.h"
#include "engine/scheduler.h"

namespace tessera::engine {

// What the sinks have to be told after a turn.
struct Delivery {
  std::string id;
  OutputSink sink;
  std::vector<Output> outputs;
  bool last = false;
};

class EngineCore {
 public:
  // REQUIRES: check_options() said ok. The runner must outlive it.
  EngineCore(const EngineOptions& options, Runner* runner);
  ~EngineCore();

  // Takes the memory of the plans. Before anything else.
  Status prepare();

  static Status check_options(const EngineOptions& options);
  // What may be refused before anything is queued; names field, value and limit. Thread-safe.
  static Status check_request(const EngineOptions& options, const Request& request);

  // REQUIRES: check_request() said ok, and no running request has its id.
  void start(Request request, OutputSink sink, int64_t submitted_ns);
  void cancel(const std::string& id);
  void cancel_all();

  // Plans, runs and judges at most one step. False: there was nothing to do.
  bool turn();
  // Empties the list; the caller tells the sinks.
  std::vector<Delivery> take_deliveries();

  bool idle() const { return active_.empty() && tickets_.empty(); }
  // Requests that were started and have not run yet.
  int queued() const { return queued_; }
  int running_sequences() const { return scheduler_->running_sequences(); }
  void fill(MetricsSnapshot* metrics) const;
  Scheduler& scheduler() { return *scheduler_; }
  Status check_invariants() const;

 private:
  struct Sample;
  struct Active;

  SchedulerOptions scheduler_options() const;
  uint64_t draw_seed();
  Output& output_of(Active& active, int sample);
  void end_sample(Active& active, int sample, FinishReason reason);
  void end_request(Active& active, FinishReason reason, const Status& error, Disposal disposal);
  void flush_news();
  void judge(const std::vector<TokenEvent>& events);
  void take_token(Active& active, const TokenEvent& event);
  void record_end(const Active& active);
  bool run_step();
  void collect();
  void contain(const char* where, const std::string& what, std::vector<uint64_t> requests);
  void abandon_flights();

  EngineOptions options_;
  Runner* runner_;
  std::unique_ptr<Scheduler> scheduler_;
  std::vector<StepPlan> plans_;  // lag + 1, in turn
  size_t next_plan_ = 0;
  std::deque<Runner::Ticket> tickets_;
  std::map<uint64_t, std::unique_ptr<Active>> active_;
  std::unordered_map<std::string, uint64_t> numbers_;  // by the client's id
  std::vector<Delivery> deliveries_;
  std::map<uint64_t, std::vector<Output>> news_;  // of this turn
  uint64_t last_number_ = 0;
  uint64_t seeds_drawn_ = 0;
  int queued_ = 0;
  int stalls_ = 0;
  MetricsSnapshot metrics_;
};

}  // namespace tessera::engine
