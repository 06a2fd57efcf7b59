// The goldens themselves: every committed one is whole, and the reader's comparisons cannot pass by accident.
#include "tests/support/golden.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <limits>
#include <set>

namespace tessera::test {
namespace {

namespace fs = std::filesystem;

const fs::path kFolder = fs::path(TESSERA_SOURCE_DIR) / "tests/goldens";

TEST(Goldens, EveryIndexIsWholeAndEveryTensorIsReadable) {
  int indexes = 0;
  for (const auto& entry : fs::directory_iterator(kFolder)) {
    if (entry.path().extension() != ".json") continue;
    ++indexes;
    const Golden golden = Golden::load(entry.path().stem());
    EXPECT_FALSE(golden.cases().empty()) << entry.path();
    std::set<std::string> names;
    for (const GoldenCase& c : golden.cases()) EXPECT_TRUE(names.insert(c.name()).second) << c.name();
  }
  EXPECT_GT(indexes, 0);
}

TEST(Goldens, NoDataFileIsWithoutAnIndex) {
  for (const auto& entry : fs::directory_iterator(kFolder)) {
    if (entry.path().extension() != ".bin") continue;
    EXPECT_TRUE(fs::exists(fs::path(entry.path()).replace_extension(".json"))) << entry.path();
  }
}

TEST(Goldens, AMissingGoldenTensorOrDtypeIsNamed) {
  EXPECT_THROW(Golden::load("no_such_golden"), std::runtime_error);
  const Golden golden = Golden::load("smollm2_logits");
  const GoldenCase& c = golden.at("capital");
  EXPECT_THROW(c.f32("no_such_tensor"), std::runtime_error);
  EXPECT_THROW(c.i32("last_logits"), std::runtime_error);
  EXPECT_THROW(golden.at("no_such_case"), std::runtime_error);
}

TEST(Goldens, LogitsOfTheRealModelHaveTheShapesThatTheReadmeSays) {
  const Golden golden = Golden::load("smollm2_logits");
  const int64_t vocab = golden.source().at("vocab").to_number<int64_t>();
  ASSERT_GE(golden.cases().size(), 6u);
  int64_t longest = 0;
  for (const GoldenCase& c : golden.cases()) {
    const int64_t positions = c.shape("positions")[0], columns = c.shape("columns")[0];
    EXPECT_EQ(c.shape("greedy"), std::vector<int64_t>{64}) << c.name();
    EXPECT_EQ(c.shape("last_logits"), std::vector<int64_t>{vocab}) << c.name();
    EXPECT_EQ(c.shape("sampled_logits"), (std::vector<int64_t>{positions, columns})) << c.name();
    // The first greedy token is the arg-max of the last prompt position's logits.
    const std::span<const float> logits = c.f32("last_logits");
    EXPECT_EQ(std::max_element(logits.begin(), logits.end()) - logits.begin(), c.i32("greedy")[0])
        << c.name();
    longest = std::max(longest, c.shape("prompt")[0]);
  }
  EXPECT_GT(longest, 1000);
}

TEST(Goldens, ADifferenceThatIsNotANumberNeverPasses) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const std::vector<float> expected{1, 2, -inf};
  EXPECT_EQ(max_difference(std::vector<float>{1, 2.5, -inf}, expected), 0.5);
  EXPECT_FALSE(max_difference(std::vector<float>{nan, 2, -inf}, expected) <= 1e9);
  EXPECT_FALSE(max_difference(std::vector<float>{1, 2, 3}, expected) <= 1e9);
  EXPECT_FALSE(max_difference(std::vector<float>{1, 2, inf}, expected) <= 1e9);
  EXPECT_FALSE(max_difference(std::vector<float>{1, 2}, expected) <= 1e9);
}

}  // namespace
}  // namespace tessera::test
