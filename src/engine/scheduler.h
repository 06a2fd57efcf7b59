// Scheduler: decides what each step computes. Pure planning: no thread, no clock, no device.
//
//   add -> plan -> submitted (or roll_back) -> complete -> finish ...
//
// plan() fills a StepPlan under a journal. submitted() makes it final; roll_back() gives back all that it
// took. What a plan gave up on the way (evicted cache, preempted sequences) stays given up: both are always
// legal. At most one submitted step may be in flight when the next is planned (one step of lag).
//
// A step is: one row for each decoding sequence, then chunks of the prefills that run, then admissions,
// within max_num_batched_tokens rows. So a long prompt adds at most one chunk to any gap between tokens, and
// decoding is never starved.
//
// Invariants:
//  1. A request is in exactly one place until it is finished: each of its samples waits or runs.
//  2. The oldest unfinished sample always gets on: it is never preempted for a younger one, and alone it fits
//     (check_fits() is asked before add()). So there is no livelock.
//  3. Only K/V of steps that ended with finite logits enter the tree (Sequence::verified).
//  4. Of several sequences that need the same new prefix one computes it; the others wait for it, and when it
//     stops the next one takes over.
//  5. What is preempted with rows in flight comes back only when those steps have ended. So a result that
//  finds
//     its sequence running is about the blocks that the sequence holds.
//  6. A plan holds references to the sources of its copies until it is submitted.
//
// Not thread-safe: the engine's thread owns it. Throws InternalError for bugs; after that roll_back() (or
// fail_in_flight()) leaves a usable state.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "engine/runner.h"
#include "engine/sequence.h"
#include "engine/service.h"
#include "engine/step_plan.h"
#include "kvcache/kv_cache.h"
#include "tessera/status.h"

namespace tessera::engine {

struct SchedulerOptions {
  kvcache::KvCacheOptions cache;
  Batching batching = Batching::continuous;
  int max_num_seqs = 32;
  int max_num_batched_tokens = 256;
  int max_scored_rows = 0;  // of a step; 0: no request may ask for prompt_logprobs
  int lag = 0;
};

struct SchedulerCounters {
  uint64_t prompt_rows = 0;  // rows of prompt tokens in completed steps
  uint64_t step_rows = 0;    // rows of generated tokens, those computed again included
  uint64_t preemptions = 0;
  uint64_t cache_queries = 0, cache_hits = 0;  // prompt tokens at first admission, and those found
};

// One drawn token, log-probabilities of prompt tokens, or both; or the news that a row's logits are not
// finite (then token is -1).
struct TokenEvent {
  uint64_t request = 0;
  int sample = 0;
  int32_t token = -1;
  bool nonfinite = false;
  TokenLogprobs logprobs;
  std::vector<TokenLogprobs> prompt;  // of prompt tokens, behind those of the events before; token may be -1
};

struct Admission {
  uint64_t request = 0;
  int cached_tokens = 0;
};

// What becomes of a sample's K/V when it ends.
enum class Disposal : uint8_t {
  keep,    // what is verified enters the tree
  drop,    // nothing enters it any more
  forget,  // and what it published is dropped as well, as far as nothing else uses it
};

// Whether one sample of such a request fits the pool when it is alone; if not, names both numbers of blocks.
Status check_fits(const kvcache::KvCacheOptions& cache, int prompt_tokens, int max_tokens);

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  // REQUIRES: a fresh, rising id; check_fits() said ok.
  void add(ScheduledRequest request);

  // False: there is nothing to compute before a result comes in (or at all). A false plan changes nothing
  // that has to be rolled back.
  bool plan(StepPlan* plan);
  void submitted();
  void roll_back();
  // The requests that the plan under construction has touched.
  std::vector<uint64_t> planned_requests() const;
  // Requests that ran for the first time with the last plan.
  const std::vector<Admission>& admissions() const { return admissions_; }

  // The result of the oldest step in flight.
  void complete(const StepResult& result, std::vector<TokenEvent>* events);
  // The steps in flight failed: forgets them and returns the requests that they had rows of.
  std::vector<uint64_t> fail_in_flight();
  int in_flight() const { return static_cast<int>(flights_.size()); }

  // The sample ends; its references are given up at once. Unknown ones are ignored.
  void finish(uint64_t request, int sample, Disposal disposal = Disposal::keep);
  void finish_all(uint64_t request, Disposal disposal = Disposal::keep);

  bool idle() const { return waiting_.empty() && running_.empty(); }
  int running_sequences() const { return static_cast<int>(running_.size()); }
  // Requests with at least one running sample, and those with none.
  int running_requests() const;
  int waiting_requests() const;

  const SchedulerCounters& counters() const { return counters_; }
  const kvcache::KvCache& cache() const { return cache_; }
  kvcache::KvCache& cache() { return cache_; }
  // The cache's invariants and this file's, O(state).
  Status check_invariants() const;

 private:
  using SequencePtr = std::shared_ptr<Sequence>;
  using Queue = std::map<ServiceOrder, SequencePtr>;

  // The rows of one sequence, or a parallel sample without rows of its own, in a step in flight.
  struct Flight {
    SequencePtr sequence;
    int first_position = 0;
    int rows = 0;
    int sample = -1;  // index in the plan; -1: none
    bool draw = false;
    int first_score = 0, scores = 0;  // samples in the plan that score the prompt
    SequencePtr primary;              // set when rows = 0: whose prompt it shares
  };
  struct Step {
    uint64_t number = 0;
    std::vector<Flight> flights;
  };
  struct Journal {
    std::vector<std::function<void()>> undo;
    std::vector<kvcache::BlockRef> pins;  // sources of the plan's copies
  };

  // Planning.
  void plan_decodes();
  void plan_prefills();
  void plan_admissions();
  enum class Admit : uint8_t { yes, wait, no_room };
  Admit admit(const SequencePtr& sequence);
  bool may_be_admitted(Sequence& sequence) const;
  bool waits_for_leader(Sequence& sequence, int64_t found) const;
  void adopt_match(const SequencePtr& sequence, kvcache::PrefixMatch match);
  void open_batch();
  int64_t promised_blocks() const;
  int rows_wanted_by_others(const Sequence& first) const;
  int scorable_rows(const Sequence& sequence, int rows) const;
  int reserve(const SequencePtr& sequence, int rows, bool may_preempt);
  kvcache::BlockRef allocate(const Sequence& sequence, bool may_preempt);
  bool own_blocks(const SequencePtr& sequence, bool may_preempt);
  int pins_of(int32_t block) const;
  bool is_copied_from(int32_t block, int32_t first) const;
  void preempt(SequencePtr sequence);
  void emit(const SequencePtr& sequence, int rows);
  void emit_rows(const Sequence& sequence, int rows);
  void join_siblings(const SequencePtr& sequence, int32_t logit_row);
  void add_scores(const Sequence& sequence, int rows, Flight* flight);
  int32_t add_sample(const Sequence& sequence, int32_t logit_row, bool draw);
  void add_copy(int32_t source, int32_t destination, int32_t count);
  void remember(std::function<void()> undo) { journal_.undo.push_back(std::move(undo)); }
  void undo_to(size_t mark);

  // Results.
  void publish(Sequence& sequence);
  void settle(const Flight& flight, bool finite);
  void settle_join(const Flight& flight);
  void let_go(Sequence& sequence, Disposal disposal);

  SchedulerOptions options_;
  kvcache::KvCache cache_;
  Queue waiting_, running_;
  StepPlan* plan_ = nullptr;  // under construction
  Step step_;
  Journal journal_;
  std::deque<Step> flights_;
  std::vector<Admission> admissions_;
  uint64_t last_step_ = 0;  // submitted
  uint64_t completed_ = 0;
  int budget_ = 0;
  int scores_left_ = 0;  // of max_scored_rows
  bool preempted_in_plan_ = false;
  SchedulerCounters counters_;
};

}  // namespace tessera::engine
