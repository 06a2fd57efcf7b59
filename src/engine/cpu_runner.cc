#include "engine/cpu_runner.h"

#include <cstring>
#include <deque>
#include <exception>
#include <vector>

#include "core/buffer.h"
#include "core/check.h"
#include "engine/sampler.h"

namespace tessera::engine {
namespace {

// Steps are computed inside submit(); wait() hands the result over. So the previous step's tokens are always
// known when a plan names them.
class CpuRunner final : public Runner {
 public:
  CpuRunner(model::Executor& executor, ThreadPool& pool, LogitsHook hook)
      : executor_(executor),
        pool_(pool),
        hook_(std::move(hook)),
        scratch_(static_cast<size_t>(pool.size())) {}

  Status create(const StepLimits& limits) {
    const size_t row = static_cast<size_t>(executor_.vocab_size()) * sizeof(float);
    TESSERA_ASSIGN_OR_RETURN(logits_, Buffer::create(row * (static_cast<size_t>(limits.max_sequences) +
                                                            static_cast<size_t>(limits.max_scored_rows)),
                                                     "logits"));
    return {};
  }

  Ticket submit(const StepPlan& plan) override {
    Outcome outcome;
    try {
      outcome.result = step(plan);
    } catch (const InternalError&) {
      outcome.error = std::current_exception();
    }
    previous_.clear();
    for (const SampledToken& sample : outcome.result.samples) previous_.push_back(sample.token);
    outcomes_.push_back(std::move(outcome));
    return next_ticket_++;
  }

  StepResult wait(Ticket ticket) override {
    TESSERA_CHECK(!outcomes_.empty() && ticket == next_wait_);
    Outcome outcome = std::move(outcomes_.front());
    outcomes_.pop_front();
    ++next_wait_;
    if (outcome.error) std::rethrow_exception(outcome.error);
    return std::move(outcome.result);
  }

  model::ExecutorCounters counters() const override { return executor_.counters(); }

 private:
  struct Outcome {
    StepResult result;
    std::exception_ptr error;
  };

  int32_t previous(int32_t source) const {
    TESSERA_CHECK(source >= 0 && static_cast<size_t>(source) < previous_.size());
    return previous_[static_cast<size_t>(source)];
  }

  StepResult step(const StepPlan& plan) {
    tokens_.assign(plan.row_token, plan.row_token + plan.rows);
    for (int32_t r = 0; r < plan.rows; ++r) {
      if (plan.row_token_source[r] >= 0) tokens_[static_cast<size_t>(r)] = previous(plan.row_token_source[r]);
      // A token that was never drawn (its row was not finite) belongs to a request that has failed; any valid
      // id will do for the row that was planned before that was known.
      if (tokens_[static_cast<size_t>(r)] < 0) tokens_[static_cast<size_t>(r)] = 0;
    }
    sequences_.clear();
    for (int32_t s = 0; s < plan.num_sequences; ++s) {
      const PlanSequence& from = plan.sequences[s];
      sequences_.push_back({.first_row = from.first_row,
                            .rows = from.rows,
                            .first_position = from.first_position,
                            .blocks = plan.tables + from.table});
    }
    const size_t vocab = static_cast<size_t>(executor_.vocab_size());
    TESSERA_CHECK(static_cast<size_t>(plan.num_logit_rows) * vocab * sizeof(float) <= logits_.size());
    float* logits = logits_.as<float>();
    executor_.forward({.tokens = tokens_,
                       .sequences = sequences_,
                       .copies = {plan.copies, static_cast<size_t>(plan.num_copies)},
                       .logit_rows = {plan.logit_rows, static_cast<size_t>(plan.num_logit_rows)}},
                      logits);
    if (hook_) hook_(plan, logits);

    StepResult result;
    result.samples.resize(static_cast<size_t>(plan.num_samples));
    pool_.parallel_for(plan.num_samples, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i) {
        result.samples[static_cast<size_t>(i)] =
            draw(plan, static_cast<int32_t>(i), logits, vocab, scratch_[static_cast<size_t>(worker)]);
      }
    });
    return result;
  }

  struct Scratch {
    SamplerScratch sampler;
    std::vector<float> logits;
    std::vector<int32_t> output;
    SamplingParams params;
  };

  SampledToken draw(const StepPlan& plan, int32_t index, const float* logits, size_t vocab,
                    Scratch& scratch) {
    const PlanSample& from = plan.samples[index];
    const float* row = logits + static_cast<size_t>(from.logit_row) * vocab;
    SampledToken token;
    if (!from.draw) {
      token.nonfinite = any_nonfinite({row, vocab});
      if (from.scored >= 0 && !token.nonfinite) {
        token.logprobs = log_probabilities({row, vocab}, from.scored, from.logprobs, scratch.sampler);
      }
      return token;
    }
    // The sampler writes into its row, and another sample may read the same one.
    scratch.logits.assign(row, row + vocab);
    plan.load_params(from, &scratch.params);
    const std::span<const int32_t> known = plan.history_output_of(from);
    scratch.output.assign(known.begin(), known.end());
    if (from.history_last_source >= 0) {
      const int32_t last = previous(from.history_last_source);
      if (last >= 0) scratch.output.push_back(last);
    }
    SampleResult sampled = sample({.logits = scratch.logits,
                                   .params = &scratch.params,
                                   .seed = from.seed,
                                   .stream = from.stream,
                                   .token_index = from.token_index,
                                   .prompt = plan.history_prompt_of(from),
                                   .output = scratch.output,
                                   .banned = plan.banned_of(from)},
                                  scratch.sampler);
    token.token = sampled.token;
    token.nonfinite = sampled.nonfinite;
    token.logprobs = std::move(sampled.logprobs);
    return token;
  }

  model::Executor& executor_;
  ThreadPool& pool_;
  LogitsHook hook_;
  Buffer logits_;                 // [max_sequences + max_scored_rows][vocab]
  std::vector<Scratch> scratch_;  // [pool.size()]
  std::vector<int32_t> tokens_;
  std::vector<model::SequenceRows> sequences_;
  std::vector<int32_t> previous_;  // the last step's tokens, by sample
  std::deque<Outcome> outcomes_;
  Ticket next_ticket_ = 1, next_wait_ = 1;
};

}  // namespace

Result<std::unique_ptr<Runner>> create_cpu_runner(model::Executor& executor, ThreadPool& pool,
                                                  const StepLimits& limits, LogitsHook hook) {
  auto runner = std::make_unique<CpuRunner>(executor, pool, std::move(hook));
  TESSERA_RETURN_IF_ERROR(runner->create(limits));
  return std::unique_ptr<Runner>(std::move(runner));
}

}  // namespace tessera::engine
