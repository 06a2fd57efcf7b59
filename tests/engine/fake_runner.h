// A runner without a model. It keeps, for each (block, offset), the token whose K/V a real store would hold
// there and a hash of the whole prefix up to it, and draws token = f(prefix hash, seed, stream, token index).
// So
//  - it sees whether every row can read its exact prefix through its block table: a wrong share, copy plan or
//    stale block breaks the chain of hashes and is reported in `errors`;
//  - what a request must answer is known without an engine: expected_tokens().
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/format.h"
#include "engine/runner.h"

namespace tessera::engine::testing {

inline uint64_t mix(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9E3779B97F4A7C15u + (hash << 6) + (hash >> 2);
  return hash * 0xD6E8FEB86659FD93u;
}

struct FakeModel {
  int vocab = 1000;
  static constexpr uint64_t kStart = 0x5EED;

  int32_t draw(uint64_t prefix, uint64_t seed, uint32_t stream, uint32_t index,
               std::span<const int32_t> banned) const {
    uint64_t hash = mix(mix(mix(prefix, seed), stream), index);
    for (;;) {
      const auto token = static_cast<int32_t>((hash >> 20) % static_cast<uint64_t>(vocab));
      if (std::find(banned.begin(), banned.end(), token) == banned.end()) return token;
      hash = mix(hash, 1);
    }
  }
  // Of `token` behind a prefix.
  static TokenLogprobs score(uint64_t prefix, int32_t token, int top) {
    const uint64_t hash = mix(prefix, static_cast<uint64_t>(token));
    TokenLogprobs result{.chosen = {token, -static_cast<float>(hash >> 40)}};
    for (int i = 0; i < top; ++i)
      result.top.push_back({token + i, result.chosen.logprob - static_cast<float>(i)});
    return result;
  }
  // What a request must hear of its prompt.
  std::vector<TokenLogprobs> expected_scores(const std::vector<int32_t>& prompt, int top) const {
    uint64_t hash = kStart;
    std::vector<TokenLogprobs> scores;
    for (size_t i = 0; i + 1 < prompt.size(); ++i) {
      hash = mix(hash, static_cast<uint64_t>(prompt[i]));
      scores.push_back(score(hash, prompt[i + 1], top));
    }
    return scores;
  }
  // The first `count` tokens of a sample, without stop conditions.
  std::vector<int32_t> expected_tokens(const std::vector<int32_t>& prompt, uint64_t seed, uint32_t stream,
                                       int count, std::span<const int32_t> banned = {}) const {
    uint64_t hash = kStart;
    for (const int32_t token : prompt) hash = mix(hash, static_cast<uint64_t>(token));
    std::vector<int32_t> tokens;
    for (int i = 0; i < count; ++i) {
      tokens.push_back(draw(hash, seed, stream, static_cast<uint32_t>(i), banned));
      hash = mix(hash, static_cast<uint64_t>(tokens.back()));
    }
    return tokens;
  }
};

class FakeRunner final : public Runner {
 public:
  FakeRunner(int num_blocks, int block_tokens, FakeModel model = {})
      : model_(model), block_tokens_(block_tokens), slots_(static_cast<size_t>(num_blocks * block_tokens)) {}

  std::vector<std::string> errors;
  int64_t steps = 0, prompt_rows = 0, step_rows = 0, copied_rows = 0, scored_rows = 0;
  int max_rows_seen = 0, max_sequences_seen = 0;
  int32_t poison = -1;  // rows that can see this token have logits that are not finite
  int64_t throw_in_submit = 0, throw_in_wait = 0;  // the step (from 1) that throws
  std::function<void(const StepPlan&)> on_submit;

  Ticket submit(const StepPlan& plan) override {
    ++steps;
    if (steps == throw_in_submit) throw InternalError("injected into submit");
    if (on_submit) on_submit(plan);
    max_rows_seen = std::max(max_rows_seen, plan.rows);
    max_sequences_seen = std::max(max_sequences_seen, plan.num_sequences);
    if (plan.rows > plan.limits().max_rows) report("more rows than the limit");
    run_copies(plan);
    prefix_.assign(static_cast<size_t>(plan.rows), {});
    written_.clear();
    for (int i = 0; i < plan.num_sequences; ++i) run_sequence(plan, i);
    for (int i = 1; i < plan.num_logit_rows; ++i) {
      if (plan.logit_rows[i] <= plan.logit_rows[i - 1]) report("logit rows do not rise");
    }
    StepResult result;
    for (int i = 0; i < plan.num_samples; ++i) result.samples.push_back(sample(plan, plan.samples[i]));
    last_ = result;
    results_.push_back({steps, std::move(result)});
    return static_cast<Ticket>(steps);
  }

  StepResult wait(Ticket ticket) override {
    if (results_.empty() || results_.front().step != static_cast<int64_t>(ticket)) {
      report("waited for the wrong step");
      throw InternalError("wrong ticket");
    }
    StepResult result = std::move(results_.front().result);
    results_.pop_front();
    if (static_cast<int64_t>(ticket) == throw_in_wait) throw InternalError("injected into wait");
    return result;
  }

  model::ExecutorCounters counters() const override { return {}; }
  const FakeModel& model() const { return model_; }

 private:
  struct Slot {
    int32_t token = -1;
    uint64_t hash = 0;
    bool poisoned = false;
  };
  struct Pending {
    int64_t step;
    StepResult result;
  };

  void report(std::string what) {
    if (errors.size() < 20) errors.push_back(format("step {}: {}", steps, what));
  }

  void run_copies(const StepPlan& plan) {
    sources_.clear();
    std::set<int32_t> destinations;
    for (int i = 0; i < plan.num_copies; ++i) {
      const model::BlockCopy& copy = plan.copies[i];
      if (!destinations.insert(copy.destination).second) report("a destination comes twice");
      for (int row = copy.first; row < copy.first + copy.count; ++row) {
        sources_.insert(copy.source * block_tokens_ + row);
        slots_[static_cast<size_t>(copy.destination * block_tokens_ + row)] =
            slots_[static_cast<size_t>(copy.source * block_tokens_ + row)];
      }
      copied_rows += copy.count;
      if (copy.first < 0 || copy.count < 1 || copy.first + copy.count > block_tokens_) report("a bad copy");
    }
    for (int i = 0; i < plan.num_copies; ++i) {
      if (destinations.count(plan.copies[i].source) != 0) report("a copy's source is a destination");
    }
  }

  void run_sequence(const StepPlan& plan, int index) {
    const PlanSequence& sequence = plan.sequences[index];
    const auto table = plan.table_of(sequence);
    const int end = sequence.first_position + sequence.rows;
    if (static_cast<int>(table.size()) * block_tokens_ < end) return report("a table is too short");
    const auto slot_at = [&](int position) {
      return table[static_cast<size_t>(position / block_tokens_)] * block_tokens_ + position % block_tokens_;
    };
    uint64_t hash = FakeModel::kStart;
    bool poisoned = false;
    for (int position = 0; position < sequence.first_position; ++position) {
      const Slot& slot = slots_[static_cast<size_t>(slot_at(position))];
      hash = mix(hash, static_cast<uint64_t>(slot.token));
      poisoned |= slot.poisoned;
      if (slot.hash != hash) {
        return report(format("sequence {}, position {} of {}: the K/V are not of this prefix", index,
                             position, sequence.first_position));
      }
    }
    for (int i = 0; i < sequence.rows; ++i) {
      const int row = sequence.first_row + i;
      const int position = sequence.first_position + i;
      int32_t token = plan.row_token[row];
      if (plan.row_token_source[row] >= 0) {
        if (token != -1) report("a row has a token and a source");
        const SampledToken& source = last_.samples.at(static_cast<size_t>(plan.row_token_source[row]));
        token = source.nonfinite ? 0 : source.token;
      }
      if (token < 0) report("a row without a token");
      if (plan.row_sequence[row] != index || plan.row_position[row] != position) report("a row is misplaced");
      if (plan.row_slot[row] != slot_at(position)) report("a row's slot is not its table's");
      if (!written_.insert(plan.row_slot[row]).second) report("two rows write one slot");
      if (sources_.count(plan.row_slot[row]) != 0) report("a row writes what a copy reads");
      hash = mix(hash, static_cast<uint64_t>(token));
      poisoned |= token == poison;
      slots_[static_cast<size_t>(plan.row_slot[row])] = {token, hash, poisoned};
      prefix_[static_cast<size_t>(row)] = {hash, poisoned, index, position};
      (plan.row_kind[row] == RowKind::prompt ? prompt_rows : step_rows) += 1;
    }
  }

  // The history that penalties would read must be the sequence's own tokens.
  void check_history(const StepPlan& plan, const PlanSample& sample, int row) {
    const auto prompt = plan.history_prompt_of(sample), output = plan.history_output_of(sample);
    std::vector<int32_t> history(prompt.begin(), prompt.end());
    history.insert(history.end(), output.begin(), output.end());
    if (sample.history_last_source >= 0) {
      history.push_back(last_.samples.at(static_cast<size_t>(sample.history_last_source)).token);
    }
    uint64_t hash = FakeModel::kStart;
    for (const int32_t token : history) hash = mix(hash, static_cast<uint64_t>(token));
    if (hash != prefix_[static_cast<size_t>(row)].hash) report("a sample's history is not its prefix");
  }

  SampledToken sample(const StepPlan& plan, const PlanSample& sample) {
    const int row = plan.logit_rows[sample.logit_row];
    const Prefix& prefix = prefix_[static_cast<size_t>(row)];
    SampledToken result;
    result.nonfinite = prefix.poisoned;
    if (sample.scored >= 0 && !result.nonfinite) {
      ++scored_rows;
      result.logprobs = FakeModel::score(prefix.hash, sample.scored, sample.logprobs);
    }
    if (!sample.draw || result.nonfinite) return result;
    if (sample.history_prompt > 0) check_history(plan, sample, row);
    result.token =
        model_.draw(prefix.hash, sample.seed, sample.stream, sample.token_index, plan.banned_of(sample));
    if (sample.logprobs >= 0) result.logprobs.chosen = {result.token, -1.0f};
    return result;
  }

  struct Prefix {
    uint64_t hash = 0;
    bool poisoned = false;
    int sequence = 0;
    int position = 0;
  };
  FakeModel model_;
  int block_tokens_;
  std::vector<Slot> slots_;
  std::vector<Prefix> prefix_;  // of this step's rows
  std::set<int32_t> sources_, written_;
  StepResult last_;  // of the step submitted last
  std::deque<Pending> results_;
};

}  // namespace tessera::engine::testing
