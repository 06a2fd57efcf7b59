// SmolLM2-135M-Instruct against Hugging Face's float32 forward pass on the same dequantised weights.
#include <gtest/gtest.h>

#include <cstdio>

#include "core/fs.h"
#include "simd/isa.h"
#include "tests/support/golden.h"
#include "tests/support/model_driver.h"

namespace tessera::test {
namespace {

// The scalar level takes minutes for the long prompt, which every other level runs.
bool too_slow(const GoldenCase& c) {
  return *simd::requested_isa() == simd::Isa::scalar && c.i32("prompt").size() > 100;
}

TEST(RealModel, F32LogitsAndGreedyTokensAgreeWithHuggingFace) {
  const std::string path = default_model_path();
  if (path.empty()) GTEST_SKIP() << "TESSERA_MODEL is not set; scripts/test sets it";
  const Golden golden = Golden::load("smollm2_logits");
  auto handle = system_files().open(path);
  ASSERT_TRUE(handle.ok());
  ASSERT_EQ(*sha256_file(**handle), std::string(golden.source().at("model_sha256").as_string()));
  auto file = model::open_model(path);
  ASSERT_TRUE(file.ok()) << file.status().message();
  model::CpuExecutorOptions options;
  options.compute = ops::Compute::f32;
  options.kv_dtype = DType::f32;
  options.num_blocks = 32;
  options.max_rows = 128;
  ModelDriver driver(*file, options, 2);
  const size_t vocab = static_cast<size_t>(file->config.vocab_size);
  for (const GoldenCase& c : golden.cases()) {
    if (too_slow(c)) {
      std::printf("left out at this ISA: %s (%zu tokens)\n", c.name().c_str(), c.i32("prompt").size());
      continue;
    }
    SCOPED_TRACE(c.name());
    driver.free_all();
    std::vector<int32_t> tokens(c.i32("prompt").begin(), c.i32("prompt").end());
    const size_t prompt = tokens.size();
    tokens.insert(tokens.end(), c.i32("greedy").begin(), c.i32("greedy").end());
    TestSequence sequence;
    const std::vector<float> logits = driver.all_logits(&sequence, tokens);

    const std::span<const float> last(logits.data() + (prompt - 1) * vocab, vocab);
    const double worst = max_difference(last, c.f32("last_logits"));
    const double scale = max_magnitude(c.f32("last_logits"));
    std::printf("%-12s %5zu tokens: last logits differ by %.2e of the largest\n", c.name().c_str(), prompt,
                worst / scale);
    EXPECT_TRUE(worst <= 1e-4 * scale);
    const auto positions = c.i32("positions");
    const auto columns = c.i32("columns");
    for (size_t p = 0; p < positions.size(); ++p) {
      const float* row = logits.data() + static_cast<size_t>(positions[p]) * vocab;
      for (size_t k = 0; k < columns.size(); ++k) {
        const float got = row[columns[k]], expected = c.f32("sampled_logits")[p * columns.size() + k];
        ASSERT_TRUE(std::abs(got - expected) <= 1e-4 * c.f32("max_abs")[p]) << "position " << positions[p];
      }
      EXPECT_EQ(std::max_element(row, row + vocab) - row, c.i32("argmax")[p]);
    }
    for (size_t i = 0; i < c.i32("greedy").size(); ++i) {
      const float* row = logits.data() + (prompt + i - 1) * vocab;
      ASSERT_EQ(std::max_element(row, row + vocab) - row, c.i32("greedy")[i]) << "greedy token " << i;
    }
  }
}

}  // namespace
}  // namespace tessera::test
