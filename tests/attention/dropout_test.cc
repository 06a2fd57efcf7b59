// The dropout mask: the kernels' bytes are the reference's, its share is right, its origin moves it.
#include "attention/dropout.h"

#include <gtest/gtest.h>

#include <cmath>

#include "attention/reference/score.h"

namespace tessera::attention {
namespace {

AttentionProblem dropping(float p) {
  AttentionProblem problem;
  problem.batch = 3;
  problem.seqlen_q = 40;
  problem.seqlen_k = 100;
  problem.heads = problem.kv_heads = 2;
  problem.head_dim = problem.v_head_dim = 8;
  problem.dropout.p = p;
  problem.dropout.seed = 0x123456789abcdef0u;
  problem.dropout.offset = 0xfedcba9876543210u;
  return problem;
}

bool kept(const DropoutKey& key, int64_t batch, int64_t head, int64_t row, int64_t column) {
  const auto words = dropout_bytes(key, batch, head, row, column / 16);
  return (words[static_cast<size_t>(column % 16 / 4)] >> (column % 4 * 8) & 255) <= key.threshold;
}

TEST(Dropout, KernelsDrawWhatTheReferenceDraws) {
  AttentionProblem p = dropping(0.3f);
  p.dropout.batch0 = 5;
  p.dropout.head0 = 7;
  p.dropout.row0 = 1000;
  p.dropout.col0 = 4096;
  const DropoutKey key = dropout_key(p.dropout);
  for (int64_t batch = 0; batch < p.batch; ++batch) {
    for (int64_t head = 0; head < p.heads; ++head) {
      for (int64_t row = 0; row < p.seqlen_q; ++row) {
        for (int64_t column = 0; column < p.seqlen_k; ++column) {
          ASSERT_EQ(kept(key, batch, head, row, column), reference::keep(p, batch, head, row, column) != 0);
        }
      }
    }
  }
}

TEST(Dropout, AShardAtItsOriginDrawsWhatTheWholeDraws) {
  AttentionProblem whole = dropping(0.5f), shard = whole;
  shard.dropout.batch0 = 1;
  shard.dropout.head0 = 1;
  shard.dropout.row0 = 13;
  shard.dropout.col0 = 48;
  for (int64_t row = 0; row < 20; ++row) {
    for (int64_t column = 0; column < 50; ++column) {
      ASSERT_EQ(reference::keep(shard, 0, 0, row, column),
                reference::keep(whole, 1, 1, row + 13, column + 48));
    }
  }
}

TEST(Dropout, TheKeptShareAndItsScaleGiveMeanOne) {
  for (const float p : {0.1f, 0.17f, 0.5f, 0.9f, 0.999f}) {
    const AttentionProblem problem = dropping(p);
    double sum = 0;
    for (int64_t row = 0; row < 500; ++row) {
      for (int64_t column = 0; column < 400; ++column) sum += reference::keep(problem, 0, 1, row, column);
    }
    // A kept element weighs 1 / r with r the share of 256 that is kept: deviation sqrt((1 - r) / r / 200000).
    const double r = (problem.dropout.threshold() + 1) / 256.0;
    EXPECT_NEAR(r, 1 - p, p < 0.99f ? 0.5 / 256 + 1e-6 : 1.0 / 256);
    EXPECT_NEAR(sum / 200000, 1.0, 4 * std::sqrt((1 - r) / r / 200000)) << "p " << p;
  }
}

// philox4x32-10 of counter {1, 2, 3, 4} under the subkey of seed 5 and offset 6, computed apart from both.
TEST(Dropout, TheRuleIsTheWrittenOne) {
  Dropout d;
  d.p = 0.5f;
  d.seed = 5;
  d.offset = 6;
  const DropoutKey key = dropout_key(d);
  EXPECT_EQ(key.threshold, 127u);
  EXPECT_EQ(key.key0, 0xdf63848fu);
  EXPECT_EQ(key.key1, 0x981154cau);
  EXPECT_EQ(dropout_bytes(key, 4, 3, 2, 1),
            (std::array<uint32_t, 4>{0x7762eb7u, 0x981d69c0u, 0x1013094fu, 0x428688abu}));
}

}  // namespace
}  // namespace tessera::attention
