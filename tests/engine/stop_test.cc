#include "engine/stop.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace tessera::engine {
namespace {

// Token i is the i-th piece.
class PieceDecoder final : public TextDecoder {
 public:
  explicit PieceDecoder(std::vector<std::string> pieces, std::string rest = {})
      : pieces_(std::move(pieces)), rest_(std::move(rest)) {}
  std::string push(int32_t token) override { return pieces_.at(static_cast<size_t>(token)); }
  std::string finish() override { return std::exchange(rest_, {}); }

 private:
  std::vector<std::string> pieces_;
  std::string rest_;
};

struct Outcome {
  std::vector<std::string> texts;  // one for each token
  std::string text;
  FinishReason finish = FinishReason::none;
  std::string reason;
  int tokens = 0;
};

Outcome run(const SamplingParams& params, const std::vector<std::string>& pieces, int max_tokens = 100,
            std::vector<int32_t> eos = {}, const std::string& rest = {}) {
  StopChecker stop(params, eos, max_tokens, std::make_unique<PieceDecoder>(pieces, rest));
  Outcome result;
  for (size_t i = 0; i < pieces.size() && result.finish == FinishReason::none; ++i) {
    StopChecker::Update update = stop.push(static_cast<int32_t>(i));
    result.texts.push_back(update.text);
    result.text += update.text;
    result.finish = update.finish;
    result.reason = update.stop_reason;
  }
  result.tokens = stop.tokens();
  if (result.finish == FinishReason::none) result.text += stop.flush();
  return result;
}

TEST(Stop, TextThatMayBecomeAStopStringIsHeldBack) {
  SamplingParams params;
  params.stop = {"END"};
  const Outcome r = run(params, {"a E", "N", "x E", "ND b"});
  EXPECT_EQ(r.texts, (std::vector<std::string>{"a ", "", "ENx ", ""}));
  EXPECT_EQ(r.finish, FinishReason::stop);
  EXPECT_EQ(r.reason, "END");
  EXPECT_EQ(r.text, "a ENx ");
}

TEST(Stop, TheStopStringIsKeptWhenAskedFor) {
  SamplingParams params;
  params.stop = {"END"};
  params.include_stop_str_in_output = true;
  EXPECT_EQ(run(params, {"a E", "ND b"}).text, "a END");
}

TEST(Stop, TheStringThatEndsFirstWinsAndOfThoseTheLongest) {
  SamplingParams params;
  params.stop = {"bcdef", "cd", "bcd"};
  const Outcome r = run(params, {"abcdefg"});
  EXPECT_EQ(r.text, "a");
  EXPECT_EQ(r.reason, "bcd");
}

TEST(Stop, WhatWasHeldComesOutWhenTheAnswerEndsOtherwise) {
  SamplingParams params;
  params.stop = {"END"};
  Outcome r = run(params, {"a", "EN"}, 2);
  EXPECT_EQ(r.finish, FinishReason::length);
  EXPECT_EQ(r.text, "aEN");
  r = run(params, {"a", "EN", ""}, 100, {2});
  EXPECT_EQ(r.finish, FinishReason::stop);
  EXPECT_EQ(r.reason, "");
  EXPECT_EQ(r.text, "aEN");
  EXPECT_EQ(run(params, {"a", "EN"}).text, "aEN");  // flushed from outside
}

TEST(Stop, AnUnfinishedCodePointComesOutAtTheEndAndMayCompleteAStop) {
  SamplingParams params;
  EXPECT_EQ(run(params, {"a"}, 1, {}, "\xEF\xBF\xBD").text, "a\xEF\xBF\xBD");
  params.stop = {"a\xEF\xBF\xBD"};
  const Outcome r = run(params, {"a"}, 1, {}, "\xEF\xBF\xBD");
  EXPECT_EQ(r.finish, FinishReason::stop);
  EXPECT_EQ(r.text, "");
}

TEST(Stop, AStopTokensTextComesOnlyWhenAskedForAndItsIdIsTheReason) {
  SamplingParams params;
  params.stop_token_ids = {2};
  Outcome r = run(params, {"a", "b", "c", "d"});
  EXPECT_EQ(r.text, "ab");
  EXPECT_EQ(r.reason, "2");
  EXPECT_EQ(r.tokens, 3);
  params.include_stop_str_in_output = true;
  EXPECT_EQ(run(params, {"a", "b", "c", "d"}).text, "abc");
}

TEST(Stop, TheModelsEndGivesNoTextAndIsIgnoredWhenAskedFor) {
  SamplingParams params;
  Outcome r = run(params, {"a", "b", "c"}, 100, {1});
  EXPECT_EQ(r.text, "a");
  EXPECT_EQ(r.finish, FinishReason::stop);
  params.ignore_eos = true;
  r = run(params, {"a", "b", "c"}, 3, {1});
  EXPECT_EQ(r.text, "abc");
  EXPECT_EQ(r.finish, FinishReason::length);
}

TEST(Stop, AStopOnTheLastTokenWinsOverTheLength) {
  SamplingParams params;
  params.stop = {"b"};
  EXPECT_EQ(run(params, {"a", "b"}, 2).finish, FinishReason::stop);
  params.stop.clear();
  EXPECT_EQ(run(params, {"a", "b"}, 2, {1}).finish, FinishReason::stop);
}

TEST(Stop, NothingStopsBeforeMinTokens) {
  SamplingParams params;
  params.min_tokens = 3;
  params.stop = {"b"};
  params.stop_token_ids = {2};
  const Outcome r = run(params, {"a", "b", "c", "d", "b", "e"});
  EXPECT_EQ(r.text, "abcd");
  EXPECT_EQ(r.tokens, 5);
}

TEST(Stop, EndsNamesWhatIsBannedBeforeMinTokens) {
  SamplingParams params;
  params.stop_token_ids = {4};
  const std::vector<int32_t> eos{7};
  EXPECT_EQ(StopChecker::ends(params, eos), (std::vector<int32_t>{4, 7}));
  params.ignore_eos = true;
  EXPECT_EQ(StopChecker::ends(params, eos), (std::vector<int32_t>{4}));
}

// However tokens cut a text, the answer is that of one character a token.
TEST(Stop, TheAnswerDoesNotDependOnHowTokensCutTheText) {
  std::printf("seed 3\n");
  std::mt19937_64 random(3);
  const auto pick = [&](size_t limit) { return static_cast<size_t>(random() % limit); };
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (size_t i = pick(30) + 1; i > 0; --i) text += static_cast<char>('a' + pick(3));
    SamplingParams params;
    for (size_t i = pick(4); i > 0; --i) {
      std::string stop;
      for (size_t j = pick(4) + 1; j > 0; --j) stop += static_cast<char>('a' + pick(3));
      params.stop.push_back(stop);
    }
    params.include_stop_str_in_output = pick(2) == 0;
    std::vector<std::string> single, cut;
    for (const char c : text) single.emplace_back(1, c);
    for (size_t at = 0; at < text.size();) {
      const size_t length = std::min(text.size() - at, pick(5));
      cut.push_back(text.substr(at, length));
      at += length;
    }
    const Outcome a = run(params, single), b = run(params, cut);
    ASSERT_EQ(a.text, b.text) << text;
    ASSERT_EQ(a.finish, b.finish);
    ASSERT_EQ(a.reason, b.reason);
  }
}

}  // namespace
}  // namespace tessera::engine
