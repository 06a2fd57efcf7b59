// What must hold of forward whatever the numbers are: bits against threads, batches and schedules, parts that
// merge to the whole, keys in another order, masks against keys left out, dropout's share.
#include <algorithm>
#include <numeric>

#include "tessera/merge.h"
#include "tests/attention/dense_fixture.h"

namespace tessera::attention {
namespace {

constexpr uint32_t kSeed = 99173;

class PropertiesTest : public ::testing::TestWithParam<DType> {
 protected:
  ThreadPool one{ThreadPoolOptions{.threads = 1}}, two{ThreadPoolOptions{.threads = 2}},
      three{ThreadPoolOptions{.threads = 3}};
  Context contexts[3] = {Context(one), Context(two), Context(three)};

  // Relative to values of about 1.
  double rounding() const { return GetParam() == DType::f32 ? 4e-6 : GetParam() == DType::f16 ? 2e-3 : 2e-2; }
  // o and lse of a run; the tensors are cleared before.
  struct Result {
    std::vector<char> o;
    std::vector<float> lse;
    bool operator==(const Result& other) const {
      return o == other.o && std::memcmp(lse.data(), other.lse.data(), lse.size() * sizeof(float)) == 0;
    }
  };
  Result run(DenseCase& c, Context& context, const Tuning& tuning = {}) {
    c.o = DenseTensor(c.p.dtype, c.batches(), c.all_rows(), c.p.heads, c.p.v_head_dim, c.gap);
    std::fill(c.lse.begin(), c.lse.end(), 7.0f);
    const Status status = c.run(context, tuning);
    EXPECT_TRUE(status.ok()) << status.message();
    return {c.o.bytes(), c.lse};
  }
  void expect_near(const std::vector<float>& a, const std::vector<float>& b, double limit) {
    ASSERT_EQ(a.size(), b.size());
    double worst = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      if (a[i] == b[i]) continue;  // also both -inf
      if (!(std::abs(a[i] - b[i]) <= worst)) worst = std::abs(a[i] - b[i]);
    }
    EXPECT_TRUE(worst <= limit) << worst;
  }
};

// Every feature at once, long enough for segments and few enough rows that the plan splits them over threads.
TEST_P(PropertiesTest, ThreadsAndSchedulesKeepTheBits) {
  for (const int64_t rows : {3, 90}) {
    for (const bool everything : {false, true}) {
      DenseCase c(GetParam(), 2, rows, 1300, 2, 16, kSeed);
      c.add(Feature::causal);
      if (everything) {
        for (const Feature feature : {Feature::grouped, Feature::boolean_mask, Feature::alibi,
                                      Feature::leftpad, Feature::dropout, Feature::gaps}) {
          c.add(feature);
        }
      }
      c.fill();
      const Result want = run(c, contexts[0]);
      for (Context& context : contexts) {
        EXPECT_TRUE(run(c, context) == want) << context.pool.size() << " threads";
        EXPECT_TRUE(run(c, context, {Schedule::fa1}) == want) << "fa1, " << context.pool.size() << " threads";
      }
    }
  }
}

TEST_P(PropertiesTest, AnyBatchKeepsTheBitsOfItsSequences) {
  DenseCase all(GetParam(), 4, 70, 600, 2, 24, kSeed);
  for (const Feature feature : {Feature::causal, Feature::varlen, Feature::alibi, Feature::softcap})
    all.add(feature);
  all.fill();
  run(all, contexts[1]);
  for (int64_t b = 0; b < all.p.batch; ++b) {
    const reference::Extent e = reference::extent(all.p, b);
    if (e.rows == 0) continue;
    AttentionProblem alone = all.p;
    alone.batch = 1;
    alone.seqlen_q = e.rows;
    alone.seqlen_k = e.length;
    alone.cu_seqlens_q = alone.cu_seqlens_k = nullptr;
    ForwardTensors t = all.tensors();
    const auto move = [&](auto& tensor, int64_t rows) {
      using Byte =
          std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(tensor.data)>>, const char, char>;
      tensor.data =
          static_cast<Byte*>(tensor.data) + rows * tensor.row_stride * info(alone.dtype).block_bytes;
    };
    move(t.q, e.first_row);
    move(t.k, e.first_key);
    move(t.v, e.first_key);
    DenseTensor o(alone.dtype, 1, e.rows, alone.heads, alone.v_head_dim, 0);
    std::vector<float> lse(static_cast<size_t>(alone.heads * e.rows));
    t.o = o.view();
    t.lse = lse.data();
    ASSERT_TRUE(forward(contexts[0], alone, t).ok());
    for (int64_t h = 0; h < alone.heads; ++h) {
      for (int64_t row = 0; row < e.rows; ++row) {
        ASSERT_EQ(lse[static_cast<size_t>(h * e.rows + row)],
                  all.lse[static_cast<size_t>(h * all.all_rows() + e.first_row + row)]);
        for (int64_t d = 0; d < alone.v_head_dim; ++d) {
          ASSERT_EQ(o.at(0, row, h, d), all.o.at(0, e.first_row + row, h, d)) << "sequence " << b;
        }
      }
    }
  }
}

TEST_P(PropertiesTest, PartsOfTheKeysMergeToTheWhole) {
  std::mt19937 random(kSeed);
  for (int round = 0; round < 6; ++round) {
    SCOPED_TRACE("seed " + std::to_string(kSeed) + ", round " + std::to_string(round));
    DenseCase c(GetParam(), 1, 9, 700, 2, 32, kSeed + uint32_t(round));
    if (round % 2 == 1) c.add(Feature::boolean_mask);
    c.fill(2.0f);
    run(c, contexts[1]);
    const std::vector<float> whole = c.o.values(), whole_lse = c.lse;
    const int64_t cut = 1 + static_cast<int64_t>(random() % 699);
    std::vector<float> o[2], lse[2];
    for (int part = 0; part < 2; ++part) {
      AttentionProblem p = c.p;
      p.seqlen_k = part == 0 ? cut : 700 - cut;
      const int64_t skip = part == 0 ? 0 : cut, element = info(p.dtype).block_bytes;
      ForwardTensors t = c.tensors();
      t.k.data = static_cast<const char*>(t.k.data) + skip * t.k.row_stride * element;
      t.v.data = static_cast<const char*>(t.v.data) + skip * t.v.row_stride * element;
      if (p.mask.tensor.kind == MaskKind::boolean) {
        p.mask.tensor.data =
            static_cast<const uint8_t*>(p.mask.tensor.data) + skip * p.mask.tensor.key_stride;
      }
      ASSERT_TRUE(forward(contexts[1], p, t).ok());
      o[part] = c.o.values();
      lse[part] = c.lse;
    }
    MergeProblem merge;
    merge.seqlen = 9;
    merge.heads = 2;
    merge.head_dim = 32;
    std::vector<float> merged(whole.size()), merged_lse(whole_lse.size());
    const auto part = [&](int i) {
      return AttentionPart{contiguous<const void*>(o[i].data(), 9, 2, 32),
                           contiguous_lse<const float*>(lse[i].data(), 9, 2)};
    };
    ASSERT_TRUE(merge_states(contexts[0], merge, part(0), part(1), contiguous<void*>(merged.data(), 9, 2, 32),
                             contiguous_lse<float*>(merged_lse.data(), 9, 2))
                    .ok());
    expect_near(merged_lse, whole_lse, rounding());
    expect_near(merged, whole, rounding());
  }
}

TEST_P(PropertiesTest, KeysInAnyOrderGiveTheSameWithinRounding) {
  DenseCase c(GetParam(), 1, 20, 300, 2, 32, kSeed);
  c.fill();
  run(c, contexts[1]);
  const std::vector<float> want = c.o.values();
  std::vector<int64_t> order(300);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), c.random);
  const DenseTensor k = c.k, v = c.v;
  for (int64_t key = 0; key < 300; ++key) {
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t d = 0; d < 32; ++d) {
        c.k.set(0, key, h, d, k.at(0, order[static_cast<size_t>(key)], h, d));
        c.v.set(0, key, h, d, v.at(0, order[static_cast<size_t>(key)], h, d));
      }
    }
  }
  run(c, contexts[1]);
  expect_near(c.o.values(), want, rounding());
}

TEST_P(PropertiesTest, AMaskEqualsDeletingTheKeys) {
  DenseCase c(GetParam(), 1, 20, 200, 2, 32, kSeed);
  std::vector<uint8_t> seen(200);
  for (uint8_t& one : seen) one = c.below(3) != 0;
  c.p.mask.tensor = {MaskKind::boolean, DType::f32, seen.data(), 0, 0, 0, 1};
  c.fill();
  run(c, contexts[1]);
  const std::vector<float> want = c.o.values();
  int64_t kept = 0;
  for (int64_t key = 0; key < 200; ++key) {
    if (seen[static_cast<size_t>(key)] == 0) continue;
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t d = 0; d < 32; ++d) {
        c.k.set(0, kept, h, d, c.k.at(0, key, h, d));
        c.v.set(0, kept, h, d, c.v.at(0, key, h, d));
      }
    }
    ++kept;
  }
  c.p.mask.tensor = {};
  c.p.seqlen_k = kept;
  run(c, contexts[1]);
  expect_near(c.o.values(), want, rounding());
}

// With v = 1 a row's o is the share of its weight that was kept, scaled: its mean over rows is 1.
TEST_P(PropertiesTest, DropoutKeepsItsShare) {
  DenseCase c(GetParam(), 1, 300, 256, 2, 16, kSeed);
  c.add(Feature::dropout);
  c.fill(1e-30f);  // equal weights
  for (int64_t key = 0; key < 256; ++key) {
    for (int64_t h = 0; h < 2; ++h) c.v.set_row(0, key, h, 1.0f);
  }
  const Result dropped = run(c, contexts[1]);
  double sum = 0;
  for (const float value : c.o.values()) sum += value;
  // 300 x 2 x 256 draws of which 4/5 are kept: deviation 1.3e-3.
  EXPECT_NEAR(sum / (300 * 2 * 16), 1.0, 6e-3);
  // The LSE is of the whole row.
  for (const float value : c.lse) EXPECT_NEAR(value, std::log(256.0), 1e-3);
  c.p.dropout.seed += 1;
  EXPECT_FALSE(run(c, contexts[1]) == dropped);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, PropertiesTest, ::testing::Values(DType::f32, DType::f16, DType::bf16),
                         [](const auto& info) { return std::string(name(info.param)); });

}  // namespace
}  // namespace tessera::attention
