// Backward against the double reference by flash-attn's rule, its bits, and what it must not touch.
#include "tests/attention/backward_fixture.h"

#include "attention/backward_registry.h"

namespace tessera::attention {
namespace {

AttentionProblem make(DType dtype, int64_t batch, int64_t seqlen_q, int64_t seqlen_k, int heads, int kv_heads,
                      int dim, bool causal = true) {
  AttentionProblem p;
  p.dtype = dtype;
  p.batch = batch;
  p.seqlen_q = seqlen_q;
  p.seqlen_k = seqlen_k;
  p.heads = heads;
  p.kv_heads = kv_heads;
  p.head_dim = p.v_head_dim = dim;
  p.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  p.mask.causal = causal;
  return p;
}

class BackwardTest : public ::testing::TestWithParam<DType> {
 protected:
  ThreadPool pool{ThreadPoolOptions{.threads = 2}};
  Context context{pool};

  AttentionProblem problem(int64_t batch, int64_t seqlen_q, int64_t seqlen_k, int heads, int kv_heads,
                           int dim, bool causal = true) {
    return make(GetParam(), batch, seqlen_q, seqlen_k, heads, kv_heads, dim, causal);
  }
  void check(const AttentionProblem& p, int64_t gap = 0) {
    BackwardCase c(p, gap);
    expect_gradients(context, c);
  }
};

TEST_P(BackwardTest, OddShapes) {
  for (const bool causal : {false, true}) {
    for (const auto& [rows, keys] : {std::pair<int64_t, int64_t>{113, 203},
                                     {128, 217},
                                     {113, 211},
                                     {108, 256},
                                     {1, 239},
                                     {3, 799},
                                     {127, 513}}) {
      check(problem(1, rows, keys, 2, 1, 32, causal));
    }
  }
}

TEST_P(BackwardTest, HeadDimensions) {
  for (int dim : {8, 16, 24, 40, 64, 72, 80, 96, 128, 256}) check(problem(1, 40, 70, 2, 2, dim));
  AttentionProblem p = problem(1, 50, 90, 2, 1, 64);
  for (int v_dim : {8, 40, 128}) {
    p.v_head_dim = v_dim;
    check(p);
  }
}

TEST_P(BackwardTest, GroupsOfQueryHeads) {
  for (const auto& [heads, kv_heads] : {std::pair<int, int>{3, 3}, {6, 2}, {8, 1}, {80, 1}}) {
    check(problem(2, 37, 70, heads, kv_heads, 16));
  }
}

TEST_P(BackwardTest, StridesAreFollowed) {
  check(problem(3, 70, 90, 4, 2, 24), 3);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, BackwardTest, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& info) { return std::string(name(info.param)); });

}  // namespace
}  // namespace tessera::attention
