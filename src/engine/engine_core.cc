#include "engine/engine_core.h"

#include <algorithm>
#include <exception>

#include "core/check.h"
#include "core/format.h"
#include "core/philox.h"
#include "engine/engine_metrics.h"

namespace tessera::engine {
namespace {

constexpr size_t kMaxEosIds = 64;  // with 64 stop_token_ids they fill a plan's banned ids
// A turn with waiting requests, nothing in flight and nothing planned cannot happen, except for injected
// faults; should a bug make it happen, the oldest request ends with an error rather than spin for ever.
constexpr int kMaxStalls = 1000;

double seconds(int64_t from_ns, int64_t to_ns) {
  return static_cast<double>(to_ns - from_ns) * 1e-9;
}

Status at_least_one(const char* field, int64_t value) {
  if (value >= 1) return {};
  return invalid_argument(format("{}: {} is not allowed: it must be at least 1", field, value), field);
}

}  // namespace

struct EngineCore::Sample {
  std::unique_ptr<StopChecker> stop;
  bool done = false;
  int64_t last_token_ns = -1;
};

struct EngineCore::Active {
  uint64_t number = 0;
  Request request;
  OutputSink sink;
  std::vector<Sample> samples;
  int open = 0;  // samples that have not ended
  int max_tokens = 0;
  int cached_tokens = 0;
  uint64_t seed = 0;
  std::shared_ptr<std::vector<TokenLogprobs>> prompt_logprobs;  // null unless asked for
  FinishReason worst = FinishReason::none;
  int64_t submitted_ns = 0, scheduled_ns = -1, first_token_ns = -1, last_token_ns = -1;
};

StepLimits step_limits(const EngineOptions& options) {
  const int blocks = (options.limits.max_model_len + options.block_tokens - 1) / options.block_tokens;
  return {.max_rows = options.max_num_batched_tokens,
          .max_sequences = options.max_num_seqs,
          .max_scored_rows = kMaxScoredRows,
          .max_blocks_per_sequence = blocks,
          .max_model_len = options.limits.max_model_len};
}

Status EngineCore::check_options(const EngineOptions& options) {
  TESSERA_RETURN_IF_ERROR(at_least_one("vocab_size", options.limits.vocab_size));
  TESSERA_RETURN_IF_ERROR(at_least_one("max_model_len", options.limits.max_model_len));
  TESSERA_RETURN_IF_ERROR(at_least_one("num_blocks", options.num_blocks));
  TESSERA_RETURN_IF_ERROR(at_least_one("block_tokens", options.block_tokens));
  TESSERA_RETURN_IF_ERROR(at_least_one("max_num_seqs", options.max_num_seqs));
  TESSERA_RETURN_IF_ERROR(at_least_one("max_queued_requests", options.max_queued_requests));
  if (options.max_num_batched_tokens < options.max_num_seqs) {
    return invalid_argument(
        format(
            "max_num_batched_tokens: {} is less than max_num_seqs, {}: a step must have room for one row of "
            "each sequence; raise the first or lower the second",
            options.max_num_batched_tokens, options.max_num_seqs),
        "max_num_batched_tokens");
  }
  if (static_cast<int64_t>(options.num_blocks) * options.block_tokens > INT32_MAX) {
    return invalid_argument(
        format("kv_cache_memory_bytes: {} blocks of {} tokens are more than {} tokens; lower it",
               options.num_blocks, options.block_tokens, INT32_MAX),
        "kv_cache_memory_bytes");
  }
  if (options.lag < 0 || options.lag > 1) {
    return invalid_argument(format("lag: {} is not allowed: it must be 0 or 1", options.lag), "lag");
  }
  if (options.eos_ids.size() > kMaxEosIds) {
    return invalid_argument(format("eos_ids: {} ids are more than {}", options.eos_ids.size(), kMaxEosIds));
  }
  if (!options.make_decoder) return invalid_argument("make_decoder: the engine needs a text decoder");
  return {};
}

Status EngineCore::check_request(const EngineOptions& options, const Request& request) {
  const Limits& limits = options.limits;
  TESSERA_RETURN_IF_ERROR(validate(request.sampling, limits));
  if (request.n < 1 || request.n > limits.max_n) {
    return invalid_argument(
        format("n: {} is not allowed: it must be between 1 and {}; send fewer samples or several requests",
               request.n, limits.max_n),
        "n");
  }
  const auto length = static_cast<int64_t>(request.prompt.size());
  if (length == 0) return invalid_argument("prompt: it has no tokens; send at least one", "prompt");
  if (length >= limits.max_model_len) {
    return invalid_argument(
        format(
            "prompt: {} tokens do not fit the context of {} tokens, which also needs room for one generated "
            "token; shorten it",
            length, limits.max_model_len),
        "prompt");
  }
  for (const int32_t token : request.prompt) {
    if (token < 0 || token >= limits.vocab_size) {
      return invalid_argument(
          format("prompt: token id {} is not allowed: ids go from 0 to {}", token, limits.vocab_size - 1),
          "prompt");
    }
  }
  const int prompt = static_cast<int>(length);
  return check_fits({.num_blocks = options.num_blocks, .block_tokens = options.block_tokens}, prompt,
                    std::min(request.sampling.max_tokens, limits.max_model_len - prompt));
}

SchedulerOptions EngineCore::scheduler_options() const {
  return {.cache = {.num_blocks = options_.num_blocks,
                    .block_tokens = options_.block_tokens,
                    .prefix_caching = options_.prefix_caching,
                    .kv_sharing = options_.kv_sharing},
          .batching = options_.batching,
          .max_num_seqs = options_.max_num_seqs,
          .max_num_batched_tokens = options_.max_num_batched_tokens,
          .max_scored_rows = kMaxScoredRows,
          .lag = options_.lag};
}

EngineCore::EngineCore(const EngineOptions& options, Runner* runner)
    : options_(options), runner_(runner), scheduler_(std::make_unique<Scheduler>(scheduler_options())) {
  set_bounds(&metrics_, options.limits.max_model_len);
}

EngineCore::~EngineCore() = default;

Status EngineCore::prepare() {
  for (int i = 0; i <= options_.lag; ++i) {
    TESSERA_ASSIGN_OR_RETURN(StepPlan plan, StepPlan::create(step_limits(options_)));
    plans_.push_back(std::move(plan));
  }
  return {};
}

// Of 53 bits: JSON readers that keep numbers as doubles must be able to send it back.
uint64_t EngineCore::draw_seed() {
  const auto words =
      philox4x32({static_cast<uint32_t>(seeds_drawn_++), 0, 0x73656564u, 0},
                 {static_cast<uint32_t>(options_.seed), static_cast<uint32_t>(options_.seed >> 32)});
  return (uint64_t{words[0]} << 32 | words[1]) >> 11;
}

void EngineCore::start(Request request, OutputSink sink, int64_t submitted_ns) {
  auto active = std::make_unique<Active>();
  active->number = ++last_number_;
  active->request = std::move(request);
  active->sink = std::move(sink);
  active->submitted_ns = submitted_ns;
  const Request& kept = active->request;
  const int prompt = static_cast<int>(kept.prompt.size());
  active->max_tokens = std::min(kept.sampling.max_tokens, options_.limits.max_model_len - prompt);
  active->open = kept.n;
  if (kept.sampling.prompt_logprobs >= 0) {
    active->prompt_logprobs = std::make_shared<std::vector<TokenLogprobs>>();
  }
  for (int i = 0; i < kept.n; ++i) {
    active->samples.push_back({std::make_unique<StopChecker>(kept.sampling, options_.eos_ids,
                                                             active->max_tokens, options_.make_decoder()),
                               false, -1});
  }
  active->seed = kept.sampling.seed ? *kept.sampling.seed : draw_seed();
  ScheduledRequest scheduled{.id = active->number,
                             .key = {kept.tenant, kept.cache_salt, options_.adapter, options_.revision},
                             .prompt = kept.prompt,
                             .sampling = kept.sampling,
                             .n = kept.n,
                             .max_tokens = active->max_tokens,
                             .seed = active->seed,
                             .ends = StopChecker::ends(kept.sampling, options_.eos_ids)};
  observe(&metrics_.request_params_n, kept.n);
  observe(&metrics_.request_params_max_tokens, kept.sampling.max_tokens);
  observe(&metrics_.request_prompt_tokens, prompt);
  numbers_[kept.id] = active->number;
  ++queued_;
  scheduler_->add(std::move(scheduled));
  active_.emplace(active->number, std::move(active));
}

void EngineCore::cancel(const std::string& id) {
  const auto number = numbers_.find(id);
  if (number == numbers_.end()) return;
  const uint64_t key = number->second;
  end_request(*active_.at(key), FinishReason::cancelled, {}, Disposal::keep);
  flush_news();
}

void EngineCore::cancel_all() {
  while (!numbers_.empty()) cancel(std::string(numbers_.begin()->first));
}

Output& EngineCore::output_of(Active& active, int sample) {
  std::vector<Output>& news = news_[active.number];
  for (Output& output : news) {
    if (output.index == sample) return output;
  }
  Output& output = news.emplace_back();
  output.index = sample;
  output.prompt_tokens = static_cast<int>(active.request.prompt.size());
  output.cached_tokens = active.cached_tokens;
  output.seed = active.seed;
  return output;
}

void EngineCore::end_sample(Active& active, int sample, FinishReason reason) {
  Sample& state = active.samples[static_cast<size_t>(sample)];
  state.done = true;
  --active.open;
  active.worst = std::max(active.worst, reason);
  Output& output = output_of(active, sample);
  output.finish = reason;
  output.completion_tokens = state.stop->tokens();
  output.last = active.open == 0;
  observe(&metrics_.request_generation_tokens, state.stop->tokens());
}

// Ends every sample that has not ended yet.
void EngineCore::end_request(Active& active, FinishReason reason, const Status& error, Disposal disposal) {
  scheduler_->finish_all(active.number, disposal);
  for (int i = 0; i < active.request.n; ++i) {
    Sample& sample = active.samples[static_cast<size_t>(i)];
    if (sample.done) continue;
    Output& output = output_of(active, i);
    output.text += sample.stop->flush();
    output.error = error;
    end_sample(active, i, reason);
  }
}

void EngineCore::record_end(const Active& active) {
  const int64_t now = options_.clock->now_ns();
  observe(&metrics_.e2e_latency, seconds(active.submitted_ns, now));
  if (active.scheduled_ns >= 0) {
    observe(&metrics_.queue_time, seconds(active.submitted_ns, active.scheduled_ns));
  }
  if (active.first_token_ns >= 0) {
    observe(&metrics_.prefill_time, seconds(active.scheduled_ns, active.first_token_ns));
    observe(&metrics_.decode_time, seconds(active.first_token_ns, active.last_token_ns));
  }
  switch (active.worst) {
    case FinishReason::none:
    case FinishReason::stop:
      ++metrics_.finished_stop;
      break;
    case FinishReason::length:
      ++metrics_.finished_length;
      break;
    case FinishReason::cancelled:
      ++metrics_.finished_abort;
      break;
    case FinishReason::error:
      ++metrics_.finished_error;
      break;
  }
}

// Turns what happened into deliveries, one for each request, and lets go of the requests that have ended.
void EngineCore::flush_news() {
  for (auto& [number, outputs] : news_) {
    const auto found = active_.find(number);
    Active& active = *found->second;
    Delivery delivery{active.request.id, active.sink, std::move(outputs), active.open == 0};
    // Only the request's last output says so.
    std::stable_partition(delivery.outputs.begin(), delivery.outputs.end(),
                          [](const Output& output) { return !output.last; });
    if (delivery.last) {
      record_end(active);
      if (active.scheduled_ns < 0) --queued_;
      numbers_.erase(active.request.id);
      active_.erase(found);
    }
    deliveries_.push_back(std::move(delivery));
  }
  news_.clear();
}

std::vector<Delivery> EngineCore::take_deliveries() {
  return std::exchange(deliveries_, {});
}

void EngineCore::take_token(Active& active, const TokenEvent& event) {
  Sample& sample = active.samples[static_cast<size_t>(event.sample)];
  const int64_t now = options_.clock->now_ns();
  if (active.first_token_ns < 0) {
    active.first_token_ns = now;
    observe(&metrics_.time_to_first_token, seconds(active.submitted_ns, now));
  }
  const bool first = sample.last_token_ns < 0;
  if (!first) observe(&metrics_.inter_token_latency, seconds(sample.last_token_ns, now));
  sample.last_token_ns = active.last_token_ns = now;
  ++metrics_.generation_tokens;

  StopChecker::Update update = sample.stop->push(event.token);
  Output& output = output_of(active, event.sample);
  if (first) output.prompt_logprobs = active.prompt_logprobs;
  output.tokens.push_back(event.token);
  if (active.request.sampling.logprobs >= 0) output.logprobs.push_back(event.logprobs);
  output.text += update.text;
  output.stop_reason = std::move(update.stop_reason);
  output.completion_tokens = sample.stop->tokens();
  if (update.finish == FinishReason::none) return;
  end_sample(active, event.sample, update.finish);
  scheduler_->finish(active.number, event.sample);
}

void EngineCore::judge(const std::vector<TokenEvent>& events) {
  for (const TokenEvent& event : events) {
    const auto found = active_.find(event.request);
    if (found == active_.end()) continue;
    Active& active = *found->second;
    Sample& sample = active.samples[static_cast<size_t>(event.sample)];
    if (sample.done) continue;
    if (!event.nonfinite) {
      for (const TokenLogprobs& entry : event.prompt) active.prompt_logprobs->push_back(entry);
      if (event.token >= 0) take_token(active, event);
      continue;
    }
    ++metrics_.nan_aborts;
    const Status error(StatusCode::internal, format("the model's logits are not finite after {} prompt and "
                                                    "{} generated tokens; the request was ended",
                                                    active.request.prompt.size(), sample.stop->tokens()));
    end_request(active, FinishReason::error, error, Disposal::forget);
  }
}

// An exception ends the requests of its step; everybody else goes on.
void EngineCore::contain(const char* where, const std::string& what, std::vector<uint64_t> requests) {
  const Status error(StatusCode::internal, format("internal error while {}: {}", where, what));
  if (options_.log) options_.log(LogLevel::error, error.message());
  const auto end = [&](uint64_t number) {
    const auto found = active_.find(number);
    if (found != active_.end()) end_request(*found->second, FinishReason::error, error, Disposal::drop);
  };
  for (const uint64_t number : requests) end(number);
  const Status state = scheduler_->check_invariants();
  if (state.ok()) return;
  if (options_.log) {
    options_.log(LogLevel::error, format("the KV cache is emptied, all requests end: {}", state.message()));
  }
  for (const auto& [number, active] : active_) end(number);
  scheduler_ = std::make_unique<Scheduler>(scheduler_options());
}

void EngineCore::abandon_flights() {
  for (; !tickets_.empty(); tickets_.pop_front()) {
    try {
      static_cast<void>(runner_->wait(tickets_.front()));
    } catch (const std::exception&) {
      // One report is enough; the runner is usable again after it.
    }
  }
}

// Plans a step and hands it to the runner.
bool EngineCore::run_step() {
  StepPlan& plan = plans_[next_plan_];
  try {
    if (!scheduler_->plan(&plan)) return false;
  } catch (const std::exception& error) {
    std::vector<uint64_t> requests = scheduler_->planned_requests();
    scheduler_->roll_back();
    abandon_flights();
    for (const uint64_t request : scheduler_->fail_in_flight()) requests.push_back(request);
    if (requests.empty() && !active_.empty()) requests.push_back(active_.begin()->first);
    contain("planning a step", error.what(), std::move(requests));
    return true;
  }
  const int64_t now = options_.clock->now_ns();
  for (const Admission& admission : scheduler_->admissions()) {
    Active& active = *active_.at(admission.request);
    active.scheduled_ns = now;
    active.cached_tokens = admission.cached_tokens;
    metrics_.prompt_tokens += active.request.prompt.size();
    --queued_;
  }
  observe(&metrics_.iteration_tokens, plan.rows);
  ++metrics_.steps;
  scheduler_->submitted();
  try {
    tickets_.push_back(runner_->submit(plan));
    next_plan_ = (next_plan_ + 1) % plans_.size();
  } catch (const std::exception& error) {
    abandon_flights();
    contain("running a step", error.what(), scheduler_->fail_in_flight());
  }
  return true;
}

// Takes the oldest step's result.
void EngineCore::collect() {
  std::vector<TokenEvent> events;
  try {
    const Runner::Ticket ticket = tickets_.front();
    tickets_.pop_front();
    scheduler_->complete(runner_->wait(ticket), &events);
  } catch (const std::exception& error) {
    abandon_flights();
    contain("running a step", error.what(), scheduler_->fail_in_flight());
    return;
  }
  judge(events);
}

bool EngineCore::turn() {
  if (idle()) return false;
  const bool planned = run_step();
  if (tickets_.size() > static_cast<size_t>(planned ? options_.lag : 0)) {
    collect();
  } else if (!planned && ++stalls_ >= kMaxStalls && !active_.empty()) {
    contain("planning a step", "no request can run", {active_.begin()->first});
  }
  if (planned) stalls_ = 0;
  flush_news();
  if (idle()) {
    const Status state = scheduler_->cache().pool().check_invariants();
    if (!state.ok()) contain("going idle", state.message(), {});
  }
  return true;
}

Status EngineCore::check_invariants() const {
  return scheduler_->check_invariants();
}

void EngineCore::fill(MetricsSnapshot* metrics) const {
  *metrics = metrics_;
  const kvcache::KvCache& cache = scheduler_->cache();
  const SchedulerCounters& counters = scheduler_->counters();
  const model::ExecutorCounters runner = runner_->counters();
  metrics->requests_running = scheduler_->running_requests();
  metrics->requests_waiting = scheduler_->waiting_requests();
  metrics->kv_blocks_total = cache.pool().total();
  metrics->kv_blocks_free = cache.pool().free();
  metrics->kv_blocks_cached = cache.pool().cached();
  metrics->kv_blocks_referenced = cache.pool().referenced();
  metrics->kv_block_bytes = options_.block_bytes;
  metrics->block_tokens = options_.block_tokens;
  metrics->prompt_tokens_computed = counters.prompt_rows;
  metrics->prefix_cache_queries = counters.cache_queries;
  metrics->prefix_cache_hits = counters.cache_hits;
  metrics->preemptions = counters.preemptions;
  metrics->evicted_blocks = cache.evicted();
  metrics->attention_blocks_read = runner.blocks_read;
  metrics->attention_shared_blocks_read = runner.shared_blocks_read;
  metrics->attention_seconds = runner.attention_seconds;
  metrics->step_seconds = runner.step_seconds;
}

}  // namespace tessera::engine
