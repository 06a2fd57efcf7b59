// Every feature of forward and each pair of them, in every dtype, by flash-attn's rule: the error against the
// double-precision reference is at most twice that of the plain form in the same dtype. NaN stands in every
// row that must not be read.
#include "tests/attention/dense_fixture.h"

namespace tessera::attention {
namespace {

constexpr uint32_t kSeed = 4711;

class FeaturesTest : public ::testing::TestWithParam<DType> {
 protected:
  ThreadPool pool{ThreadPoolOptions{.threads = 2}};
  Context context{pool};
};

// Sequences of a tree are all long enough for it.
bool goes_together(Feature a, Feature b) {
  if (b != Feature::ancestors) return true;
  return a != Feature::varlen && a != Feature::seqused;
}

TEST_P(FeaturesTest, EachFeatureAndEachPair) {
  uint32_t seed = kSeed;
  for (const Feature a : kEveryFeature) {
    for (const Feature b : kEveryFeature) {
      if (b < a || !goes_together(a, b)) continue;
      SCOPED_TRACE(std::string(name(a)) + " and " + name(b) + ", seed " + std::to_string(seed));
      DenseCase c(GetParam(), 3, 13, 91, 2, 24, seed++);
      c.add(a);
      if (b != a) c.add(b);
      c.fill(2.0f);
      const Status status = c.run(context);
      ASSERT_TRUE(status.ok()) << status.message();
      c.check();
      if (HasFatalFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, FeaturesTest, ::testing::Values(DType::f32, DType::f16, DType::bf16),
                         [](const auto& info) { return std::string(name(info.param)); });

}  // namespace
}  // namespace tessera::attention
