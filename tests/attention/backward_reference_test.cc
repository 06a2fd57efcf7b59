// The reference's gradients against central differences of the reference's forward, in double: each feature
// alone and all of them together.
#include "attention/reference/backward.h"
#include "tests/attention/dense_fixture.h"

namespace tessera::attention {
namespace {

constexpr uint32_t kSeed = 90125;

struct Doubles {
  std::vector<double> values;
  int64_t rows, heads, dim;

  Doubles(std::mt19937& random, int64_t batches, int64_t rows_in, int64_t heads_in, int64_t dim_in)
      : values(size_t(batches * rows_in * heads_in * dim_in)), rows(rows_in), heads(heads_in), dim(dim_in) {
    std::normal_distribution<double> normal;
    for (double& x : values) x = normal(random);
  }
  reference::Operand operand() const { return {values.data(), rows * heads * dim, heads * dim, dim}; }
};

// Every element of q, k and v in turn moves by +-h: sum(dout * o) must move by the gradient. With h = 1e-4
// the differences' own error is h^2 times a third derivative, below 1e-6 for values of this size.
void expect_finite_differences(const AttentionProblem& p) {
  const bool varlen = p.cu_seqlens_q != nullptr;
  const int64_t batches = varlen ? 1 : p.batch;
  const int64_t rows = varlen ? p.cu_seqlens_q[p.batch] : p.seqlen_q;
  const int64_t keys = varlen ? p.cu_seqlens_k[p.batch] : p.seqlen_k;
  std::mt19937 random(kSeed);
  Doubles q(random, batches, rows, p.heads, p.head_dim), k(random, batches, keys, p.kv_heads, p.head_dim),
      v(random, batches, keys, p.kv_heads, p.v_head_dim);
  const Doubles dout(random, batches, rows, p.heads, p.v_head_dim);
  std::vector<double> dq(q.values.size()), dk(k.values.size()), dv(v.values.size()), o(dout.values.size());
  reference::backward(p, q.operand(), k.operand(), v.operand(), dout.operand(), dq.data(), dk.data(),
                      dv.data());
  const auto loss = [&] {
    reference::attention(p, q.operand(), k.operand(), v.operand(), o.data(), nullptr);
    double sum = 0;
    for (size_t i = 0; i < o.size(); ++i) sum += o[i] * dout.values[i];
    return sum;
  };
  const auto check = [&](const char* name, Doubles& at, const std::vector<double>& gradient) {
    const double h = 1e-4;
    double worst = 0, largest = 0;
    for (size_t i = 0; i < gradient.size(); ++i) {
      const double x = at.values[i];
      at.values[i] = x + h;
      const double above = loss();
      at.values[i] = x - h;
      const double below = loss();
      at.values[i] = x;
      const double error = std::abs((above - below) / (2 * h) - gradient[i]);
      if (!(error <= worst)) worst = error;
      largest = std::max(largest, std::abs(gradient[i]));
    }
    EXPECT_TRUE(worst <= 1e-6) << name << ": " << worst;
    EXPECT_GT(largest, 0.1) << name;
  };
  check("dq", q, dq);
  check("dk", k, dk);
  check("dv", v, dv);
}

TEST(BackwardReference, EachFeatureAgreesWithFiniteDifferences) {
  for (const Feature feature : kEveryFeature) {
    SCOPED_TRACE(std::string(name(feature)) + ", seed " + std::to_string(kSeed));
    DenseCase c(DType::f32, 2, 4, 12, 2, 8, kSeed);
    c.add(feature);
    expect_finite_differences(c.p);
  }
}

TEST(BackwardReference, FeaturesTogetherAgreeWithFiniteDifferences) {
  DenseCase c(DType::f32, 2, 5, 9, 2, 8, kSeed);
  for (const Feature f : {Feature::causal, Feature::softcap, Feature::alibi, Feature::additive_mask,
                          Feature::dropout, Feature::grouped, Feature::wide_values}) {
    c.add(f);
  }
  expect_finite_differences(c.p);
}

}  // namespace
}  // namespace tessera::attention
