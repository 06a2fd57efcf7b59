// Continuous batching, chunked prefill, ends, cancellation, errors: the engine without its thread.
#include "engine/engine_core.h"

#include <gtest/gtest.h>

#include "tests/engine/harness.h"

namespace tessera::engine::testing {
namespace {

TEST(EngineCore, OneRequestGetsTheModelsTokens) {
  for (const int lag : {0, 1}) {
    EngineOptions options = Harness::options(64, 16);
    options.lag = lag;
    Harness h(options);
    ASSERT_TRUE(h.add("a", make_prompt(100, 1), 20).ok());
    h.finish();
    h.expect_full_answer("a");
    EXPECT_EQ(h.answers["a"].prompt_tokens, 100);
    EXPECT_EQ(h.runner.prompt_rows, 100);
    EXPECT_EQ(h.runner.step_rows, 19);  // the last token's K/V are never needed
    EXPECT_EQ(h.pool().referenced(), 0);
  }
}

TEST(EngineCore, ManyRequestsGetWhatEachWouldGetAlone) {
  for (const int lag : {0, 1}) {
    EngineOptions options = Harness::options(512, 16);
    options.lag = lag;
    Harness h(options);
    for (int i = 0; i < 60; ++i) {
      ASSERT_TRUE(h.add(std::to_string(i), make_prompt(1 + i * 7 % 90, i % 40), 1 + i % 30).ok());
    }
    h.finish();
    for (const auto& [id, request] : h.requests) h.expect_full_answer(id);
    EXPECT_LE(h.runner.max_rows_seen, 256);
    EXPECT_LE(h.runner.max_sequences_seen, 32);
  }
}

TEST(EngineCore, ANewRequestGetsATokenBeforeAnyRunningOneEnds) {
  Harness h(Harness::options(512, 16));
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(h.add(std::to_string(i), make_prompt(20, i), 100).ok());
  for (int i = 0; i < 30; ++i) h.turn();
  ASSERT_TRUE(h.add("late", make_prompt(300, 9), 5).ok());
  h.finish();
  for (int i = 0; i < 8; ++i) EXPECT_LT(h.answers["late"].first_turn, h.answers[std::to_string(i)].last_turn);
  EXPECT_LE(h.answers["late"].last_turn, 30 + 8);
}

TEST(EngineCore, ALongPromptAddsOneChunkToAGapAndNeverStopsTheStreams) {
  Harness h(Harness::options(512, 16));
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(h.add(std::to_string(i), make_prompt(20, i), 200).ok());
  for (int i = 0; i < 10; ++i) h.turn();
  ASSERT_TRUE(h.add("long", make_prompt(4000, 9), 2).ok());
  for (int i = 0; i < 20 && h.answers["long"].first_turn < 0; ++i) {
    std::vector<size_t> before;
    for (int j = 0; j < 8; ++j) before.push_back(h.answers[std::to_string(j)].tokens[0].size());
    h.turn();
    for (size_t j = 0; j < 8; ++j) EXPECT_EQ(h.answers[std::to_string(j)].tokens[0].size(), before[j] + 1);
  }
  EXPECT_EQ(h.answers["long"].first_turn, 10 + 17);  // 4000 rows at 248 a step
  EXPECT_EQ(h.runner.max_rows_seen, 256);
  h.finish();
}

TEST(EngineCore, AShortPromptDoesNotQueueBehindALongOne) {
  Harness h(Harness::options(1024, 16));
  ASSERT_TRUE(h.add("long", make_prompt(8000, 1), 2).ok());
  h.turn();
  ASSERT_TRUE(h.add("short", make_prompt(100, 2), 2).ok());
  h.finish();
  EXPECT_LE(h.answers["short"].first_turn, 2);
  h.expect_full_answer("long");
}

TEST(EngineCore, RefusesWhatCanNeverRunAndNamesBothNumbers) {
  Harness h(Harness::options(8, 16));
  Status status = h.add("a", make_prompt(100, 1), 29 + 1);
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_NE(status.message().find("9 KV blocks"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("has 8"), std::string::npos) << status.message();
  EXPECT_TRUE(h.add("b", make_prompt(100, 1), 29).ok());  // 128 positions
  h.finish();
  h.expect_full_answer("b");
  status = h.add("c", make_prompt(8192, 1), 1);
  EXPECT_EQ(status.field(), "prompt");
  EXPECT_NE(status.message().find("8192 tokens"), std::string::npos) << status.message();
  EXPECT_EQ(h.add("d", {}, 1).field(), "prompt");
  EXPECT_EQ(h.add("e", {1000}, 1).field(), "prompt");
  EXPECT_EQ(h.add("f", {-1}, 1).field(), "prompt");
  EXPECT_EQ(h.add("g", {1}, 1, {}, 129).field(), "n");
  EXPECT_EQ(h.add("h", {1}, 1, {}, 0).field(), "n");
  EXPECT_EQ(h.add("i", {1}, 0).field(), "max_tokens");
}

TEST(EngineCore, MaxTokensIsLoweredToWhatTheContextLeaves) {
  EngineOptions options = Harness::options(64, 16);
  options.limits.max_model_len = 50;
  Harness h(options);
  ASSERT_TRUE(h.add("a", make_prompt(40, 1), 1000).ok());
  h.finish();
  EXPECT_EQ(h.answers["a"].tokens[0].size(), 10u);
  EXPECT_EQ(h.answers["a"].finish[0], FinishReason::length);
}

TEST(EngineCore, EosStopTokensMinTokensAndIgnoreEos) {
  const FakeModel model;
  const auto prompt = make_prompt(30, 5);
  const auto tokens = model.expected_tokens(prompt, 11, 0, 40);
  EngineOptions options = Harness::options(64, 16);
  options.eos_ids = {tokens[7]};
  for (const int lag : {0, 1}) {
    options.lag = lag;
    Harness h(options);
    SamplingParams stop_token, ignore, minimum;
    stop_token.stop_token_ids = {tokens[4]};
    ignore.ignore_eos = true;
    minimum.min_tokens = 10;
    ASSERT_TRUE(h.add("eos", prompt, 40).ok());
    ASSERT_TRUE(h.add("stop", prompt, 40, stop_token).ok());
    ASSERT_TRUE(h.add("ignore", prompt, 40, ignore).ok());
    ASSERT_TRUE(h.add("minimum", prompt, 40, minimum).ok());
    h.finish();
    EXPECT_EQ(h.answers["eos"].tokens[0], std::vector<int32_t>(tokens.begin(), tokens.begin() + 8));
    EXPECT_EQ(h.answers["eos"].finish[0], FinishReason::stop);
    EXPECT_EQ(h.answers["eos"].stop_reason.count(0), 0u);
    EXPECT_EQ(h.answers["stop"].tokens[0].size(), 5u);
    EXPECT_EQ(h.answers["stop"].stop_reason[0], std::to_string(tokens[4]));
    h.expect_full_answer("ignore");
    const auto banned = model.expected_tokens(prompt, 11, 0, 10, options.eos_ids);
    ASSERT_GE(h.answers["minimum"].tokens[0].size(), 10u);
    EXPECT_TRUE(std::equal(banned.begin(), banned.end(), h.answers["minimum"].tokens[0].begin()));
    EXPECT_EQ(h.pool().referenced(), 0);
  }
}

TEST(EngineCore, AStopStringCutsTheTextAndEndsTheSample) {
  const FakeModel model;
  const auto prompt = make_prompt(30, 5);
  const auto tokens = model.expected_tokens(prompt, 11, 0, 40);
  Harness h(Harness::options(64, 16));
  SamplingParams params;
  params.stop = {format("{}><{}", tokens[2], tokens[3])};
  ASSERT_TRUE(h.add("a", prompt, 40, params).ok());
  h.finish();
  EXPECT_EQ(h.answers["a"].text[0], format("<{}><{}><", tokens[0], tokens[1]));
  EXPECT_EQ(h.answers["a"].tokens[0].size(), 4u);
  EXPECT_EQ(h.answers["a"].finish[0], FinishReason::stop);
  EXPECT_EQ(h.answers["a"].stop_reason[0], params.stop[0]);
}

TEST(EngineCore, PenaltiesSeeTheWholeHistoryAndLogprobsComeWithTheTokens) {
  for (const int lag : {0, 1}) {
    EngineOptions options = Harness::options(64, 16);
    options.lag = lag;
    Harness h(options);
    SamplingParams params;
    params.repetition_penalty = 1.1f;
    params.logprobs = 2;
    params.logit_bias = {{5, 1.0f}};
    ASSERT_TRUE(h.add("a", make_prompt(30, 1), 30, params, 3).ok());
    h.finish();  // the runner compares histories with prefixes
    h.expect_full_answer("a");
    EXPECT_EQ(h.answers["a"].logprobs[2], 30u);
  }
}

TEST(EngineCore, CancellingFreesTheBlocksAtOnceInEveryState) {
  for (const int lag : {0, 1}) {
    for (int turns = 0; turns < 24; ++turns) {
      for (const int n : {1, 3}) {
        EngineOptions options = Harness::options(64, 16);
        options.lag = lag;
        options.max_num_batched_tokens = 32;
        options.max_num_seqs = 4;
        Harness h(options);
        ASSERT_TRUE(h.add("a", make_prompt(200, 1), 12, {}, n).ok());
        ASSERT_TRUE(h.add("b", joined(make_prompt(150, 1), make_prompt(20, 3)), 40).ok());
        for (int i = 0; i < turns; ++i) h.turn();
        const bool ended = h.answers["a"].last == 1;
        h.cancel("a");
        EXPECT_EQ(h.answers["a"].last, 1);
        int cancelled = 0;
        for (const auto& [index, reason] : h.answers["a"].finish)
          cancelled += reason == FinishReason::cancelled;
        EXPECT_EQ(cancelled > 0, !ended);
        const int32_t others = h.core.running_sequences() == 0 ? 0 : 64;
        EXPECT_LE(h.pool().referenced(), others);
        h.finish();
        h.expect_full_answer("b");
        EXPECT_EQ(h.answers["a"].after_last, 0);
        EXPECT_EQ(h.pool().referenced(), 0);
      }
    }
  }
}

TEST(EngineCore, AFailingRowEndsItsRequestAloneAndLeavesNothingInTheTree) {
  for (const int lag : {0, 1}) {
    for (const int bad_at : {0, 40, 99}) {
      EngineOptions options = Harness::options(256, 16);
      options.lag = lag;
      options.max_num_batched_tokens = 64;
      Harness h(options);
      h.runner.poison = 50;  // no prompt of make_prompt has it
      auto prompt = make_prompt(100, 77);
      prompt[static_cast<size_t>(bad_at)] = 50;
      for (int i = 0; i < 6; ++i) ASSERT_TRUE(h.add(std::to_string(i), make_prompt(40, 1000 + i), 6).ok());
      ASSERT_TRUE(h.add("bad", prompt, 20, {}, 2).ok());
      h.finish();
      EXPECT_EQ(h.answers["bad"].finish[0], FinishReason::error);
      EXPECT_EQ(h.answers["bad"].finish[1], FinishReason::error);
      EXPECT_EQ(h.answers["bad"].error.code(), StatusCode::internal);
      EXPECT_EQ(h.answers["bad"].last, 1);
      EXPECT_TRUE(h.answers["bad"].tokens[0].empty());
      int healthy = 0;
      for (int i = 0; i < 6; ++i) {  // a drawn token may be the poison, too
        const auto expected = h.runner.model().expected_tokens(make_prompt(40, 1000 + i), 11, 0, 6);
        if (std::count(expected.begin(), expected.end(), 50) != 0) continue;
        h.expect_full_answer(std::to_string(i));
        ++healthy;
      }
      EXPECT_GE(healthy, 4);
      EXPECT_EQ(h.core.scheduler().cache().tree().roots(), 1);
      h.core.scheduler().cache().tree().for_each([](const kvcache::PrefixTree::Listing& node) {
        EXPECT_EQ(std::count(node.path.begin(), node.path.end(), 50), 0);
      });
    }
  }
}

TEST(EngineCore, AnExceptionEndsTheRequestsOfItsStepAndTheEngineGoesOn) {
  for (const int lag : {0, 1}) {
    for (const bool in_submit : {false, true}) {
      EngineOptions options = Harness::options(64, 16);
      options.lag = lag;
      Harness h(options);
      (in_submit ? h.runner.throw_in_submit : h.runner.throw_in_wait) = 5;
      ASSERT_TRUE(h.add("a", make_prompt(50, 1), 20).ok());
      ASSERT_TRUE(h.add("b", make_prompt(50, 2), 2).ok());  // has ended by then
      while (h.answers["a"].last == 0) ASSERT_TRUE(h.turn());
      EXPECT_EQ(h.answers["a"].finish[0], FinishReason::error);
      EXPECT_NE(h.answers["a"].error.message().find("injected"), std::string::npos);
      h.expect_full_answer("b");
      ASSERT_TRUE(h.add("c", make_prompt(60, 1), 20).ok());
      h.finish();
      h.expect_full_answer("c");
      EXPECT_EQ(h.pool().referenced(), 0);
    }
  }
}

// A block that is marked as cached but is in no tree: what only a bug can do.
TEST(EngineCore, BrokenInvariantsAfterAnExceptionEmptyTheCacheAndEndEverything) {
  EngineOptions options = Harness::options(64, 16);
  std::string said;
  options.log = [&](LogLevel, std::string_view line) { said += line; };
  Harness h(options);
  h.runner.throw_in_wait = 3;
  ASSERT_TRUE(h.add("a", make_prompt(50, 1), 20).ok());
  h.turn();
  h.turn();
  kvcache::BlockPool& pool = h.core.scheduler().cache().pool();
  kvcache::BlockRef stray = pool.allocate();
  pool.enter_tree(stray.id());
  stray.reset();
  ASSERT_FALSE(h.core.check_invariants().ok());
  ASSERT_TRUE(h.add("b", make_prompt(60, 2), 20).ok());
  ASSERT_TRUE(h.turn());
  EXPECT_EQ(h.answers["a"].finish[0], FinishReason::error);
  EXPECT_EQ(h.answers["b"].finish[0], FinishReason::error);
  EXPECT_NE(said.find("the KV cache is emptied"), std::string::npos) << said;
  EXPECT_EQ(h.pool().free(), 64);
  ASSERT_TRUE(h.add("c", make_prompt(50, 1), 20).ok());
  h.finish();
  h.expect_full_answer("c");
}

TEST(EngineCore, StaticBatchingStartsABatchWhenTheLastOneHasEnded) {
  EngineOptions options = Harness::options(512, 16);
  options.batching = Batching::static_;
  options.max_num_seqs = 4;
  Harness h(options);
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(h.add(std::to_string(i), make_prompt(20, i), 10 + i).ok());
  h.finish();
  for (int i = 0; i < 10; ++i) h.expect_full_answer(std::to_string(i));
  for (int i = 4; i < 8; ++i) EXPECT_GT(h.answers[std::to_string(i)].first_turn, h.answers["3"].last_turn);
  for (int i = 8; i < 10; ++i) EXPECT_GT(h.answers[std::to_string(i)].first_turn, h.answers["7"].last_turn);
}

TEST(EngineCore, CountsAndTimesWhatHappens) {
  Harness h(Harness::options(64, 16));
  ASSERT_TRUE(h.add("a", make_prompt(40, 1), 5).ok());
  h.finish();
  ASSERT_TRUE(h.add("b", make_prompt(40, 1), 5).ok());
  h.turn();
  h.cancel("b");
  MetricsSnapshot m;
  h.core.fill(&m);
  EXPECT_EQ(m.prompt_tokens, 80u);
  EXPECT_EQ(m.prompt_tokens_computed, 41u);
  EXPECT_EQ(m.generation_tokens, 6u);
  EXPECT_EQ(m.prefix_cache_queries, 80u);
  EXPECT_EQ(m.prefix_cache_hits, 39u);
  EXPECT_EQ(h.answers["b"].cached_tokens, 39);
  EXPECT_EQ(m.finished_length, 1u);
  EXPECT_EQ(m.finished_abort, 1u);
  EXPECT_EQ(m.steps, 6u);
  EXPECT_EQ(m.time_to_first_token.count, 2u);
  EXPECT_EQ(m.inter_token_latency.count, 4u);
  EXPECT_NEAR(m.inter_token_latency.sum, 4e-3, 1e-9);
  EXPECT_EQ(m.e2e_latency.count, 2u);
  EXPECT_NEAR(m.decode_time.sum, 4e-3, 1e-9);
  EXPECT_EQ(m.iteration_tokens.count, 6u);
  EXPECT_EQ(m.iteration_tokens.sum, 40 + 4 + 1);
  EXPECT_EQ(m.request_generation_tokens.sum, 6);
  EXPECT_EQ(m.kv_blocks_free + m.kv_blocks_cached + m.kv_blocks_referenced, m.kv_blocks_total);
  EXPECT_EQ(m.kv_blocks_referenced, 0);
}

TEST(EngineCore, BadOptionsAreNamed) {
  EngineOptions options = Harness::options(8, 16);
  options.make_decoder = [] { return std::make_unique<NumberDecoder>(); };
  EXPECT_TRUE(EngineCore::check_options(options).ok());
  options.max_num_batched_tokens = 31;
  EXPECT_EQ(EngineCore::check_options(options).field(), "max_num_batched_tokens");
  options = Harness::options(0, 16);
  EXPECT_EQ(EngineCore::check_options(options).field(), "num_blocks");
}

TEST(EngineCore, PromptLogprobsAreTheSameCachedOrNotAndInWhateverChunks) {
  for (const int lag : {0, 1}) {
    EngineOptions options = Harness::options(256, 16);
    options.lag = lag;
    Harness h(options);
    const SamplingParams asking{.prompt_logprobs = 2};
    const std::vector<int32_t> prompt = make_prompt(300, 1);
    ASSERT_TRUE(h.add("cache", prompt, 5).ok());
    h.finish();
    ASSERT_TRUE(h.add("cached", prompt, 5, asking).ok());
    ASSERT_TRUE(h.add("again", prompt, 5, asking).ok());
    ASSERT_TRUE(h.add("beside", make_prompt(200, 2), 5, asking, 3).ok());
    ASSERT_TRUE(h.add("one token", make_prompt(1, 3), 5, asking).ok());
    ASSERT_TRUE(h.add("plain", make_prompt(40, 4), 5).ok());
    h.finish();
    for (const char* id : {"cached", "again", "beside", "one token"}) {
      h.expect_full_answer(id);
      h.expect_prompt_logprobs(id);
    }
    EXPECT_EQ(h.answers["cached"].cached_tokens, 0);
    EXPECT_TRUE(h.answers["plain"].prompt_logprobs.empty());
    EXPECT_EQ(h.runner.scored_rows, 299 + 299 + 199);
    // What such a request computed serves the next one.
    ASSERT_TRUE(h.add("after", joined(make_prompt(200, 2), {1}), 5).ok());
    h.finish();
    EXPECT_EQ(h.answers["after"].cached_tokens, 200);
  }
}

TEST(EngineCore, APreemptedPromptIsScoredOnce) {
  for (const int lag : {0, 1}) {
    EngineOptions options = Harness::options(40, 16);
    options.lag = lag;
    Harness h(options);
    for (int i = 0; i < 12; ++i) {
      ASSERT_TRUE(h.add(std::to_string(i), make_prompt(150 + i, i), 60 + i, {.prompt_logprobs = 0}).ok());
    }
    h.finish();
    EXPECT_GT(h.core.scheduler().counters().preemptions, 0u);
    int64_t wanted = 0;
    for (const auto& [id, request] : h.requests) {
      h.expect_full_answer(id);
      h.expect_prompt_logprobs(id);
      wanted += static_cast<int64_t>(request.prompt.size()) - 1;
    }
    EXPECT_EQ(h.runner.scored_rows, wanted);
  }
}

TEST(EngineCore, ANonfiniteRowInsideAScoredPromptEndsTheRequest) {
  Harness h(Harness::options(64, 16));
  h.runner.poison = 777;
  ASSERT_TRUE(
      h.add("bad", joined(make_prompt(20, 1), joined({777}, make_prompt(20, 2))), 5, {.prompt_logprobs = 0})
          .ok());
  h.finish();
  EXPECT_EQ(h.answers["bad"].finish[0], FinishReason::error);
  EXPECT_TRUE(h.answers["bad"].tokens[0].empty());
  EXPECT_EQ(h.pool().cached(), 0);
}

}  // namespace
}  // namespace tessera::engine::testing
