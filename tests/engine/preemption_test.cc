// Too little KV memory, allocations that fail, and a random soak: nothing is lost, nothing is wrong.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "tests/engine/harness.h"

namespace tessera::engine::testing {
namespace {

// 64 blocks, 256 requests, at least 100 preemptions: the tokens of a large pool.
TEST(Preemption, ASmallPoolGivesTheTokensOfALargeOne) {
  for (const int lag : {0, 1}) {
    EngineOptions options = Harness::options(64, 16);
    options.lag = lag;
    options.max_num_seqs = 16;
    Harness h(options);
    for (int i = 0; i < 256; ++i) {
      ASSERT_TRUE(h.add(std::to_string(i), make_prompt(20 + i * 13 % 60, i), 40 + i * 7 % 60).ok());
    }
    h.finish();
    for (const auto& [id, request] : h.requests) h.expect_full_answer(id);
    EXPECT_GE(h.core.scheduler().counters().preemptions, 100u);
    EXPECT_EQ(h.pool().referenced(), 0);
    std::printf("lag %d: %llu preemptions, %lld steps\n", lag,
                static_cast<unsigned long long>(h.core.scheduler().counters().preemptions),
                static_cast<long long>(h.runner.steps));
  }
}

TEST(Preemption, ARequestThatFillsThePoolAloneRunsBesideOthers) {
  for (const bool caching : {false, true}) {
    EngineOptions options = Harness::options(16, 16);
    options.prefix_caching = caching;
    Harness h(options);
    ASSERT_TRUE(h.add("small", make_prompt(30, 2), 50).ok());
    ASSERT_TRUE(h.add("all", make_prompt(156, 1), 101).ok());
    ASSERT_TRUE(h.add("again", make_prompt(156, 1), 101).ok());
    ASSERT_TRUE(h.add("samples", make_prompt(100, 3), 101, {}, 4).ok());
    h.finish();
    for (const auto& [id, request] : h.requests) h.expect_full_answer(id);
  }
}

TEST(Preemption, TheOldestIsNotPushedOutByTheYounger) {
  Harness h(Harness::options(16, 16));
  ASSERT_TRUE(h.add("old", make_prompt(50, 1), 150).ok());
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(h.add(std::to_string(i), make_prompt(40, 2 + i), 60).ok());
  size_t tokens = 0;
  while (h.answers["old"].last == 0) {
    ASSERT_TRUE(h.turn());
    EXPECT_EQ(h.answers["old"].tokens[0].size(), tokens + 1);
    tokens = h.answers["old"].tokens[0].size();
  }
  h.finish();
}

TEST(Preemption, FailedAllocationsOnlyDelay) {
  std::printf("seed 5\n");
  std::mt19937_64 random(5);
  for (const int lag : {0, 1}) {
    EngineOptions options = Harness::options(96, 16);
    options.lag = lag;
    Harness h(options);
    for (int i = 0; i < 40; ++i) {
      ASSERT_TRUE(
          h.add(std::to_string(i), make_prompt(10 + i * 11 % 90, i % 9), 20 + i % 30, {}, 1 + i % 3).ok());
    }
    while (!h.core.idle()) {
      if (random() % 2 == 0) {
        h.core.scheduler().cache().pool().fail_allocation(1 + static_cast<int64_t>(random() % 4));
      }
      ASSERT_TRUE(h.turn());
      ASSERT_LT(h.turns, 20000);
    }
    h.check_runner();
    for (const auto& [id, request] : h.requests) h.expect_full_answer(id);
  }
}

// Arrivals, cancellations, poison, exceptions, failed allocations and every option at random.
void soak(uint64_t seed, int requests) {
  std::mt19937_64 random(seed);
  const auto pick = [&](int limit) { return static_cast<int>(random() % static_cast<uint64_t>(limit)); };
  EngineOptions options = Harness::options(24 + pick(100), 4 << pick(3));
  options.lag = pick(2);
  options.prefix_caching = pick(5) != 0;
  options.kv_sharing = pick(5) != 0;
  options.batching = pick(5) == 0 ? Batching::static_ : Batching::continuous;
  options.max_num_seqs = 1 + pick(16);
  options.max_num_batched_tokens = options.max_num_seqs + pick(60);
  const int room = options.num_blocks * options.block_tokens;
  options.limits.max_model_len = 1000;
  Harness h(options);
  h.runner.poison = pick(3) == 0 ? 50 : -1;
  int sent = 0;
  int64_t faults = 0;
  while (sent < requests || !h.core.idle()) {
    if (sent < requests && pick(3) != 0) {
      const std::string id = std::to_string(sent++);
      auto prompt = make_prompt(pick(60), static_cast<uint64_t>(pick(4)));
      prompt = joined(prompt, make_prompt(1 + pick(20), static_cast<uint64_t>(pick(1000))));
      SamplingParams params;
      params.presence_penalty = pick(2) == 0 ? 0.5f : 0.0f;
      params.prompt_logprobs = std::max(-1, pick(4) - 2);
      params.seed = random();
      const int count = 1 + pick(40);
      if (static_cast<int>(prompt.size()) + count <= room) {
        ASSERT_TRUE(h.add(id, prompt, count, params, 1 + pick(4), pick(3) == 0 ? "t" : "").ok());
      }
    }
    if (pick(12) == 0 && sent > 0) h.cancel(std::to_string(pick(sent)));
    if (pick(30) == 0) {
      h.core.scheduler().cache().pool().fail_allocation(1 + pick(3));
      ++faults;
    }
    if (pick(400) == 0)
      (pick(2) == 0 ? h.runner.throw_in_submit : h.runner.throw_in_wait) = h.runner.steps + 1;
    if (!h.core.idle()) {
      ASSERT_TRUE(h.turn()) << "seed " << seed;
    }
    ASSERT_LT(h.turns, 100000) << "seed " << seed;
    ASSERT_FALSE(::testing::Test::HasFailure()) << "seed " << seed;
  }
  h.check_runner();
  for (const auto& [id, request] : h.requests) {
    const Answer& answer = h.answers[id];
    ASSERT_EQ(answer.last, 1) << "seed " << seed << ", request " << id;
    ASSERT_EQ(answer.after_last, 0);
    for (int i = 0; i < request.n; ++i) {  // whatever was told is right
      const auto expected = h.runner.model().expected_tokens(
          request.prompt, *request.sampling.seed, static_cast<uint32_t>(i), request.sampling.max_tokens);
      const auto& tokens = answer.tokens.count(i) ? answer.tokens.at(i) : std::vector<int32_t>{};
      ASSERT_LE(tokens.size(), expected.size());
      ASSERT_TRUE(std::equal(tokens.begin(), tokens.end(), expected.begin())) << "seed " << seed;
      if (answer.finish.at(i) == FinishReason::length) {
        ASSERT_EQ(tokens.size(), expected.size()) << "seed " << seed;
      }
      if (!tokens.empty() && request.sampling.prompt_logprobs >= 0) h.expect_prompt_logprobs(id, i);
    }
  }
  ASSERT_EQ(h.pool().referenced(), 0) << "seed " << seed;
  h.core.scheduler().cache().tree().evict(h.pool().total());
  ASSERT_EQ(h.pool().free(), h.pool().total()) << "seed " << seed;
}

TEST(Preemption, RandomSoakKeepsEveryInvariant) {
  const char* rounds_text = std::getenv("TESSERA_SOAK_ROUNDS");
  const char* seed_text = std::getenv("TESSERA_SEED");
  const int rounds = rounds_text == nullptr ? 20 : std::atoi(rounds_text);
  const uint64_t seed = seed_text == nullptr ? 1 : std::strtoull(seed_text, nullptr, 10);
  std::printf("seeds from %llu, %d rounds (TESSERA_SEED, TESSERA_SOAK_ROUNDS)\n",
              static_cast<unsigned long long>(seed), rounds);
  for (int i = 0; i < rounds; ++i) {
    soak(seed + static_cast<uint64_t>(i), 40);
    ASSERT_FALSE(HasFailure()) << "seed " << seed + static_cast<uint64_t>(i);
  }
}

}  // namespace
}  // namespace tessera::engine::testing
