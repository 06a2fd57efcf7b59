// Backward against the double reference by flash-attn's rule, its bits, and what it must not touch.
#include "attention/backward_registry.h"
#include "core/thread_pool.h"
#include "tests/attention/backward_fixture.h"
#include "tests/attention/dense_fixture.h"

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

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
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

TEST_P(BackwardTest, SeveralSegmentsAndBlocks) {
  check(problem(1, 600, 1100, 1, 1, 16));
  check(problem(1, 700, 530, 1, 1, 16, false));
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

TEST_P(BackwardTest, WindowsOnBothSides) {
  for (const auto& [left, right] :
       {std::pair<int64_t, int64_t>{0, 0}, {5, 70}, {64, -1}, {-1, 3}, {200, 200}}) {
    AttentionProblem p = problem(1, 300, 700, 2, 1, 16, false);
    p.mask.window_left = left;
    p.mask.window_right = right;
    check(p);
    p.seqlen_k = 177;  // rows before the first key see nothing
    check(p);
    p.mask.causal = true;
    check(p);
  }
}

TEST_P(BackwardTest, EachFeatureAndEachPair) {
  uint32_t seed = kBackwardSeed;
  for (const Feature a : kEveryFeature) {
    for (const Feature b : kEveryFeature) {
      if (b < a || a == Feature::ancestors || b == Feature::ancestors) continue;
      SCOPED_TRACE(std::string(name(a)) + " and " + name(b) + ", seed " + std::to_string(seed));
      DenseCase features(GetParam(), 3, 23, 91, 2, 24, seed++);
      features.add(a);
      if (b != a) features.add(b);
      BackwardCase c(features.p, features.gap, seed);
      expect_gradients(context, c);
      if (HasFailure()) return;
    }
  }
}

// Every kind at once, over tiles that the mask cuts in all ways.
TEST_P(BackwardTest, ManyFeaturesTogether) {
  for (uint32_t seed = kBackwardSeed; seed < kBackwardSeed + 4; ++seed) {
    DenseCase features(GetParam(), 2, 150, 210, 4, 16, seed);
    for (const Feature f :
         {Feature::causal, Feature::softcap, Feature::alibi_per_batch, Feature::additive_mask,
          Feature::dropout, Feature::grouped, Feature::leftpad, Feature::seqused}) {
      features.add(f);
    }
    BackwardCase c(features.p, 1, seed);
    expect_gradients(context, c);
  }
}

TEST_P(BackwardTest, ScaleMayBeNegativeOrZero) {
  AttentionProblem p = problem(1, 20, 80, 2, 2, 16);
  for (float scale : {0.0f, -0.3f}) {
    p.scale = scale;
    check(p);
  }
}

// Few keys or heads: segments are shared by threads. Five windows start and end inside such parts.
TEST_P(BackwardTest, ThreadsDoNotChangeBits) {
  std::vector<AttentionProblem> problems;
  for (const bool causal : {false, true}) {
    for (const int heads : {1, 2}) {
      problems.push_back(problem(1, 700, 1300, 2 * heads, heads, 8, causal));
      problems.push_back(problem(1, 300, 400, 2 * heads, heads, 8, causal));
    }
  }
  for (const int64_t left : {0, 70, 130, 200, 600}) {
    problems.push_back(problem(1, 300, 900, 1, 1, 8));
    problems.back().mask.window_left = left;
  }
  for (const AttentionProblem& p : problems) {
    BackwardCase c(p);
    std::vector<std::vector<float>> first;
    for (int threads : {1, 2, 3, 2, 3}) {
      ThreadPool own(ThreadPoolOptions{.threads = threads});
      Context own_context(own);
      ASSERT_TRUE(c.run(own_context).ok());
      const std::vector<std::vector<float>> got = {c.dq.values, c.dk.values, c.dv.values};
      if (first.empty()) first = got;
      for (size_t i = 0; i < 3; ++i) {
        EXPECT_TRUE(same_bits(got[i], first[i])) << threads << " threads, " << i << ", keys " << p.seqlen_k;
      }
    }
  }
}

TEST_P(BackwardTest, TheBatchDoesNotChangeASequencesBits) {
  const int32_t rows[] = {0, 17, 190, 190, 260}, keys[] = {0, 40, 700, 700, 790};
  AttentionProblem p = problem(4, 173, 660, 4, 2, 16);
  p.cu_seqlens_q = rows;
  p.cu_seqlens_k = keys;
  BackwardCase all(p);
  ASSERT_TRUE(all.run(context).ok());
  for (int b : {0, 1, 3}) {
    SCOPED_TRACE(b);
    const int32_t own_rows = rows[b + 1] - rows[b], own_keys = keys[b + 1] - keys[b];
    BackwardCase one(problem(1, own_rows, own_keys, 4, 2, 16));
    const auto part = [](const CallerTensor& t, int32_t first, int32_t count) {
      const auto begin = t.values.begin() + first * t.heads * t.dim;
      return std::vector<float>(begin, begin + count * t.heads * t.dim);
    };
    one.q.fill(part(all.q, rows[b], own_rows));
    one.k.fill(part(all.k, keys[b], own_keys));
    one.v.fill(part(all.v, keys[b], own_keys));
    one.dout.fill(part(all.dout, rows[b], own_rows));
    one.make_outputs();
    ASSERT_TRUE(one.run(context).ok());
    EXPECT_TRUE(same_bits(one.dq.values, part(all.dq, rows[b], own_rows)));
    EXPECT_TRUE(same_bits(one.dk.values, part(all.dk, keys[b], own_keys)));
    EXPECT_TRUE(same_bits(one.dv.values, part(all.dv, keys[b], own_keys)));
  }
}

// o = (p with drops) v with v the identity, dv = (p with drops)^T dout with dout the identity: what is
// dropped is 0 in both, and nothing else is.
TEST_P(BackwardTest, ForwardAndBackwardDropTheSame) {
  AttentionProblem p = problem(2, 64, 64, 2, 2, 64, false);
  p.dropout.p = 0.4f;
  p.dropout.seed = kBackwardSeed;
  p.dropout.row0 = 31;
  p.dropout.col0 = 160;
  BackwardCase c(p);
  const auto identity = [](CallerTensor& t) {
    std::vector<float> values(t.values.size());
    for (int64_t b = 0; b < t.batches; ++b)
      for (int64_t r = 0; r < t.rows; ++r)
        for (int64_t h = 0; h < t.heads; ++h) values[t.index(b, r, h, r)] = 1;
    t.fill(values);
  };
  identity(c.v);
  identity(c.dout);
  const BackwardTensors t = c.tensors();
  ASSERT_TRUE(forward(context, p, {t.q, t.k, t.v, c.o.strided<void*>(), c.lse.data()}).ok());
  c.o.read();
  ASSERT_TRUE(c.run(context).ok());
  int64_t dropped = 0;
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t i = 0; i < 64; ++i) {
        for (int64_t j = 0; j < 64; ++j) {
          const bool zero = c.o.values[c.o.index(b, i, h, j)] == 0;
          ASSERT_EQ(zero, c.dv.values[c.dv.index(b, j, h, i)] == 0) << b << " " << h << " " << i << " " << j;
          dropped += zero;
        }
      }
    }
  }
  EXPECT_NEAR(static_cast<double>(dropped) / (4 * 64 * 64), 0.4, 0.02);
}

TEST_P(BackwardTest, EmptyBatchesAndSequences) {
  for (const auto& [batch, rows, keys] : {std::tuple<int64_t, int64_t, int64_t>{0, 4, 4}, {2, 0, 0}}) {
    BackwardCase c(problem(batch, rows, keys, 2, 1, 8));
    EXPECT_TRUE(c.run(context).ok());
  }
  // No keys: dq is 0. No rows: dk and dv are 0.
  for (const auto& [rows, keys] : {std::pair<int64_t, int64_t>{5, 0}, {0, 5}}) {
    BackwardCase c(problem(2, rows, keys, 2, 1, 8));
    ASSERT_TRUE(c.run(context).ok());
    for (const CallerTensor* t : {&c.dq, &c.dk, &c.dv}) {
      for (const float x : t->values) EXPECT_EQ(x, 0.0f);
    }
  }
  const int32_t row_sums[] = {0, 0, 7, 7, 9}, key_sums[] = {0, 3, 3, 90, 93};
  AttentionProblem p = problem(4, 7, 87, 2, 1, 8);
  p.cu_seqlens_q = row_sums;
  p.cu_seqlens_k = key_sums;
  check(p);
}

TEST_P(BackwardTest, MemoryIsLinear) {
  AttentionProblem p = problem(1, 32768, 32768, 1, 1, 64);
  p.mask.window_left = 64;  // what a pass over everything would take, in a moment
  const size_t elements = size_t{32768} * 64;
  std::vector<float> in(elements), out(elements), lse(32768, 1.0f);
  const auto of = [](auto* data) { return contiguous(data, 32768, 1, 64); };
  const Strided<const void*> from = of(static_cast<const void*>(in.data()));
  const Strided<void*> to = of(static_cast<void*>(out.data()));
  ASSERT_TRUE(backward(context, p, {from, from, from, from, from, lse.data(), to, to, to}).ok());
  size_t held = 0;
  for (const Workspace& workspace : context.workspaces) held += workspace.bytes();
  EXPECT_LT(held, size_t{64} << 20);
}

TEST_P(BackwardTest, RefusesWhatItCannotDo) {
  BackwardCase c(problem(1, 4, 4, 2, 2, 16));
  BackwardTensors t = c.tensors();
  const auto field = [&](const AttentionProblem& p) { return backward(context, p, t).field(); };
  t.dout.data = nullptr;
  EXPECT_EQ(field(c.p), "dout");
  t = c.tensors();
  t.lse = nullptr;
  EXPECT_EQ(field(c.p), "lse");
  t = c.tensors();
  t.dk.row_stride = 0;
  EXPECT_EQ(field(c.p), "dk");
  DenseCase tree(GetParam(), 1, 4, 40, 2, 16, kBackwardSeed);
  tree.add(Feature::ancestors);
  const Status status = find_backward(tree.p).status();
  EXPECT_EQ(status.code(), StatusCode::unsupported);
  EXPECT_EQ(status.field(), "ancestors");
}

TEST_P(BackwardTest, ExplainNamesTheKernelThatIsTaken) {
  const AttentionProblem p = problem(1, 4, 4, 2, 2, 16);
  const std::string lines = explain(p, Pass::backward);
  const Result<const BackwardKernel*> kernel = find_backward(p);
  ASSERT_TRUE(kernel.ok());
  EXPECT_NE(lines.find("> " + std::string((*kernel)->name)), std::string::npos) << lines;
}

INSTANTIATE_TEST_SUITE_P(Dtypes, BackwardTest, ::testing::Values(DType::f32, DType::f16, DType::bf16),
                         [](const auto& info) { return std::string(name(info.param)); });

}  // namespace
}  // namespace tessera::attention
