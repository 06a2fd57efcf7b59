// Two random layers with a sliding window, odd head_dim and an untied head, against Hugging Face.
#include <gtest/gtest.h>

#include <cstring>

#include "tests/support/golden.h"
#include "tests/support/model_driver.h"

namespace tessera::test {
namespace {

model::ModelFile open(const std::string& name) {
  auto file = model::open_model(std::string(TESSERA_SOURCE_DIR) + "/tests/goldens/" + name);
  if (!file.ok()) throw std::runtime_error(file.status().message());
  return std::move(file).value();
}

model::CpuExecutorOptions exact_options() {
  model::CpuExecutorOptions options;
  options.compute = ops::Compute::f32;
  options.kv_dtype = DType::f32;
  options.num_blocks = 16;
  options.max_rows = 64;
  return options;
}

class TinyLlama : public testing::TestWithParam<const char*> {};

TEST_P(TinyLlama, F32LogitsAgreeWithHuggingFaceAtEverySampledPosition) {
  const Golden golden = Golden::load("tiny_llama");
  const GoldenCase& c = golden.at(GetParam());
  const model::ModelFile file = open(c.text("file"));
  ModelDriver driver(file, exact_options(), 2);
  std::vector<int32_t> tokens(c.i32("prompt").begin(), c.i32("prompt").end());
  tokens.insert(tokens.end(), c.i32("greedy").begin(), c.i32("greedy").end());
  TestSequence sequence;
  const std::vector<float> logits = driver.all_logits(&sequence, tokens);
  const size_t vocab = static_cast<size_t>(file.config.vocab_size);
  const auto positions = c.i32("positions");
  const auto columns = c.i32("columns");
  for (size_t p = 0; p < positions.size(); ++p) {
    const double tolerance = 1e-4 * c.f32("max_abs")[p];
    for (size_t k = 0; k < columns.size(); ++k) {
      const float got = logits[static_cast<size_t>(positions[p]) * vocab + static_cast<size_t>(columns[k])];
      const float expected = c.f32("sampled_logits")[p * columns.size() + k];
      ASSERT_TRUE(std::abs(got - expected) <= tolerance)
          << "position " << positions[p] << " column " << columns[k] << ": " << got << " against "
          << expected;
    }
  }
  // Greedy: each generated token is the arg-max after what came before it.
  const size_t prompt = c.i32("prompt").size();
  for (size_t i = 0; i < c.i32("greedy").size(); ++i) {
    const float* row = logits.data() + (prompt + i - 1) * vocab;
    EXPECT_EQ(std::max_element(row, row + vocab) - row, c.i32("greedy")[i]) << "greedy token " << i;
  }
}

TEST_P(TinyLlama, TheFusedProgramHasTheBitsOfTheUnfusedOne) {
  const Golden golden = Golden::load("tiny_llama");
  const GoldenCase& c = golden.at(GetParam());
  const model::ModelFile file = open(c.text("file"));
  for (const ops::Compute compute : {ops::Compute::f32, ops::Compute::quantized}) {
    for (const DType kv : {DType::f32, DType::bf16}) {
      std::vector<float> logits[2];
      for (const bool fused : {false, true}) {
        model::CpuExecutorOptions options = exact_options();
        options.compute = compute;
        options.kv_dtype = kv;
        options.fused = fused;
        ModelDriver driver(file, options, 1);
        TestSequence sequence;
        logits[fused] = driver.all_logits(&sequence, c.i32("prompt"));
      }
      ASSERT_EQ(logits[0].size(), logits[1].size());
      EXPECT_EQ(std::memcmp(logits[0].data(), logits[1].data(), logits[0].size() * sizeof(float)), 0)
          << "kv " << name(kv);
    }
  }
}

TEST_P(TinyLlama, TheDefaultArithmeticStaysNearTheExactOne) {
  const Golden golden = Golden::load("tiny_llama");
  const GoldenCase& c = golden.at(GetParam());
  const model::ModelFile file = open(c.text("file"));
  std::vector<float> exact, fast;
  {
    ModelDriver driver(file, exact_options(), 1);
    TestSequence sequence;
    exact = driver.all_logits(&sequence, c.i32("prompt"));
  }
  model::CpuExecutorOptions options = exact_options();
  options.compute = ops::Compute::quantized;
  options.kv_dtype = DType::bf16;
  ModelDriver driver(file, options, 1);
  TestSequence sequence;
  fast = driver.all_logits(&sequence, c.i32("prompt"));
  // int8 activations round to 1/254 of a block's largest value and bf16 keys to 2^-9; over two layers their
  // independent errors stay far below a twentieth of the largest logit, which a wrong scale or layout would
  // not.
  EXPECT_TRUE(max_difference(fast, exact) <= 0.05 * max_magnitude(exact))
      << max_difference(fast, exact) << " of " << max_magnitude(exact);
}

INSTANTIATE_TEST_SUITE_P(Files, TinyLlama, testing::Values("f32", "mixed"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Executor, ARowWithoutLogitsStillFillsTheCache) {
  const Golden golden = Golden::load("tiny_llama");
  const GoldenCase& c = golden.at("f32");
  const model::ModelFile file = open(c.text("file"));
  ModelDriver driver(file, exact_options(), 1);
  std::vector<int32_t> blocks = {0, 1};
  const auto prompt = c.i32("prompt");
  const model::SequenceRows first{0, 40, 0, blocks.data()};
  driver.executor().forward(
      {.tokens = prompt.first(40), .sequences = {&first, 1}, .copies = {}, .logit_rows = {}}, nullptr);
  const model::SequenceRows second{0, 1, 40, blocks.data()};
  const int32_t row = 0;
  std::vector<float> logits(static_cast<size_t>(file.config.vocab_size));
  driver.executor().forward(
      {.tokens = prompt.subspan(40, 1), .sequences = {&second, 1}, .copies = {}, .logit_rows = {&row, 1}},
      logits.data());
  ModelDriver whole(file, exact_options(), 1);
  TestSequence sequence;
  const std::vector<float> expected = whole.all_logits(&sequence, prompt.first(41));
  EXPECT_EQ(std::memcmp(logits.data(), expected.data() + 40 * logits.size(), logits.size() * sizeof(float)),
            0);
}

}  // namespace
}  // namespace tessera::test
