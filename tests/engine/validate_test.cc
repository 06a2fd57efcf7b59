#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "engine/request.h"

namespace tessera::engine {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
const Limits kLimits{.vocab_size = 100, .max_model_len = 64, .max_n = 128};

using Change = std::function<void(SamplingParams&)>;

std::string field_of(const Change& change) {
  SamplingParams params;
  change(params);
  return validate(params, kLimits).field();
}

TEST(Validate, TheDefaultsPass) {
  EXPECT_TRUE(validate({}, kLimits).ok());
}

TEST(Validate, EdgesOfEachRangePass) {
  const Change edges[] = {
      [](auto& p) { p.temperature = 0; },
      [](auto& p) { p.temperature = 2; },
      [](auto& p) { p.temperature = 1e-3f; },
      [](auto& p) { p.top_p = 1e-6f; },
      [](auto& p) { p.min_p = 1; },
      [](auto& p) { p.top_k = -1; },
      [](auto& p) { p.repetition_penalty = 10; },
      [](auto& p) { p.presence_penalty = -2; },
      [](auto& p) { p.frequency_penalty = 2; },
      [](auto& p) { p.logprobs = 20; },
      [](auto& p) { p.logprobs = 0; },
      [](auto& p) { p.min_tokens = p.max_tokens; },
      [](auto& p) {
        p.stop_token_ids = {0, 99};
      },
      [](auto& p) {
        p.logit_bias = {{99, -100.0f}};
      },
      [](auto& p) { p.stop = std::vector<std::string>(16, std::string(256, 'x')); },
  };
  for (const Change& change : edges) EXPECT_EQ(field_of(change), "");
}

TEST(Validate, NamesTheFieldThatLiesOutside) {
  const std::pair<const char*, Change> cases[] = {
      {"max_tokens", [](auto& p) { p.max_tokens = 0; }},
      {"min_tokens", [](auto& p) { p.min_tokens = -1; }},
      {"min_tokens", [](auto& p) { p.min_tokens = 17; }},
      {"temperature", [](auto& p) { p.temperature = -1; }},
      {"temperature", [](auto& p) { p.temperature = 1e-30f; }},
      {"temperature", [](auto& p) { p.temperature = kNan; }},
      {"temperature", [](auto& p) { p.temperature = kInf; }},
      {"top_k", [](auto& p) { p.top_k = -2; }},
      {"top_p", [](auto& p) { p.top_p = 0; }},
      {"top_p", [](auto& p) { p.top_p = kNan; }},
      {"min_p", [](auto& p) { p.min_p = 2; }},
      {"min_p", [](auto& p) { p.min_p = kNan; }},
      {"repetition_penalty", [](auto& p) { p.repetition_penalty = 0; }},
      {"repetition_penalty", [](auto& p) { p.repetition_penalty = 1e9f; }},
      {"repetition_penalty", [](auto& p) { p.repetition_penalty = kNan; }},
      {"presence_penalty", [](auto& p) { p.presence_penalty = 2.5f; }},
      {"presence_penalty", [](auto& p) { p.presence_penalty = kNan; }},
      {"frequency_penalty", [](auto& p) { p.frequency_penalty = -kInf; }},
      {"logprobs", [](auto& p) { p.logprobs = 21; }},
      {"logprobs", [](auto& p) { p.logprobs = -2; }},
      {"stop", [](auto& p) { p.stop = {""}; }},
      {"stop", [](auto& p) { p.stop = std::vector<std::string>(17, "x"); }},
      {"stop", [](auto& p) { p.stop = {std::string(257, 'x')}; }},
      {"stop_token_ids", [](auto& p) { p.stop_token_ids = {100}; }},
      {"stop_token_ids", [](auto& p) { p.stop_token_ids = std::vector<int32_t>(65, 1); }},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias = {{-1, 0.0f}};
       }},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias = {{1, kNan}};
       }},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias.assign(1025, {1, 0.0f});
       }},
  };
  for (const auto& [field, change] : cases) EXPECT_EQ(field_of(change), field);
}

}  // namespace
}  // namespace tessera::engine
