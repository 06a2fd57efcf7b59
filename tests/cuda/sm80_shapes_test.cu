// The oracle against the CPU's reference, then the sm_80 forward and backward against the oracle: lengths of
// section and tile, every dimension class, groups of heads, windows, and the features at such lengths.
#include <optional>

#include "attention/cuda/sm80/backward/backward.h"
#include "attention/cuda/sm80/prefill/forward.h"
#include "attention/reference/backward.h"
#include "tests/cuda/support/oracle_case.cuh"

namespace tessera::attention {
namespace {

constexpr uint32_t kSeed = 9001;

class Sm80Shapes : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    auto created = tessera::cuda::Launch::create(0);
    ASSERT_TRUE(created.ok()) << created.status().message();
    launch_.emplace(std::move(*created));
  }
  void run_and_check(OracleCase& c, bool gradients = true) {
    const Status status = c.run(*launch_, cuda::sm80::forward, gradients ? cuda::sm80::backward : nullptr);
    ASSERT_TRUE(status.ok()) << status.message();
    c.check(gradients);
  }
  std::optional<tessera::cuda::Launch> launch_;
};

double worst_of(const std::vector<double>& a, const std::vector<double>& b) {
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isinf(b[i]) && a[i] == b[i]) continue;
    if (!(std::abs(a[i] - b[i]) <= worst)) worst = std::abs(a[i] - b[i]);
  }
  return worst;
}

TEST_P(Sm80Shapes, TheOracleIsTheReference) {
  uint32_t seed = kSeed;
  for (const Feature a : kEveryFeature) {
    for (const Feature b : kEveryFeature) {
      if (b < a || (b == Feature::ancestors && (a == Feature::varlen || a == Feature::seqused))) continue;
      if (a == Feature::gaps || b == Feature::gaps) continue;
      SCOPED_TRACE(std::string(name(a)) + " and " + name(b) + ", seed " + std::to_string(seed));
      const bool gradients = b != Feature::ancestors;
      OracleCase c(GetParam(), 3, 9, 40, 2, 16, seed++);
      c.dense.add(a);
      if (b != a) c.dense.add(b);
      ASSERT_TRUE(c.run(*launch_, cuda::sm80::forward, gradients ? cuda::sm80::backward : nullptr).ok());
      const DenseCase::Answer want = c.dense.reference_answer();
      EXPECT_TRUE(worst_of(c.o[0], want.o) <= 1e-12);
      EXPECT_TRUE(worst_of(c.lse[0], want.lse) <= 1e-12);
      if (!gradients) continue;
      std::vector<double> dq(c.gradients[0][0].size()), dk(c.gradients[0][1].size()),
          dv(c.gradients[0][2].size());
      const std::vector<float> q = c.dense.q.values(), k = c.dense.k.values(), v = c.dense.v.values(),
                               dout = c.dout.values();
      reference::backward(c.dense.p, c.dense.q.operand(q), c.dense.k.operand(k), c.dense.v.operand(v),
                          c.dout.operand(dout), dq.data(), dk.data(), dv.data());
      EXPECT_TRUE(worst_of(c.gradients[0][0], dq) <= 1e-12);
      EXPECT_TRUE(worst_of(c.gradients[0][1], dk) <= 1e-12);
      EXPECT_TRUE(worst_of(c.gradients[0][2], dv) <= 1e-12);
      if (HasFailure()) return;
    }
  }
}

// Eight heads: where rows see one key or two, one head's plain form may happen to be exact.
TEST_P(Sm80Shapes, LengthsAroundTiles) {
  const int lengths[] = {1, 2, 63, 64, 65, 127, 128, 129, 257};
  for (const int rows : lengths) {
    for (const int keys : lengths) {
      for (const bool causal : {false, true}) {
        SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(keys) + " causal " +
                     std::to_string(causal));
        OracleCase c(GetParam(), 1, rows, keys, 8, 32, kSeed);
        c.dense.p.mask.causal = causal;
        run_and_check(c);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(Sm80Shapes, LongerSequences) {
  const struct {
    int64_t rows, keys;
    int heads, kv_heads, dim;
    bool causal;
    int64_t left;
  } cases[] = {
      {511, 512, 2, 2, 64, false, -1},  {1000, 1024, 2, 1, 128, true, -1}, {1024, 1000, 1, 1, 128, true, -1},
      {2049, 2049, 1, 1, 64, true, -1}, {1, 1000, 8, 2, 128, false, -1},   {700, 300, 4, 1, 96, false, -1},
      {600, 900, 8, 1, 64, true, 100},  {513, 1025, 2, 2, 192, true, -1},  {300, 1000, 2, 2, 256, false, -1},
      {1000, 1000, 1, 1, 72, true, 63}, {1000, 1000, 1, 1, 128, false, 0}, {1300, 1300, 16, 1, 40, true, -1}};
  for (const auto& shape : cases) {
    SCOPED_TRACE(std::to_string(shape.rows) + " x " + std::to_string(shape.keys) + " heads " +
                 std::to_string(shape.heads) + "/" + std::to_string(shape.kv_heads) + " dim " +
                 std::to_string(shape.dim));
    OracleCase c(GetParam(), 1, shape.rows, shape.keys, shape.heads, shape.dim, kSeed);
    c.dense.p.kv_heads = shape.kv_heads;
    c.dense.p.mask.causal = shape.causal;
    c.dense.p.mask.window_left = shape.left;
    run_and_check(c);
    if (HasFailure()) return;
  }
}

TEST_P(Sm80Shapes, FeaturesOverManyTiles) {
  uint32_t seed = kSeed;
  for (const Feature feature : kEveryFeature) {
    if (feature == Feature::gaps) continue;
    for (const bool causal : {false, true}) {
      SCOPED_TRACE(std::string(name(feature)) + " causal " + std::to_string(causal));
      OracleCase c(GetParam(), 3, 400, 500, 2, 64, seed++);
      c.dense.add(feature);
      c.dense.p.mask.causal = causal;
      run_and_check(c, feature != Feature::ancestors);
      if (HasFailure()) return;
    }
  }
}

// v is the identity and every score 0: o[row][key] is 0 exactly where the mask drops the key, and with do the
// identity so is dv[key][row].
TEST_P(Sm80Shapes, TheDropoutMaskIsTheCpus) {
  constexpr int kSize = 128;
  OracleCase c(GetParam(), 2, kSize, kSize, 3, kSize, kSeed);
  c.dense.add(Feature::dropout);
  c.dense.p.dropout.p = 0.4f;
  c.dense.p.dropout.head0 = 5;
  c.dense.p.dropout.batch0 = 1000;
  c.prepare = [&] {
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t r = 0; r < kSize; ++r) {
        for (int64_t h = 0; h < 3; ++h) {
          for (int64_t d = 0; d < kSize; ++d) {
            c.dense.q.set(b, r, h, d, 0);
            c.dense.v.set(b, r, h, d, r == d ? 1.0f : 0.0f);
            c.dout.set(b, r, h, d, r == d ? 1.0f : 0.0f);
          }
        }
      }
    }
  };
  ASSERT_TRUE(c.run(*launch_, cuda::sm80::forward, cuda::sm80::backward).ok());
  int64_t kept = 0;
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t h = 0; h < 3; ++h) {
      for (int64_t row = 0; row < kSize; ++row) {
        for (int64_t key = 0; key < kSize; ++key) {
          const bool keeps = reference::keep(c.dense.p, b, h, row, key) != 0;
          kept += keeps;
          ASSERT_EQ(c.dense.o.at(b, row, h, key) != 0, keeps) << "o of row " << row << " key " << key;
          ASSERT_EQ(c.dv.at(b, key, h, row) != 0, keeps) << "dv of row " << row << " key " << key;
        }
      }
    }
  }
  const double count = 2.0 * 3 * kSize * kSize, rate = (c.dense.p.dropout.threshold() + 1) / 256.0;
  EXPECT_TRUE(std::abs(static_cast<double>(kept) - count * rate) <= 4 * std::sqrt(count * rate * (1 - rate)));
}

// A prompt computed whole and in chunks gives the same bits: tiles of keys are cut by position.
TEST_P(Sm80Shapes, RowsHaveTheSameBitsInEveryChunk) {
  constexpr int64_t kLength = 600;
  for (const int dim : {64, 128, 256}) {
    OracleCase whole(GetParam(), 1, kLength, kLength, 2, dim, kSeed);
    whole.dense.p.mask.causal = true;
    ASSERT_TRUE(whole.run(*launch_, cuda::sm80::forward, nullptr).ok());
    for (const int64_t rows : {1, 37, 200, 513}) {
      OracleCase chunk(GetParam(), 1, rows, kLength, 2, dim, kSeed);
      chunk.dense.p.mask.causal = true;
      chunk.prepare = [&] {
        chunk.dense.k = whole.dense.k;
        chunk.dense.v = whole.dense.v;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t h = 0; h < 2; ++h) {
            for (int64_t d = 0; d < dim; ++d) {
              chunk.dense.q.set(0, r, h, d, whole.dense.q.at(0, kLength - rows + r, h, d));
            }
          }
        }
      };
      ASSERT_TRUE(chunk.run(*launch_, cuda::sm80::forward, nullptr).ok());
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t h = 0; h < 2; ++h) {
          for (int64_t d = 0; d < dim; ++d) {
            ASSERT_EQ(chunk.dense.o.at(0, r, h, d), whole.dense.o.at(0, kLength - rows + r, h, d))
                << "dim " << dim << ", row " << r << " of " << rows;
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Sm80Shapes, ::testing::Values(DType::bf16, DType::f16, DType::f32),
                         [](const auto& info) { return std::string(name(info.param)); });

}  // namespace
}  // namespace tessera::attention
