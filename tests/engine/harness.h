// EngineCore over a FakeRunner, driven by hand, with every client's answer collected.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/clock.h"
#include "engine/engine_core.h"
#include "tests/engine/fake_runner.h"

namespace tessera::engine::testing {

// Token 7 is the text "<7>".
class NumberDecoder final : public TextDecoder {
 public:
  std::string push(int32_t token) override { return format("<{}>", token); }
  std::string finish() override { return {}; }
};

struct Answer {
  std::map<int, std::vector<int32_t>> tokens;  // by sample
  std::map<int, std::string> text;
  std::map<int, FinishReason> finish;
  std::map<int, std::string> stop_reason;
  std::map<int, size_t> logprobs;
  std::map<int, std::vector<TokenLogprobs>> prompt_logprobs;
  Status error;
  int cached_tokens = 0;
  int prompt_tokens = 0;
  int last = 0;        // outputs that said so
  int after_last = 0;  // outputs behind it
  int64_t first_turn = -1, last_turn = -1;
};

class Harness {
 public:
  explicit Harness(EngineOptions options, FakeModel model = {})
      : options_(complete(std::move(options), model, &clock)),
        runner(options_.num_blocks, options_.block_tokens, model),
        core(options_, &runner) {
    EXPECT_TRUE(EngineCore::check_options(options_).ok()) << EngineCore::check_options(options_).message();
    EXPECT_TRUE(core.prepare().ok());
  }

  static EngineOptions options(int blocks, int block_tokens) {
    EngineOptions options;
    options.limits = {.vocab_size = 1000, .max_model_len = 8192, .max_n = 128};
    options.num_blocks = blocks;
    options.block_tokens = block_tokens;
    options.max_num_seqs = 32;
    options.max_num_batched_tokens = 256;
    return options;
  }

  // Queues a request; the Status is what check_request says.
  Status add(const std::string& id, std::vector<int32_t> prompt, int max_tokens, SamplingParams sampling = {},
             int n = 1, const std::string& tenant = "") {
    Request request{.id = id, .prompt = std::move(prompt), .sampling = std::move(sampling), .n = n};
    request.tenant = tenant;
    request.sampling.max_tokens = max_tokens;
    if (!request.sampling.seed) request.sampling.seed = 11;
    TESSERA_RETURN_IF_ERROR(EngineCore::check_request(options_, request));
    requests[id] = request;
    core.start(request, {}, clock.now_ns());
    return {};
  }

  bool turn() {
    const bool worked = core.turn();
    ++turns;
    clock.advance_ns(1'000'000);
    deliver();
    const Status state = core.check_invariants();
    EXPECT_TRUE(state.ok()) << state.message();
    return worked && state.ok();
  }
  void cancel(const std::string& id) {
    core.cancel(id);
    deliver();
  }
  // Until all have ended.
  void finish(int64_t limit = 1'000'000) {
    while (!core.idle() && limit-- > 0) {
      if (!turn()) break;
    }
    EXPECT_TRUE(core.idle()) << "requests are left";
    check_runner();
  }
  // What the request must have heard of its prompt.
  void expect_prompt_logprobs(const std::string& id) {
    for (int i = 0; i < requests.at(id).n; ++i) expect_prompt_logprobs(id, i);
  }
  void expect_prompt_logprobs(const std::string& id, int sample) {
    const Request& request = requests.at(id);
    const auto expected = runner.model().expected_scores(request.prompt, request.sampling.prompt_logprobs);
    const std::vector<TokenLogprobs>& got = answers[id].prompt_logprobs[sample];
    ASSERT_EQ(got.size(), expected.size()) << id << ", sample " << sample;
    for (size_t t = 0; t < got.size(); ++t) {
      EXPECT_EQ(got[t].chosen.token, expected[t].chosen.token) << id << ", token " << t + 1;
      EXPECT_EQ(got[t].chosen.logprob, expected[t].chosen.logprob) << id << ", token " << t + 1;
      EXPECT_EQ(got[t].top.size(), expected[t].top.size());
    }
  }
  void check_runner() {
    for (const std::string& error : runner.errors) ADD_FAILURE() << error;
    runner.errors.clear();
  }

  // What the request must have answered when it ended by its length.
  void expect_full_answer(const std::string& id) {
    const Request& request = requests.at(id);
    const Answer& answer = answers[id];
    for (int i = 0; i < request.n; ++i) {
      const auto expected = runner.model().expected_tokens(
          request.prompt, *request.sampling.seed, static_cast<uint32_t>(i), request.sampling.max_tokens);
      EXPECT_EQ(answer.tokens.count(i) ? answer.tokens.at(i) : std::vector<int32_t>{}, expected)
          << id << ", sample " << i;
      EXPECT_EQ(answer.finish.count(i) ? answer.finish.at(i) : FinishReason::none, FinishReason::length);
    }
    EXPECT_EQ(answer.last, 1);
    EXPECT_EQ(answer.after_last, 0);
  }

  const kvcache::BlockPool& pool() { return core.scheduler().cache().pool(); }

  ManualClock clock;

 private:
  static EngineOptions complete(EngineOptions options, const FakeModel& model, Clock* clock) {
    options.limits.vocab_size = model.vocab;
    options.clock = clock;
    if (!options.make_decoder) options.make_decoder = [] { return std::make_unique<NumberDecoder>(); };
    return options;
  }

  void deliver() {
    for (Delivery& delivery : core.take_deliveries()) {
      Answer& answer = answers[delivery.id];
      for (Output& output : delivery.outputs) {
        answer.after_last += answer.last;
        auto& tokens = answer.tokens[output.index];
        tokens.insert(tokens.end(), output.tokens.begin(), output.tokens.end());
        EXPECT_EQ(output.completion_tokens, static_cast<int>(tokens.size()));
        answer.text[output.index] += output.text;
        answer.logprobs[output.index] += output.logprobs.size();
        if (output.prompt_logprobs != nullptr) {
          EXPECT_EQ(answer.prompt_logprobs.count(output.index), 0u);
          answer.prompt_logprobs[output.index] = *output.prompt_logprobs;
        }
        if (output.finish != FinishReason::none) answer.finish[output.index] = output.finish;
        if (!output.stop_reason.empty()) answer.stop_reason[output.index] = output.stop_reason;
        if (!output.error.ok()) answer.error = output.error;
        answer.cached_tokens = output.cached_tokens;
        answer.prompt_tokens = output.prompt_tokens;
        answer.last += output.last;
        if (!output.tokens.empty() && answer.first_turn < 0) answer.first_turn = turns;
        answer.last_turn = turns;
      }
      EXPECT_EQ(delivery.last, answer.last == 1);
    }
  }

  EngineOptions options_;

 public:
  FakeRunner runner;
  EngineCore core;
  std::map<std::string, Answer> answers;
  std::map<std::string, Request> requests;
  int64_t turns = 0;
};

// `count` tokens that depend on `salt`, away from the ids below 100 (tests use those as stops).
inline std::vector<int32_t> make_prompt(int count, uint64_t salt) {
  std::vector<int32_t> tokens;
  uint64_t hash = mix(salt, 99);
  for (int i = 0; i < count; ++i) {
    hash = mix(hash, static_cast<uint64_t>(i));
    tokens.push_back(100 + static_cast<int32_t>((hash >> 20) % 900));
  }
  return tokens;
}

inline std::vector<int32_t> joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace tessera::engine::testing
