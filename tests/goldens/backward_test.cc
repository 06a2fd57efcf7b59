// Backward against PyTorch's autograd (tests/goldens/README.md), on every ISA. What it is given is forward's
// own o and LSE.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "core/context.h"
#include "tests/goldens/attention_problem.h"

namespace tessera::attention {
namespace {

using test::Golden;
using test::GoldenCase;

AttentionProblem masked_problem_of(const GoldenCase& c) {
  AttentionProblem p = problem_of(c);
  if (c.has("mask")) {
    const bool boolean = c.text("mask") == "boolean";
    MaskTensor& mask = p.mask.tensor;
    mask.kind = boolean ? MaskKind::boolean : MaskKind::additive;
    mask.data = boolean ? static_cast<const void*>(c.u8("mask").data()) : c.f32("mask").data();
    const std::vector<int64_t>& shape = c.shape("mask");  // an axis of 1 broadcasts
    mask.key_stride = 1;
    mask.row_stride = p.seqlen_k;
    mask.head_stride = shape[1] == 1 ? 0 : p.seqlen_q * p.seqlen_k;
    mask.batch_stride = shape[0] == 1 ? 0 : shape[1] * p.seqlen_q * p.seqlen_k;
  }
  return p;
}

void expect_near(const char* name, std::span<const float> got, std::span<const float> want) {
  ASSERT_EQ(got.size(), want.size());
  float largest = 1, worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::isinf(want[i]) && got[i] == want[i]) continue;  // LSE of a row that sees nothing
    largest = std::max(largest, std::abs(want[i]));
    if (!(std::abs(got[i] - want[i]) <= worst)) worst = std::abs(got[i] - want[i]);
  }
  EXPECT_TRUE(worst <= 2e-6f * largest) << name << ": " << worst << " of " << largest;
}

TEST(BackwardGoldens, GradientsAreAutograds) {
  const Golden golden = Golden::load("attention_backward");
  ThreadPool pool(ThreadPoolOptions{.threads = 2});
  Context context(pool);
  for (const GoldenCase& c : golden.cases()) {
    SCOPED_TRACE(c.name());
    const AttentionProblem p = masked_problem_of(c);
    const auto in = [&](std::span<const float> t, int64_t rows, int64_t heads, int64_t dim) {
      return contiguous(static_cast<const void*>(t.data()), rows, heads, dim);
    };
    const auto out = [&](std::vector<float>& t, int64_t rows, int64_t heads, int64_t dim) {
      t.assign(static_cast<size_t>(p.batch * rows * heads * dim), std::nanf(""));
      return contiguous(static_cast<void*>(t.data()), rows, heads, dim);
    };
    std::vector<float> o, dq, dk, dv, lse(c.f32("lse").size());
    const Strided<const void*> q = in(c.f32("q"), p.seqlen_q, p.heads, p.head_dim),
                               k = in(c.f32("k"), p.seqlen_k, p.kv_heads, p.head_dim),
                               v = in(c.f32("v"), p.seqlen_k, p.kv_heads, p.v_head_dim);
    const Strided<void*> o_out = out(o, p.seqlen_q, p.heads, p.v_head_dim);
    ASSERT_TRUE(forward(context, p, {q, k, v, o_out, lse.data()}).ok());
    expect_near("o", o, c.f32("o"));
    expect_near("lse", lse, c.f32("lse"));
    const Status status =
        backward(context, p,
                 {q, k, v, in(o, p.seqlen_q, p.heads, p.v_head_dim),
                  in(c.f32("dout"), p.seqlen_q, p.heads, p.v_head_dim), lse.data(),
                  out(dq, p.seqlen_q, p.heads, p.head_dim), out(dk, p.seqlen_k, p.kv_heads, p.head_dim),
                  out(dv, p.seqlen_k, p.kv_heads, p.v_head_dim)});
    ASSERT_TRUE(status.ok()) << status.message();
    expect_near("dq", dq, c.f32("dq"));
    expect_near("dk", dk, c.f32("dk"));
    expect_near("dv", dv, c.f32("dv"));
  }
}

}  // namespace
}  // namespace tessera::attention
