// The sm_80 forward against the double-precision reference by flash-attn's rule: each feature, each pair of
// them, the dimensions and the lengths around tiles, in every dtype. NaN stands in every row that must not be
// read, guards behind every buffer.
#include <optional>

#include "attention/cuda/sm80/prefill/forward.h"
#include "tests/cuda/support/dense_case.h"

namespace tessera::attention {
namespace {

constexpr uint32_t kSeed = 8117;

class Sm80Forward : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    auto created = tessera::cuda::Launch::create(0);
    ASSERT_TRUE(created.ok()) << created.status().message();
    launch_.emplace(std::move(*created));
  }
  void run_and_check(DenseCase& c) {
    const Status status = run_on_device(*launch_, cuda::sm80::forward, c);
    ASSERT_TRUE(status.ok()) << status.message();
    check_on_device(c);
  }
  // f32 is multiplied as tf32, and the plain form with it: 2^-11 of each operand.
  void check_on_device(DenseCase& c) { c.p.dtype == DType::f32 ? check_tf32(c) : c.check(); }
  std::optional<tessera::cuda::Launch> launch_;
};

TEST_P(Sm80Forward, EachFeatureAndEachPair) {
  each_feature_and_each_pair(GetParam(), kSeed, [&](DenseCase& c) { run_and_check(c); });
}

TEST_P(Sm80Forward, EveryDimension) {
  for (const int dim : {8, 32, 64, 72, 96, 120, 128, 136, 192, 200, 256}) {
    for (const bool causal : {false, true}) {
      SCOPED_TRACE("dim " + std::to_string(dim) + " causal " + std::to_string(causal));
      DenseCase c(GetParam(), 1, 70, 133, 1, dim, kSeed);
      c.p.mask.causal = causal;
      c.p.v_head_dim = dim > 8 ? dim - 8 : dim;
      c.fill();
      run_and_check(c);
      if (HasFailure()) return;
    }
  }
}

TEST_P(Sm80Forward, LengthsAroundTiles) {
  const int lengths[] = {1, 2, 63, 64, 65, 127, 128, 129, 257};
  for (const int rows : lengths) {
    for (const int keys : lengths) {
      for (const bool causal : {false, true}) {
        SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(keys) + " causal " +
                     std::to_string(causal));
        DenseCase c(GetParam(), 1, rows, keys, 1, 64, kSeed);
        c.p.mask.causal = causal;
        c.fill();
        run_and_check(c);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(Sm80Forward, NoKeysGiveZeroAndMinusInfinity) {
  DenseCase c(GetParam(), 2, 70, 0, 2, 64, kSeed);
  c.fill();
  run_and_check(c);
}

// Named before any launch.
TEST_P(Sm80Forward, MisalignedTensorsAndDimensionsAreRefusedByName) {
  DenseCase c(GetParam(), 1, 5, 7, 2, 64, kSeed);
  c.gap = 1;
  c.fill();
  const Status status = run_on_device(*launch_, cuda::sm80::forward, c);
  EXPECT_EQ(status.code(), StatusCode::unsupported);
  EXPECT_EQ(status.field(), "q");
  EXPECT_NE(status.message().find("q.row_stride="), std::string::npos) << status.message();
  c.p.head_dim = 60;
  const Status of_dim = run_on_device(*launch_, cuda::sm80::forward, c);
  EXPECT_EQ(of_dim.field(), "head_dim");
}

TEST_P(Sm80Forward, LargeScoresAndAScaleThatIsNotPositive) {
  for (const float factor : {50.0f, -1.0f, 0.0f}) {
    SCOPED_TRACE("scale x " + std::to_string(factor));
    DenseCase c(GetParam(), 1, 65, 200, 2, 64, kSeed);
    c.p.scale *= factor;
    c.fill();
    run_and_check(c);
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Sm80Forward, ::testing::Values(DType::bf16, DType::f16, DType::f32),
                         [](const auto& info) { return std::string(name(info.param)); });

}  // namespace
}  // namespace tessera::attention
