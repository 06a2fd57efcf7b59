// The Hopper forward with scores that are more than products, against the double-precision reference: each
// feature, each pair of them. NaN stands in every row that must not be read, guards behind every buffer.
#include <optional>

#include "attention/cuda/sm90/prefill/launch.h"
#include "tests/cuda/support/dense_case.h"

namespace tessera::attention {
namespace {

constexpr uint32_t kSeed = 4711;

Status forward(tessera::cuda::Launch& launch, const AttentionProblem& problem,
               const ForwardTensors& tensors) {
  return cuda::sm90::prefill(launch, problem, tensors);
}

class Sm90Features : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    auto created = tessera::cuda::Launch::create(0);
    ASSERT_TRUE(created.ok()) << created.status().message();
    launch_.emplace(std::move(*created));
    if (launch_->device.sm() != 90) GTEST_SKIP() << "needs sm_90, this is sm_" << launch_->device.sm();
  }
  void run_and_check(DenseCase& c) {
    const Status status = run_on_device(*launch_, forward, c);
    ASSERT_TRUE(status.ok()) << status.message();
    c.check();
  }
  std::optional<tessera::cuda::Launch> launch_;
};

TEST_P(Sm90Features, EachFeatureAndEachPair) {
  each_feature_and_each_pair(GetParam(), kSeed, [&](DenseCase& c) { run_and_check(c); });
}

// The kernel of 129 to 256 dimensions: some of its columns are zeros.
TEST_P(Sm90Features, EachFeatureAndEachPairOfWideHeads) {
  each_feature_and_each_pair(
      GetParam(), kSeed, [&](DenseCase& c) { run_and_check(c); }, 200);
}

// The kernels of each head size, and rows and keys of several tiles.
TEST_P(Sm90Features, EachFeatureOverSeveralTiles) {
  uint32_t seed = kSeed;
  for (const Feature feature : kEveryFeature) {
    for (const int dim : {64, 96, 128, 160, 256}) {
      for (const bool causal : {false, true}) {
        // Sizes between run as the next one, and values wider than 256 do not go.
        if (dim % 64 != 0 && !causal) continue;
        if (dim == 256 && feature == Feature::wide_values) continue;
        SCOPED_TRACE(std::string(name(feature)) + " dim " + std::to_string(dim) + " causal " +
                     std::to_string(causal));
        DenseCase c(GetParam(), 2, dim > 128 ? 130 : 200, dim > 128 ? 203 : 333, 2, dim, seed++);
        c.p.mask.causal = causal;
        add_on_device(c, feature);
        c.fill(1.0f);
        run_and_check(c);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(Sm90Features, ScalesThatAreNotPositive) {
  for (const float factor : {50.0f, -1.0f, 0.0f}) {
    SCOPED_TRACE("scale x " + std::to_string(factor));
    for (const int dim : {64, 256}) {
      DenseCase c(GetParam(), 1, 65, 200, 2, dim, kSeed);
      c.p.scale *= factor;
      c.fill();
      run_and_check(c);
      if (HasFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Sm90Features, ::testing::Values(DType::bf16, DType::f16),
                         [](const auto& info) { return std::string(name(info.param)); });

}  // namespace
}  // namespace tessera::attention
