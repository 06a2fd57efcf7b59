// The contiguous forward against the reference: masks, strides, dtypes, LSE, soft cap and ALiBi.
#include "tessera/attention.h"

#include "tests/attention/paged_fixture.h"

namespace tessera::attention {
namespace {

// Tensors of a problem in its dtype, with room between rows when `gap` > 0.
struct Tensors {
  AttentionProblem p;
  int64_t gap;
  std::vector<float> q, k, v;  // contiguous f32, as the kernel sees the values
  std::vector<char> q_raw, k_raw, v_raw, o_raw;
  std::vector<float> lse;
  ForwardTensors args;

  Tensors(const AttentionProblem& problem, int64_t gap_in, uint32_t seed) : p(problem), gap(gap_in) {
    args.q = make<const void*>(q, q_raw, p.seqlen_q, p.heads, p.head_dim, seed);
    args.k = make<const void*>(k, k_raw, p.seqlen_k, p.kv_heads, p.head_dim, seed + 1);
    args.v = make<const void*>(v, v_raw, p.seqlen_k, p.kv_heads, p.v_head_dim, seed + 2);
    std::vector<float> unused;
    args.o = make<void*>(unused, o_raw, p.seqlen_q, p.heads, p.v_head_dim, seed + 3);
    lse.assign(size_t(p.batch * p.heads * p.seqlen_q), 7.0f);
    args.lse = lse.data();
  }

  template <typename Pointer>
  Strided<Pointer> make(std::vector<float>& plain, std::vector<char>& raw, int64_t rows, int64_t heads,
                        int64_t dim, uint32_t seed) {
    plain = random_values(size_t(p.batch * rows * heads * dim), seed);
    const int64_t element = p.dtype == DType::f32 ? 4 : 2;
    const int64_t head_stride = dim + gap, row_stride = heads * head_stride + gap,
                  batch_stride = rows * row_stride + gap;
    raw.assign(size_t((p.batch * batch_stride + 1) * element), char(0xff));  // NaN in the gaps
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t h = 0; h < heads; ++h) {
          for (int64_t d = 0; d < dim; ++d) {
            float& value = plain[size_t(((b * rows + r) * heads + h) * dim + d)];
            char* at = raw.data() + (b * batch_stride + r * row_stride + h * head_stride + d) * element;
            if (p.dtype == DType::f32) {
              std::memcpy(at, &value, 4);
            } else {
              const uint16_t bits = f32_to_bf16(value);
              std::memcpy(at, &bits, 2);
              value = bf16_to_f32(bits);
            }
          }
        }
      }
    }
    return {raw.data(), batch_stride, row_stride, head_stride};
  }

  float out(int64_t b, int64_t r, int64_t h, int64_t d) const {
    const int64_t at = b * args.o.batch_stride + r * args.o.row_stride + h * args.o.head_stride + d;
    if (p.dtype == DType::f32) return reinterpret_cast<const float*>(o_raw.data())[at];
    return bf16_to_f32(reinterpret_cast<const uint16_t*>(o_raw.data())[at]);
  }
};

class ForwardTest : public ::testing::TestWithParam<DType> {
 protected:
  ThreadPool pool{ThreadPoolOptions{.threads = 2}};
  Context context{pool};

  AttentionProblem problem(int64_t batch, int64_t seqlen_q, int64_t seqlen_k, int heads, int kv_heads,
                           int dim) {
    AttentionProblem p = make_problem(GetParam(), heads, kv_heads, dim);
    p.batch = batch;
    p.seqlen_q = seqlen_q;
    p.seqlen_k = seqlen_k;
    return p;
  }

  // f32: scores of magnitude up to about 6 carry an absolute error of head_dim * 2^-24 relative to the sum of
  // |q k| (below 1e-5 here), which is the relative error of p, of o and of exp(LSE). bf16: o is rounded (2^-9
  // of a value up to 4) and on avx512bf16 scores carry q's rounding, 2^-9 * |s| / sqrt(head_dim), and p its
  // own: together below 2e-2.
  void check(const AttentionProblem& p, int64_t gap = 0) {
    SCOPED_TRACE("seqlen " + std::to_string(p.seqlen_q) + " x " + std::to_string(p.seqlen_k) + " causal " +
                 std::to_string(p.mask.causal) + " left " + std::to_string(p.mask.window_left) + " right " +
                 std::to_string(p.mask.window_right) + " seed " + std::to_string(kSeed));
    Tensors t(p, gap, kSeed);
    const Status status = forward(context, p, t.args);
    ASSERT_TRUE(status.ok()) << status.message();
    std::vector<double> o(size_t(p.batch * p.seqlen_q * p.heads * p.v_head_dim)), lse(t.lse.size());
    const auto plain = [](const std::vector<float>& x, int64_t rows, int64_t heads, int64_t dim) {
      return reference::Operand{x.data(), rows * heads * dim, heads * dim, dim};
    };
    reference::attention(p, plain(t.q, p.seqlen_q, p.heads, p.head_dim),
                         plain(t.k, p.seqlen_k, p.kv_heads, p.head_dim),
                         plain(t.v, p.seqlen_k, p.kv_heads, p.v_head_dim), o.data(), lse.data());
    const double tolerance = p.dtype == DType::f32 ? 1e-5 : 2e-2;
    double worst = 0, worst_lse = 0;
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t h = 0; h < p.heads; ++h) {
        for (int64_t r = 0; r < p.seqlen_q; ++r) {
          const size_t at = size_t((b * p.heads + h) * p.seqlen_q + r);
          if (std::isinf(lse[at])) {
            ASSERT_EQ(t.lse[at], -INFINITY);
          } else if (const double error = std::abs(t.lse[at] - lse[at]); !(error <= worst_lse)) {
            worst_lse = error;
          }
          for (int64_t d = 0; d < p.v_head_dim; ++d) {
            const double want = o[size_t(((b * p.seqlen_q + r) * p.heads + h) * p.v_head_dim + d)];
            if (std::isinf(lse[at])) {
              ASSERT_EQ(t.out(b, r, h, d), 0.0f);
            }
            const double error = std::abs(t.out(b, r, h, d) - want);
            if (!(error <= worst)) worst = error;
          }
        }
      }
    }
    EXPECT_TRUE(worst <= tolerance) << worst;
    EXPECT_TRUE(worst_lse <= tolerance) << worst_lse;
  }
};

TEST_P(ForwardTest, CausalIsBottomRightAligned) {
  for (int64_t seqlen_q : {1, 5, 64, 130}) check(problem(2, seqlen_q, 130, 4, 2, 64));
}

TEST_P(ForwardTest, RowsBeforeTheFirstKeySeeNothing) {
  check(problem(1, 100, 40, 4, 4, 32));
}

TEST_P(ForwardTest, NoKeysAtAll) {
  check(problem(2, 3, 0, 4, 4, 32));
  AttentionProblem p = problem(2, 3, 0, 4, 4, 32);
  p.mask.causal = false;
  check(p);
}

TEST_P(ForwardTest, Bidirectional) {
  AttentionProblem p = problem(2, 130, 200, 6, 2, 40);
  p.mask.causal = false;
  check(p);
}

TEST_P(ForwardTest, WindowsOnBothSides) {
  for (const auto& [left, right] :
       {std::pair<int64_t, int64_t>{0, 0}, {5, 70}, {64, -1}, {-1, 3}, {200, 200}}) {
    AttentionProblem p = problem(1, 300, 300, 2, 1, 32);
    p.mask = {false, left, right};
    check(p);
    p.seqlen_k = 177;
    check(p);
    p.mask.causal = true;
    check(p);
  }
}

TEST_P(ForwardTest, StridesAreFollowed) {
  check(problem(3, 70, 90, 4, 2, 24), 3);
}

TEST_P(ForwardTest, LongEnoughForSegments) {
  check(problem(1, 600, 1200, 2, 1, 64));
}

TEST_P(ForwardTest, SoftCapAndAlibi) {
  AttentionProblem p = problem(1, 140, 200, 4, 2, 64);
  p.softcap = 2.0f;
  check(p);
  const float slopes[] = {0.5f, 0.25f, 0.0f, 0.0625f};
  p.alibi_slopes = slopes;
  check(p);
  p.softcap = 0;
  p.mask.causal = false;
  check(p);
}

TEST_P(ForwardTest, ScaleMayBeNegativeOrZero) {
  AttentionProblem p = problem(1, 20, 80, 2, 2, 16);
  for (float scale : {0.0f, -0.3f}) {
    p.scale = scale;
    check(p);
  }
}

TEST_P(ForwardTest, RefusesNullTensors) {
  const AttentionProblem p = problem(1, 4, 4, 2, 2, 16);
  Tensors t(p, 0, kSeed);
  t.args.v.data = nullptr;
  const Status status = forward(context, p, t.args);
  EXPECT_EQ(status.field(), "v");
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, ForwardTest, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& info) { return std::string(name(info.param)); });

}  // namespace
}  // namespace tessera::attention
