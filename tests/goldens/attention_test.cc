// Attention, paged and contiguous, against PyTorch's scaled_dot_product_attention (tests/goldens/README.md),
// on every ISA.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "attention/paged.h"
#include "attention/registry.h"
#include "core/context.h"
#include "tests/goldens/attention_problem.h"

namespace tessera::attention {
namespace {

using test::Golden;
using test::GoldenCase;

// The golden's k and v in blocks whose ids run backwards through the storage, and its rows as sequences.
struct Paged {
  Paged(Context& context, const GoldenCase& c, const AttentionProblem& p) {
    const int64_t per_sequence = (p.seqlen_k + kKeyTile - 1) / kKeyTile;
    KvFormat format;
    format.dtype = p.dtype;
    format.kv_heads = p.kv_heads;
    format.head_dim = p.head_dim;
    format.v_head_dim = p.v_head_dim;
    Result<KvStorage> made = KvStorage::create(format, 1, static_cast<int>(p.batch * per_sequence));
    if (!made.ok()) throw std::runtime_error(made.status().message());
    storage = std::move(*made);
    tables.resize(static_cast<size_t>(p.batch * per_sequence));
    std::iota(tables.rbegin(), tables.rend(), 0);

    std::vector<int32_t> block, offset;
    for (int64_t b = 0; b < p.batch; ++b) {
      const int32_t* table = tables.data() + b * per_sequence;
      for (int64_t j = 0; j < p.seqlen_k; ++j) {
        block.push_back(table[j / kKeyTile]);
        offset.push_back(static_cast<int32_t>(j % kKeyTile));
      }
      PagedSequence sequence;
      sequence.first_row = static_cast<int32_t>(b * p.seqlen_q);
      sequence.rows = static_cast<int32_t>(p.seqlen_q);
      sequence.first_position = static_cast<int32_t>(p.seqlen_k - p.seqlen_q);
      sequence.blocks = table;
      sequence.keys = static_cast<int32_t>(p.seqlen_k);
      sequences.push_back(sequence);
    }
    KvRows rows;
    rows.rows = static_cast<int64_t>(block.size());
    rows.k = c.f32("k").data();
    rows.k_row_stride = int64_t{p.kv_heads} * p.head_dim;
    rows.v = c.f32("v").data();
    rows.v_row_stride = int64_t{p.kv_heads} * p.v_head_dim;
    rows.block = block.data();
    rows.offset = offset.data();
    storage.append(context, 0, rows);
  }
  KvStorage storage;
  std::vector<int32_t> tables;
  std::vector<PagedSequence> sequences;
};

// How far a kernel may be from the right answer, as a part of max |v|. A score s is off by a few roundings of
// |s|, its weight by as much, and the output averages v with those weights. f32 rounds scores and weights to
// 2^-24, bf16 rounds q and the weights to 2^-9; 16 and 2 of them are allowed.
double tolerance(const GoldenCase& c, DType dtype) {
  const double roundings = 1 + test::max_magnitude(c.f32("lse"));
  return roundings * (dtype == DType::f32 ? 16.0 / (1 << 24) : 2.0 / (1 << 9));
}

void expect_agreement(DType dtype) {
  ThreadPool pool({.threads = 2});
  Context context(pool);
  const Golden golden = Golden::load("ops_attention");
  int run = 0;
  for (const GoldenCase& c : golden.cases()) {
    SCOPED_TRACE(c.name());
    const AttentionProblem p = problem_of(c, dtype);
    if (p.seqlen_q > p.seqlen_k) continue;  // rows before position 0: not in the engine's form
    ASSERT_TRUE(validate(p).ok()) << validate(p).message();
    Paged paged(context, c, p);
    const WorkPlan plan(paged.sequences, p, {.threads = 2});
    std::vector<float> o(c.f32("o").size(), std::nanf(""));
    paged_attention(context, p, paged.storage, 0, plan, c.f32("q").data(), int64_t{p.heads} * p.head_dim,
                    o.data(), int64_t{p.heads} * p.v_head_dim);
    const double limit = tolerance(c, dtype) * test::max_magnitude(c.f32("v"));
    const double difference = test::max_difference(o, c.f32("o"));
    EXPECT_TRUE(difference <= limit) << difference << " > " << limit << "\n" << plan.explain();
    ++run;
  }
  EXPECT_EQ(run, 16);
}

// Every case, with rows that see nothing and the log-sum-exp of each row.
TEST(AttentionGoldens, ContiguousTensorsAndLseAgreeWithPyTorch) {
  ThreadPool pool({.threads = 2});
  Context context(pool);
  const Golden golden = Golden::load("ops_attention");
  int64_t masked_rows = 0;
  for (const GoldenCase& c : golden.cases()) {
    SCOPED_TRACE(c.name());
    const AttentionProblem p = problem_of(c, DType::f32);
    std::vector<float> o(c.f32("o").size(), std::nanf("")), lse(c.f32("lse").size(), std::nanf(""));
    ForwardTensors tensors;
    tensors.q = contiguous<const void*>(c.f32("q").data(), p.seqlen_q, p.heads, p.head_dim);
    tensors.k = contiguous<const void*>(c.f32("k").data(), p.seqlen_k, p.kv_heads, p.head_dim);
    tensors.v = contiguous<const void*>(c.f32("v").data(), p.seqlen_k, p.kv_heads, p.v_head_dim);
    tensors.o = contiguous<void*>(o.data(), p.seqlen_q, p.heads, p.v_head_dim);
    tensors.lse = lse.data();
    const Status status = forward(context, p, tensors);
    ASSERT_TRUE(status.ok()) << status.message();
    const double limit = tolerance(c, DType::f32);
    const double off = test::max_difference(o, c.f32("o")), lse_off = test::max_difference(lse, c.f32("lse"));
    EXPECT_TRUE(off <= limit * test::max_magnitude(c.f32("v"))) << off;
    EXPECT_TRUE(lse_off <= limit) << lse_off;
    masked_rows += c.integer("masked_rows");
  }
  EXPECT_GT(masked_rows, 0);
}

TEST(AttentionGoldens, F32CacheAgreesWithPyTorch) {
  expect_agreement(DType::f32);
}
TEST(AttentionGoldens, Bf16CacheAgreesWithPyTorch) {
  expect_agreement(DType::bf16);
}

}  // namespace
}  // namespace tessera::attention
