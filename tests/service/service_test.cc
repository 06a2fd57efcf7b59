// The whole engine on a tiny random Llama: sharing, preemption, cancelling and broken weights.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>

#include "model/model_file.h"
#include "tests/support/service_client.h"
#include "tests/support/tiny_llama.h"

namespace tessera::test {
namespace {

std::string tiny_llama() {
  return std::string(TESSERA_SOURCE_DIR) + "/tests/goldens/tiny_llama_mixed.gguf";
}

engine::ServiceOptions options() {
  engine::ServiceOptions options;
  options.model_path = tiny_llama();
  options.threads = 2;
  options.max_num_seqs = 16;
  options.max_num_batched_tokens = 64;
  options.kv_cache_memory_bytes = 8 << 20;
  options.seed = 1;
  return options;
}

constexpr int kVocab = 320;

TEST(Service, ASecondEqualPromptComesFromTheCacheWithTheSameBits) {
  ServiceClient client(options());
  const std::vector<int32_t> prompt = test_tokens(150, 1, kVocab);
  const Answer first = client.ask(prompt, 12);
  const Answer second = client.ask(prompt, 12);
  EXPECT_EQ(first.cached_tokens, 0);
  EXPECT_EQ(second.cached_tokens, 149);  // the last one is computed for its logits
  EXPECT_TRUE(first.same_bits(second));
  engine::ServiceOptions off = options();
  off.prefix_caching = false;
  ServiceClient uncached(off);
  uncached.ask(prompt, 12);
  const Answer third = uncached.ask(prompt, 12);
  EXPECT_EQ(third.cached_tokens, 0);
  EXPECT_TRUE(first.same_bits(third));
}

TEST(Service, AnotherTenantOrSaltSharesNothing) {
  ServiceClient client(options());
  const std::vector<int32_t> prompt = test_tokens(150, 2, kVocab);
  const auto ask = [&](const char* tenant, const char* salt) {
    engine::Request request = ServiceClient::request(prompt, 4);
    request.tenant = tenant;
    request.cache_salt = salt;
    return client.send(std::move(request))->wait()[0];
  };
  EXPECT_EQ(ask("a", "").cached_tokens, 0);
  EXPECT_EQ(ask("a", "").cached_tokens, 149);
  EXPECT_EQ(ask("b", "").cached_tokens, 0);
  EXPECT_EQ(ask("a", "salt").cached_tokens, 0);
  EXPECT_EQ(ask("a", "salt").cached_tokens, 149);
}

TEST(Service, ParallelSamplesShareThePromptAndDiffer) {
  ServiceClient client(options());
  engine::Request request = ServiceClient::request(test_tokens(200, 3, kVocab), 8);
  request.n = 8;
  request.sampling.temperature = 1;
  request.sampling.seed = 5;
  const auto before = client.service().metrics();
  const std::vector<Answer> answers = client.send(request)->wait();
  const auto after = client.service().metrics();
  EXPECT_LE(after.prompt_tokens_computed - before.prompt_tokens_computed, 200u + 8);
  int differ = 0;
  for (const Answer& answer : answers) {
    EXPECT_EQ(answer.tokens.size(), 8u);
    differ += answer.tokens != answers[0].tokens;
  }
  EXPECT_GE(differ, 6);
  // The seed decides, not the batch: the same request again gives the same samples.
  request.id.clear();
  const std::vector<Answer> again = client.send(request)->wait();
  for (size_t i = 0; i < answers.size(); ++i) EXPECT_TRUE(answers[i].same_bits(again[i])) << "sample " << i;
}

TEST(Service, ADrawnSeedIsReportedAndGivesTheSameTokensAgain) {
  ServiceClient client(options());
  engine::Request request = ServiceClient::request(test_tokens(20, 8, kVocab), 24);
  request.sampling.temperature = 1;
  request.n = 2;
  const std::vector<Answer> first = client.send(request)->wait();
  const std::vector<Answer> other = client.send(request)->wait();
  EXPECT_NE(first[0].seed, other[0].seed);
  EXPECT_NE(first[0].tokens, other[0].tokens);
  EXPECT_LT(first[0].seed, uint64_t{1} << 53);
  EXPECT_EQ(first[0].seed, first[1].seed);
  request.sampling.seed = first[0].seed;
  const std::vector<Answer> again = client.send(request)->wait();
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(again[i].seed, first[i].seed);
    EXPECT_TRUE(again[i].same_bits(first[i])) << "sample " << i;
  }
}

// The tokens that a request drew, sent as a prompt, are as likely as when they were drawn.
TEST(Service, ThePromptsLogprobsHaveTheBitsOfTheDrawnTokens) {
  ServiceClient client(options());
  const std::vector<int32_t> prompt = test_tokens(150, 9, kVocab);
  const Answer drawn = client.ask(prompt, 30);
  engine::Request request = ServiceClient::request(prompt, 1);
  request.prompt.insert(request.prompt.end(), drawn.tokens.begin(), drawn.tokens.end());
  request.sampling.prompt_logprobs = 20;
  for (const bool cached : {true, true, false}) {
    if (!cached) request.cache_salt = "fresh";
    const Answer scored = client.send(request)->wait()[0];
    EXPECT_EQ(scored.cached_tokens, 0);
    ASSERT_EQ(scored.prompt_logprobs.size(), request.prompt.size() - 1);
    std::vector<float> behind;
    for (size_t i = 149; i < scored.prompt_logprobs.size(); ++i) {
      const engine::TokenLogprobs& entry = scored.prompt_logprobs[i];
      EXPECT_EQ(entry.chosen.token, request.prompt[i + 1]);
      behind.push_back(entry.chosen.logprob);
      for (const engine::TokenLogprob& top : entry.top) behind.push_back(top.logprob);
    }
    EXPECT_EQ(behind, drawn.logprobs);
  }
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSlowBuild = true;
#else
constexpr bool kSlowBuild = false;
#endif

// 64 blocks, 256 requests, at least 100 preemptions; under a sanitizer 12, 24 and 1.
TEST(Service, PreemptedRequestsEndWithTheTokensOfALargePool) {
  const int blocks = kSlowBuild ? 12 : 64, requests = kSlowBuild ? 24 : 256, answer = kSlowBuild ? 90 : 200;
  if (kSlowBuild) std::printf("sanitizer: %d blocks, %d requests\n", blocks, requests);
  std::vector<Answer> expected, got;
  uint64_t preemptions = 0;
  for (const bool small : {false, true}) {
    engine::ServiceOptions chosen = options();
    const int64_t block = ServiceClient(options()).service().metrics().kv_block_bytes;
    chosen.kv_cache_memory_bytes = (small ? blocks : 1200) * block;
    chosen.max_num_seqs = kSlowBuild ? 16 : 64;
    ServiceClient client(chosen);
    ASSERT_EQ(client.service().metrics().kv_blocks_total, small ? blocks : 1200);
    std::vector<std::shared_ptr<Pending>> pending;
    for (int i = 0; i < requests; ++i) {
      pending.push_back(
          client.send(ServiceClient::request(test_tokens(30 + i % 64, 10 + i, kVocab), answer)));
    }
    for (auto& one : pending) (small ? got : expected).push_back(one->wait()[0]);
    if (small) preemptions = client.service().metrics().preemptions;
  }
  EXPECT_GE(preemptions, kSlowBuild ? 1u : 100u);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(got[i].tokens.size(), static_cast<size_t>(answer));
    EXPECT_TRUE(got[i].same_bits(expected[i])) << "request " << i;
  }
}

TEST(Service, ACancelledRequestGivesItsBlocksBack) {
  ServiceClient client(options());
  engine::Request request = ServiceClient::request(test_tokens(100, 4, kVocab), 100000);
  request.id = "endless";
  auto pending = client.send(request);
  pending->wait_for(3);
  client.service().cancel("endless");
  EXPECT_EQ(pending->wait()[0].finish, engine::FinishReason::cancelled);
  client.ask(test_tokens(10, 5, kVocab), 1);  // one step later
  EXPECT_EQ(client.service().metrics().kv_blocks_referenced, 0);
}

TEST(Service, SwitchesThatSaveWorkDoNotChangeBits) {
  const std::vector<int32_t> shared = test_tokens(130, 6, kVocab);
  std::vector<Answer> expected;
  for (int variant = 0; variant < 5; ++variant) {
    engine::ServiceOptions chosen = options();
    if (variant == 1) chosen.two_phase = false;
    if (variant == 2) chosen.kv_sharing = false;
    if (variant == 3) chosen.batching = engine::Batching::static_;
    if (variant == 4) chosen.threads = 1, chosen.max_num_batched_tokens = 17, chosen.max_num_seqs = 5;
    ServiceClient client(chosen);
    std::vector<std::shared_ptr<Pending>> pending;
    for (int i = 0; i < 10; ++i) {
      std::vector<int32_t> prompt = shared;
      const std::vector<int32_t> own = test_tokens(1 + 7 * i, 100 + i, kVocab);
      prompt.insert(prompt.end(), own.begin(), own.end());
      pending.push_back(client.send(ServiceClient::request(prompt, 10)));
    }
    for (size_t i = 0; i < pending.size(); ++i) {
      const Answer answer = pending[i]->wait()[0];
      if (variant == 0) {
        expected.push_back(answer);
      } else {
        EXPECT_TRUE(answer.same_bits(expected[i])) << "variant " << variant << ", request " << i;
      }
    }
  }
}

TEST(Service, NanWeightsEndTheRequestWithAnErrorAndNeverWithAToken) {
  // A copy of the model whose last norm holds a NaN.
  auto model = model::open_model(tiny_llama());
  ASSERT_TRUE(model.ok());
  const model::GgufTensor* norm = model->gguf->find_tensor(model->tensors.output_norm);
  ASSERT_NE(norm, nullptr);
  const std::string path = std::filesystem::temp_directory_path() / "tessera_nan_weights.gguf";
  std::filesystem::copy_file(tiny_llama(), path, std::filesystem::copy_options::overwrite_existing);
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(norm->offset));
    const float bad = std::numeric_limits<float>::quiet_NaN();
    file.write(reinterpret_cast<const char*>(&bad), sizeof bad);
  }
  engine::ServiceOptions chosen = options();
  chosen.model_path = path;
  ServiceClient client(chosen);
  const Answer answer = client.ask(test_tokens(20, 7, kVocab), 5);
  EXPECT_EQ(answer.finish, engine::FinishReason::error);
  EXPECT_TRUE(answer.tokens.empty());
  EXPECT_FALSE(answer.error.ok());
  const auto metrics = client.service().metrics();
  EXPECT_EQ(metrics.kv_blocks_cached, 0) << "what such a request computed must not be found by another";
  EXPECT_GE(metrics.nan_aborts, 1u);
  std::remove(path.c_str());
}

// A vocabulary of three specials and the letter a.
TEST(Service, BytesThatTheVocabularyLacksAreLoggedAndCounted) {
  const std::string path = std::filesystem::temp_directory_path() / "tessera_four_tokens.gguf";
  std::ofstream(path, std::ios::binary) << testing::TinyLlama{.byte_vocabulary = false}.writer().build();
  std::vector<std::string> warnings;
  engine::ServiceOptions chosen = options();
  chosen.model_path = path;
  chosen.log = [&](LogLevel level, std::string_view line) {
    if (level == LogLevel::warning) warnings.emplace_back(line);
  };
  ServiceClient client(chosen);
  EXPECT_EQ(client.service().tokenize("aaa", false, false)->left_out, 0u);
  EXPECT_TRUE(warnings.empty());
  const auto encoded = client.service().tokenize("a?a!", false, false);
  EXPECT_EQ(encoded->tokens, (std::vector<int32_t>{3, 3}));
  EXPECT_EQ(encoded->left_out, 2u);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("lost 2 of its bytes"), std::string::npos) << warnings[0];
  const auto chat = client.service().render_chat({{.role = "a", .content = "b", .name = ""}}, false);
  ASSERT_TRUE(chat.ok()) << chat.status().message();
  EXPECT_EQ(chat->left_out, 3u);  // b and two ends of lines
  EXPECT_EQ(warnings.size(), 2u);
  EXPECT_EQ(client.service().metrics().left_out_bytes, 5u);
  std::remove(path.c_str());
}

TEST(Service, OptionsOutOfRangeAreNamed) {
  const auto message = [](auto change) {
    engine::ServiceOptions chosen = options();
    change(chosen);
    const auto service = engine::load_service(chosen);
    return service.ok() ? std::string() : service.status().message();
  };
  EXPECT_NE(message([](auto& o) { o.max_model_len = 1 << 20; }).find("--max-model-len"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.kv_cache_memory_bytes = 1; }).find("--kv-cache-memory-bytes"),
            std::string::npos);
  EXPECT_NE(message([](auto& o) { o.max_num_batched_tokens = 3; }).find("--max-num-seqs"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.model_path = "/nowhere.gguf"; }).find("/nowhere.gguf"),
            std::string::npos);
}

}  // namespace
}  // namespace tessera::test
