// Single rows of gradients against the whole reference.
#include "bench/cuda/gradient_rows.h"

#include <gtest/gtest.h>

#include <vector>

#include "attention/reference/backward.h"

namespace tessera::bench {
namespace {

constexpr int64_t kRows = 7;
constexpr int kDim = 8, kHeads = 2;  // of one kv head

// Values of no pattern, in [-1, 1).
std::vector<float> values(int64_t count, uint32_t state) {
  std::vector<float> out;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    out.push_back(static_cast<float>(state >> 8) / 8388608.0f - 1.0f);
  }
  return out;
}

class GradientRows : public ::testing::TestWithParam<bool> {};

TEST_P(GradientRows, AreThoseOfTheReference) {
  attention::AttentionProblem p;
  p.seqlen_q = p.seqlen_k = kRows;
  p.heads = kHeads;
  p.kv_heads = 1;
  p.head_dim = p.v_head_dim = kDim;
  p.scale = 0.7f;
  p.mask.causal = GetParam();
  const int64_t head = kRows * kDim;
  // [heads][rows][dim], so that a head's rows are as HeadRows has them.
  const std::vector<float> q = values(kHeads * head, 1), k = values(head, 2), v = values(head, 3),
                           dout = values(kHeads * head, 4);
  const attention::reference::Operand of_q(q.data(), 0, kDim, head), of_k(k.data(), 0, kDim, 0),
      of_v(v.data(), 0, kDim, 0), of_dout(dout.data(), 0, kDim, head);
  std::vector<double> o(kHeads * head), lse(kHeads * kRows), dq(o.size()), dk(head), dv(head);
  attention::reference::attention(p, of_q, of_k, of_v, o.data(), lse.data());
  attention::reference::backward(p, of_q, of_k, of_v, of_dout, dq.data(), dk.data(), dv.data());

  std::vector<HeadRows> heads;
  std::vector<std::vector<float>> outputs(kHeads), sums(kHeads);
  for (int h = 0; h < kHeads; ++h) {
    for (int64_t i = 0; i < kRows; ++i) {
      for (int d = 0; d < kDim; ++d) outputs[h].push_back(static_cast<float>(o[(i * kHeads + h) * kDim + d]));
      sums[h].push_back(static_cast<float>(lse[h * kRows + i]));
    }
    heads.push_back({q.data() + h * head, k.data(), v.data(), outputs[h].data(), dout.data() + h * head,
                     sums[h].data(), kRows, kDim, p.scale, GetParam()});
  }
  for (int64_t row = 0; row < kRows; ++row) {
    std::vector<double> got_q(kDim), got_k(kDim), got_v(kDim);
    for (int h = 0; h < kHeads; ++h) {
      dq_row(heads[h], row, got_q.data());
      for (int d = 0; d < kDim; ++d) EXPECT_NEAR(got_q[d], dq[(row * kHeads + h) * kDim + d], 1e-5) << row;
      add_dkv_row(heads[h], row, got_k.data(), got_v.data());
    }
    for (int d = 0; d < kDim; ++d) {
      EXPECT_NEAR(got_k[d], dk[row * kDim + d], 1e-5) << row;
      EXPECT_NEAR(got_v[d], dv[row * kDim + d], 1e-5) << row;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Masks, GradientRows, ::testing::Bool());

}  // namespace
}  // namespace tessera::bench
