// Law 1 through the engine on the real model: cached or not, preempted or not, alone or in a crowd.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "simd/isa.h"
#include "tests/support/service_client.h"

namespace tessera::test {
namespace {

class RealService : public testing::Test {
 protected:
  void SetUp() override {
    const char* path = std::getenv("TESSERA_MODEL");
    if (path == nullptr) GTEST_SKIP() << "TESSERA_MODEL is not set; scripts/test sets it";
    options_.model_path = path;
    options_.threads = 2;
    options_.max_num_seqs = 16;
    options_.kv_cache_memory_bytes = int64_t{400} << 20;
    options_.seed = 1;
    scalar_ = *simd::requested_isa() == simd::Isa::scalar;
    if (scalar_) std::printf("scalar level: shorter prompts\n");
  }
  int length(int tokens) const { return scalar_ ? tokens / 8 : tokens; }

  engine::ServiceOptions options_;
  bool scalar_ = false;
  static constexpr int kVocab = 49152;
};

TEST_F(RealService, CachedSharedPreemptedAndCrowdedAnswersHaveTheBitsOfALoneOne) {
  const int prompt_tokens = length(520), own_tokens = length(70), answer_tokens = scalar_ ? 60 : 80;
  const std::vector<int32_t> shared = test_tokens(prompt_tokens, 1, kVocab);
  std::vector<std::vector<int32_t>> prompts;
  for (int i = 0; i < 4; ++i) {
    prompts.push_back(shared);
    const std::vector<int32_t> own = test_tokens(own_tokens + i, 50 + i, kVocab);
    prompts.back().insert(prompts.back().end(), own.begin(), own.end());
  }
  std::vector<Answer> expected;
  {
    engine::ServiceOptions alone = options_;
    alone.prefix_caching = false;
    alone.threads = 1;
    ServiceClient client(alone);
    for (const auto& prompt : prompts) expected.push_back(client.ask(prompt, answer_tokens));
  }
  {
    ServiceClient client(options_);
    for (const bool cached : {false, true}) {
      std::vector<std::shared_ptr<Pending>> pending;
      for (const auto& prompt : prompts)
        pending.push_back(client.send(ServiceClient::request(prompt, answer_tokens)));
      for (size_t i = 0; i < prompts.size(); ++i) {
        EXPECT_TRUE(pending[i]->wait()[0].same_bits(expected[i])) << (cached ? "cached " : "crowd ") << i;
      }
    }
    EXPECT_GT(client.service().metrics().prefix_cache_hits, 0u);
  }
  {
    // Room for the prompts of two, and for a block of the answers of one: the other is preempted.
    engine::ServiceOptions small = options_;
    const int64_t block = 1474560;
    const int64_t prompt_blocks = (prompt_tokens + own_tokens + 4 + 63) / 64;
    small.kv_cache_memory_bytes = (2 * prompt_blocks + 1) * block;
    small.kv_sharing = false;
    ServiceClient client(small);
    std::vector<std::shared_ptr<Pending>> pending;
    for (const auto& prompt : prompts) {
      engine::Request request = ServiceClient::request(prompt, answer_tokens);
      pending.push_back(client.send(std::move(request)));
    }
    for (size_t i = 0; i < prompts.size(); ++i) {
      EXPECT_TRUE(pending[i]->wait()[0].same_bits(expected[i])) << "small pool " << i;
    }
    EXPECT_GT(client.service().metrics().preemptions, 0u);
  }
}

TEST_F(RealService, SixteenEqualPromptsAreComputedOnceAlsoWhenTheFirstIsCancelled) {
  for (const bool cancel : {false, true}) {
    ServiceClient client(options_);
    const std::vector<int32_t> prompt = test_tokens(length(640), cancel ? 3 : 2, kVocab);
    std::vector<std::shared_ptr<Pending>> pending;
    for (int i = 0; i < 16; ++i) {
      engine::Request request = ServiceClient::request(prompt, 4);
      request.id = "equal-" + std::to_string(i);
      pending.push_back(client.send(std::move(request)));
    }
    if (cancel) client.service().cancel("equal-0");
    for (int i = cancel ? 1 : 0; i < 16; ++i) {
      const Answer answer = pending[static_cast<size_t>(i)]->wait()[0];
      EXPECT_EQ(answer.tokens.size(), 4u);
      EXPECT_EQ(answer.tokens, pending[15]->wait()[0].tokens);
    }
    // Each computes its last token for the logits. A cancelled leader may have begun one chunk that is not
    // kept.
    const auto metrics = client.service().metrics();
    EXPECT_LE(metrics.prompt_tokens_computed, prompt.size() + 16 + (cancel ? 256 : 0));
  }
}

}  // namespace
}  // namespace tessera::test
