// What is computed once and stored once: prefix hits, single flight, parallel samples, tenants.
#include <gtest/gtest.h>

#include "tests/engine/harness.h"

namespace tessera::engine::testing {
namespace {

TEST(Sharing, ARepeatedPromptComputesOnlyItsLastToken) {
  for (const int length : {63, 64, 65, 100, 128}) {
    Harness h(Harness::options(64, 64));
    ASSERT_TRUE(h.add("a", make_prompt(length, 1), 5).ok());
    h.finish();
    EXPECT_EQ(h.answers["a"].cached_tokens, 0);
    ASSERT_TRUE(h.add("b", make_prompt(length, 1), 5).ok());
    h.finish();
    EXPECT_EQ(h.answers["b"].cached_tokens, length - 1);
    EXPECT_EQ(h.runner.prompt_rows, length + 1);
    h.expect_full_answer("b");
  }
}

TEST(Sharing, GeneratedTokensStayForTheNextTurnOfAChat) {
  Harness h(Harness::options(64, 64));
  const auto prompt = make_prompt(70, 1);
  ASSERT_TRUE(h.add("a", prompt, 30).ok());
  h.finish();
  const auto next = joined(joined(prompt, h.answers["a"].tokens[0]), make_prompt(10, 2));
  ASSERT_TRUE(h.add("b", next, 5).ok());
  h.finish();
  EXPECT_EQ(h.answers["b"].cached_tokens, 99);  // all but the last token, which nobody extended
  h.expect_full_answer("b");
}

TEST(Sharing, SixteenEqualPromptsComputeThePromptOnce) {
  for (const int lag : {0, 1}) {
    for (const int length : {20, 64, 300, 1000}) {
      EngineOptions options = Harness::options(512, 64);
      options.lag = lag;
      Harness h(options);
      for (int i = 0; i < 16; ++i) ASSERT_TRUE(h.add(std::to_string(i), make_prompt(length, 1), 8).ok());
      h.finish();
      EXPECT_EQ(h.runner.prompt_rows, length + 15);
      for (int i = 0; i < 16; ++i) h.expect_full_answer(std::to_string(i));
    }
  }
}

TEST(Sharing, WhenTheLeaderIsCancelledTheNextTakesOverWhatItHas) {
  for (const int lag : {0, 1}) {
    for (int turns = 0; turns <= 5; ++turns) {
      EngineOptions options = Harness::options(512, 64);
      options.lag = lag;
      Harness h(options);
      for (int i = 0; i < 16; ++i) ASSERT_TRUE(h.add(std::to_string(i), make_prompt(1000, 1), 8).ok());
      for (int i = 0; i < turns; ++i) h.turn();
      h.cancel("0");
      h.finish();
      // The prompt once, and of the steps in flight what was not yet known to be good.
      EXPECT_LE(h.runner.prompt_rows, 1000 + 15 + 256 * lag) << turns;
      for (int i = 1; i < 16; ++i) h.expect_full_answer(std::to_string(i));
      EXPECT_EQ(h.answers["0"].finish[0], FinishReason::cancelled);
    }
  }
}

TEST(Sharing, ACommonPrefixIsComputedOnceForDifferentPrompts) {
  Harness h(Harness::options(512, 64));
  for (int i = 0; i < 8; ++i) {
    ASSERT_TRUE(h.add(std::to_string(i), joined(make_prompt(500, 1), make_prompt(30, 100 + i)), 8).ok());
  }
  h.finish();
  EXPECT_EQ(h.runner.prompt_rows, 500 + 8 * 30);
  for (int i = 0; i < 8; ++i) h.expect_full_answer(std::to_string(i));
}

TEST(Sharing, AShortCommonPrefixIsNotWaitedFor) {
  Harness h(Harness::options(512, 64));
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(h.add(std::to_string(i), joined(make_prompt(8, 1), make_prompt(50, 100 + i)), 8).ok());
  }
  h.turn();
  for (int i = 0; i < 4; ++i) EXPECT_EQ(h.answers[std::to_string(i)].tokens[0].size(), 1u);
  h.finish();
}

TEST(Sharing, ARequestBehindFollowersOfAnotherPromptIsNotHeldUp) {
  Harness h(Harness::options(512, 64));
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(h.add(std::to_string(i), make_prompt(2000, 1), 8).ok());
  ASSERT_TRUE(h.add("other", make_prompt(50, 2), 4).ok());
  h.turn();
  h.turn();
  EXPECT_GE(h.answers["other"].tokens[0].size(), 1u);
  h.finish();
}

// 32 requests, 1,024 shared and 64 own tokens: at most 15 % of the blocks that 32 private copies take.
TEST(Sharing, ASharedSystemPromptIsStoredOnce) {
  for (const int lag : {0, 1}) {
    EngineOptions options = Harness::options(1024, 64);
    options.lag = lag;
    Harness h(options);
    for (int i = 0; i < 32; ++i) {
      ASSERT_TRUE(h.add(std::to_string(i), joined(make_prompt(1024, 1), make_prompt(64, 100 + i)), 60).ok());
    }
    const auto all_started = [&] {
      for (int i = 0; i < 32; ++i) {
        if (h.answers[std::to_string(i)].tokens[0].empty()) return false;
      }
      return true;
    };
    while (!all_started()) ASSERT_TRUE(h.turn());
    EXPECT_EQ(h.core.running_sequences(), 32);
    const int unshared = 32 * ((1024 + 64 + 1 + 63) / 64);
    EXPECT_LE(h.pool().referenced(), unshared * 15 / 100);
    EXPECT_LE(h.pool().total() - h.pool().free(), unshared * 15 / 100);
    h.finish();
    EXPECT_EQ(h.runner.prompt_rows, 1024 + 32 * 64);
    for (int i = 0; i < 32; ++i) h.expect_full_answer(std::to_string(i));
  }
}

TEST(Sharing, ParallelSamplesShareThePromptAndCopyOnlyItsTail) {
  for (const int lag : {0, 1}) {
    for (const int length : {100, 128}) {
      EngineOptions options = Harness::options(64, 64);
      options.lag = lag;
      Harness h(options);
      ASSERT_TRUE(h.add("a", make_prompt(length, 1), 20, {}, 8).ok());
      while (h.answers["a"].tokens[7].empty()) ASSERT_TRUE(h.turn());
      EXPECT_LE(h.pool().referenced(), 2 + 8);
      h.finish();
      EXPECT_EQ(h.runner.prompt_rows, length);
      EXPECT_EQ(h.runner.copied_rows > 0, length % 64 != 0);
      h.expect_full_answer("a");
      EXPECT_EQ(h.pool().referenced(), 0);
    }
  }
}

TEST(Sharing, MoreSamplesThanPlacesStillAllAnswer) {
  EngineOptions options = Harness::options(64, 16);
  options.max_num_seqs = 4;
  Harness h(options);
  ASSERT_TRUE(h.add("a", make_prompt(50, 1), 10, {}, 11).ok());
  ASSERT_TRUE(h.add("b", make_prompt(50, 2), 10, {}, 1).ok());
  h.finish();
  h.expect_full_answer("a");
  h.expect_full_answer("b");
}

TEST(Sharing, AnotherTenantNeverHits) {
  Harness h(Harness::options(64, 64));
  ASSERT_TRUE(h.add("a", make_prompt(200, 1), 5, {}, 1, "alice").ok());
  h.finish();
  ASSERT_TRUE(h.add("b", make_prompt(200, 1), 5, {}, 1, "bob").ok());
  ASSERT_TRUE(h.add("c", make_prompt(200, 1), 5, {}, 1, "alice").ok());
  h.finish();
  EXPECT_EQ(h.answers["b"].cached_tokens, 0);
  EXPECT_EQ(h.answers["c"].cached_tokens, 199);
}

TEST(Sharing, TwoTenantsDoNotWaitForEachOther) {
  Harness h(Harness::options(64, 64));
  ASSERT_TRUE(h.add("a", make_prompt(100, 1), 5, {}, 1, "alice").ok());
  ASSERT_TRUE(h.add("b", make_prompt(100, 1), 5, {}, 1, "bob").ok());
  h.turn();
  EXPECT_EQ(h.answers["b"].tokens[0].size(), 1u);
  h.finish();
  EXPECT_EQ(h.runner.prompt_rows, 200);
}

TEST(Sharing, WithoutKvSharingEverySequenceHoldsItsOwnCopy) {
  EngineOptions options = Harness::options(128, 16);
  options.kv_sharing = false;
  Harness h(options);
  int most = 0;
  // At the start of a step's rows no block may be in two tables.
  h.runner.on_submit = [&](const StepPlan& plan) {
    std::set<int32_t> seen;
    for (int i = 0; i < plan.num_sequences; ++i) {
      for (const int32_t id : plan.table_of(plan.sequences[i])) EXPECT_TRUE(seen.insert(id).second);
    }
    most = std::max(most, static_cast<int>(seen.size()));
  };
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(h.add(std::to_string(i), make_prompt(50, 1), 10).ok());
  ASSERT_TRUE(h.add("n", make_prompt(50, 1), 10, {}, 4).ok());
  h.finish();
  for (const auto& [id, request] : h.requests) {
    h.expect_full_answer(id);
    EXPECT_EQ(h.answers[id].cached_tokens, 0);
  }
  EXPECT_GE(most, 8 * 4);
  EXPECT_EQ(h.runner.prompt_rows, 5 * 50);
  EXPECT_EQ(h.pool().free(), 128);
}

TEST(Sharing, WithoutPrefixCachingSamplesStillShareTheirPrompt) {
  EngineOptions options = Harness::options(128, 16);
  options.prefix_caching = false;
  Harness h(options);
  ASSERT_TRUE(h.add("a", make_prompt(50, 1), 10, {}, 4).ok());
  ASSERT_TRUE(h.add("b", make_prompt(50, 1), 10).ok());
  h.finish();
  h.expect_full_answer("a");
  h.expect_full_answer("b");
  EXPECT_EQ(h.runner.prompt_rows, 100);
  EXPECT_EQ(h.pool().free(), 128);
}

}  // namespace
}  // namespace tessera::engine::testing
