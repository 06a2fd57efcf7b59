// forward with mask tensors, variable lengths and padding against PyTorch (tests/goldens/README.md), on every
// ISA.
#include <gtest/gtest.h>

#include <cmath>

#include "core/context.h"
#include "tessera/attention.h"
#include "tests/support/golden.h"

namespace tessera::attention {
namespace {

using test::Golden;
using test::GoldenCase;

AttentionProblem problem_of(const GoldenCase& c) {
  const std::vector<int64_t>&q = c.shape("q"), &k = c.shape("k"), &v = c.shape("v");
  AttentionProblem p;
  if (c.has("cu_seqlens_q")) {
    p.batch = c.shape("cu_seqlens_q")[0] - 1;
    p.seqlen_q = c.integer("longest_q");
    p.seqlen_k = c.integer("longest_k");
    p.cu_seqlens_q = c.i32("cu_seqlens_q").data();
    p.cu_seqlens_k = c.i32("cu_seqlens_k").data();
  } else {
    p.batch = q[0];
    p.seqlen_q = q[1];
    p.seqlen_k = k[1];
  }
  p.heads = static_cast<int>(q[q.size() - 2]);
  p.kv_heads = static_cast<int>(k[k.size() - 2]);
  p.head_dim = static_cast<int>(q.back());
  p.v_head_dim = static_cast<int>(v.back());
  p.scale = static_cast<float>(c.number("scale"));
  p.mask.causal = c.boolean("causal");
  if (c.has("seqused_k")) p.seqused_k = c.i32("seqused_k").data();
  if (c.has("leftpad_k")) p.leftpad_k = c.i32("leftpad_k").data();
  if (!c.has("mask")) return p;
  MaskTensor& mask = p.mask.tensor;
  const bool boolean = c.text("kind") == "boolean";
  mask.kind = boolean ? MaskKind::boolean : MaskKind::additive;
  mask.data = boolean ? static_cast<const void*>(c.u8("mask").data()) : c.f32("mask").data();
  const std::vector<int64_t>& shape = c.shape("mask");
  int64_t stride = 1;
  for (const auto& [axis, to] : {std::pair{3, &mask.key_stride},
                                 {2, &mask.row_stride},
                                 {1, &mask.head_stride},
                                 {0, &mask.batch_stride}}) {
    const int64_t size = shape[static_cast<size_t>(axis)];
    *to = size == 1 ? 0 : stride;
    stride *= size;
  }
  return p;
}

void expect_agreement(const char* name, size_t cases) {
  ThreadPool pool({.threads = 2});
  Context context(pool);
  const Golden golden = Golden::load(name);
  EXPECT_EQ(golden.cases().size(), cases);
  for (const GoldenCase& c : golden.cases()) {
    SCOPED_TRACE(c.name());
    const AttentionProblem p = problem_of(c);
    const int64_t rows = p.cu_seqlens_q != nullptr ? p.cu_seqlens_q[p.batch] : p.seqlen_q;
    const int64_t keys = p.cu_seqlens_k != nullptr ? p.cu_seqlens_k[p.batch] : p.seqlen_k;
    std::vector<float> o(c.f32("o").size(), std::nanf("")), lse(c.f32("lse").size(), std::nanf(""));
    ForwardTensors t;
    t.q = contiguous<const void*>(c.f32("q").data(), rows, p.heads, p.head_dim);
    t.k = contiguous<const void*>(c.f32("k").data(), keys, p.kv_heads, p.head_dim);
    t.v = contiguous<const void*>(c.f32("v").data(), keys, p.kv_heads, p.v_head_dim);
    t.o = contiguous<void*>(o.data(), rows, p.heads, p.v_head_dim);
    t.lse = lse.data();
    const Status status = forward(context, p, t);
    ASSERT_TRUE(status.ok()) << status.message();
    // Scores stay below 8: their rounding, 2^-24 of that, is what o and the LSE carry, some times over.
    const double off = test::max_difference(o, c.f32("o")), lse_off = test::max_difference(lse, c.f32("lse"));
    EXPECT_TRUE(off <= 4e-6) << off;
    EXPECT_TRUE(lse_off <= 4e-6) << lse_off;
  }
}

TEST(MaskGoldens, BooleanAndAdditiveMasksOfEveryBroadcast) {
  expect_agreement("attention_masks", 6);
}
TEST(MaskGoldens, VariableLengthsAndPadding) {
  expect_agreement("attention_lengths", 5);
}

}  // namespace
}  // namespace tessera::attention
