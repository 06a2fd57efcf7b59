// attend_cache over rows that kernels read where they lie: the bits of the same rows packed into tiles first
// (as rows in blocks of an odd size are), and nothing read that no row sees.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "core/context.h"
#include "tessera/paged.h"

namespace tessera::attention {
namespace {

constexpr uint32_t kSeed = 11;
constexpr int64_t kOddBlock = 33;

struct Case {
  int heads, kv_heads, head_dim, v_head_dim;
  int64_t seqlen_q;
};

// Caches of three sequences, elements NaN where no sequence has a key.
class Rows {
 public:
  Rows(DType dtype, const Case& c, bool heads_outside) : dtype_(dtype), c_(c), outside_(heads_outside) {
    const int64_t n = kBatch * kCapacity * c.kv_heads;
    k_ = elements(n * c.head_dim);
    v_ = elements(n * c.v_head_dim);
    q_ = elements(kBatch * c.seqlen_q * c.heads * c.head_dim);
    for (int64_t b = 0; b < kBatch; ++b) {
      for (int64_t key = kKeys[b]; key < kCapacity; ++key) poison(b, key);
    }
  }
  void poison(int64_t b, int64_t key) {
    for (int64_t h = 0; h < c_.kv_heads; ++h) {
      std::memset(k_.data() + at(b, key, h, c_.head_dim), 0xff, size_t(c_.head_dim * bytes()));
      std::memset(v_.data() + at(b, key, h, c_.v_head_dim), 0xff, size_t(c_.v_head_dim * bytes()));
    }
  }

  // The output's bytes, read in place or from a copy in odd blocks.
  std::vector<char> attend(Context& context, const AttentionProblem& features, bool odd) {
    AttentionProblem p = features;
    p.batch = kBatch;
    p.seqlen_q = c_.seqlen_q;
    p.heads = c_.heads;
    p.kv_heads = c_.kv_heads;
    p.head_dim = c_.head_dim;
    p.v_head_dim = c_.v_head_dim;
    p.dtype = dtype_;
    p.scale = 1.0f / std::sqrt(float(c_.head_dim));
    CacheView cache;
    cache.seqlens = kKeys;
    std::vector<char> k, v;
    std::vector<int32_t> table;
    if (odd) {
      const int64_t per = (kCapacity + kOddBlock - 1) / kOddBlock;
      cache.block_size = kOddBlock;
      cache.num_blocks = per * kBatch;
      cache.max_blocks = per;
      for (int64_t i = 0; i < cache.num_blocks; ++i) table.push_back(int32_t(cache.num_blocks - 1 - i));
      cache.block_table = table.data();
      k = copy(k_, c_.head_dim, cache, table);
      v = copy(v_, c_.v_head_dim, cache, table);
      cache.k = {k.data(), kOddBlock * c_.kv_heads * c_.head_dim, c_.kv_heads * c_.head_dim, c_.head_dim};
      cache.v = {v.data(), kOddBlock * c_.kv_heads * c_.v_head_dim, c_.kv_heads * c_.v_head_dim,
                 c_.v_head_dim};
    } else {
      cache.block_size = kCapacity;
      cache.num_blocks = kBatch;
      cache.k = view(k_, c_.head_dim);
      cache.v = view(v_, c_.v_head_dim);
    }
    std::vector<char> o(size_t(kBatch * c_.seqlen_q * c_.heads * c_.v_head_dim * bytes()), char(0xff));
    const int64_t q_row = int64_t{c_.heads} * c_.head_dim, o_row = int64_t{c_.heads} * c_.v_head_dim;
    const CacheTensors t = {{q_.data(), c_.seqlen_q * q_row, q_row, c_.head_dim},
                            {o.data(), c_.seqlen_q * o_row, o_row, c_.v_head_dim},
                            nullptr};
    const Status status = attend_cache(context, p, cache, {}, t);
    EXPECT_TRUE(status.ok()) << status.message();
    return o;
  }

  static constexpr int64_t kBatch = 3, kCapacity = 704;
  static constexpr int32_t kKeys[kBatch] = {640, 301, 64};

 private:
  int64_t bytes() const { return dtype_ == DType::f32 ? 4 : 2; }
  int64_t at(int64_t b, int64_t key, int64_t h, int64_t dim) const {
    const int64_t row =
        outside_ ? (b * c_.kv_heads + h) * kCapacity + key : (b * kCapacity + key) * c_.kv_heads + h;
    return row * dim * bytes();
  }
  Strided<void*> view(std::vector<char>& x, int64_t dim) const {
    const int64_t all = kCapacity * c_.kv_heads * dim;
    return outside_ ? Strided<void*>{x.data(), all, dim, kCapacity * dim}
                    : Strided<void*>{x.data(), all, c_.kv_heads * dim, dim};
  }
  std::vector<char> elements(int64_t count) {
    std::vector<char> x(size_t(count * bytes()));
    for (int64_t i = 0; i < count; ++i) {
      const float value = normal_(random_);
      const uint16_t half = dtype_ == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
      std::memcpy(x.data() + i * bytes(), dtype_ == DType::f32 ? static_cast<const void*>(&value) : &half,
                  size_t(bytes()));
    }
    return x;
  }
  std::vector<char> copy(const std::vector<char>& x, int64_t dim, const CacheView& cache,
                         const std::vector<int32_t>& table) const {
    std::vector<char> out(size_t(cache.num_blocks * kOddBlock * c_.kv_heads * dim * bytes()), char(0xff));
    for (int64_t b = 0; b < kBatch; ++b) {
      for (int64_t key = 0; key < kKeys[b]; ++key) {
        const int64_t block = table[size_t(b * cache.max_blocks + key / kOddBlock)];
        for (int64_t h = 0; h < c_.kv_heads; ++h) {
          std::memcpy(out.data() + ((block * kOddBlock + key % kOddBlock) * c_.kv_heads + h) * dim * bytes(),
                      x.data() + at(b, key, h, dim), size_t(dim * bytes()));
        }
      }
    }
    return out;
  }

  DType dtype_;
  Case c_;
  bool outside_;
  std::mt19937 random_{kSeed};
  std::normal_distribution<float> normal_;
  std::vector<char> k_, v_, q_;
};

class RowsInPlace : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override { std::printf("seed: %u\n", kSeed); }
};

INSTANTIATE_TEST_SUITE_P(Dtypes, RowsInPlace, ::testing::Values(DType::f32, DType::f16, DType::bf16));

TEST_P(RowsInPlace, HaveTheBitsOfPackedTiles) {
  ThreadPool one_pool({.threads = 1}), three_pool({.threads = 3});
  Context one(one_pool), three(three_pool);
  // One to twelve rows a kv head, several heads and one, wide rows that come near twice, odd counts of
  // vectors.
  const Case cases[] = {{1, 1, 16, 16, 1}, {6, 3, 64, 64, 1},   {9, 3, 64, 48, 1},   {8, 2, 128, 128, 1},
                        {5, 1, 8, 80, 1},  {6, 1, 40, 16, 1},   {24, 8, 128, 64, 1}, {7, 1, 64, 64, 1},
                        {6, 3, 24, 32, 2}, {12, 3, 64, 112, 3}, {4, 4, 256, 256, 1}};
  for (const Case& c : cases) {
    for (const bool heads_outside : {false, true}) {
      Rows rows(GetParam(), c, heads_outside);
      const AttentionProblem plain;
      const std::vector<char> packed = rows.attend(one, plain, true);
      EXPECT_EQ(rows.attend(one, plain, false), packed)
          << c.heads << " heads, " << c.kv_heads << " kv heads, dims " << c.head_dim << " and "
          << c.v_head_dim << ", rows " << c.seqlen_q << (heads_outside ? ", heads outside" : "");
      EXPECT_EQ(rows.attend(three, plain, false), packed);
    }
  }
}

TEST_P(RowsInPlace, HaveThemWithEveryFeature) {
  ThreadPool pool({.threads = 2});
  Context context(pool);
  const float slopes[] = {0.5f, 0.25f, 0.125f, 0.0625f, 0.7f, 0.01f};
  const int32_t leftpad[] = {70, 3, 0};
  for (const int64_t seqlen_q : {1, 3}) {
    Rows rows(GetParam(), {6, 2, 64, 64, seqlen_q}, false);
    const auto check = [&](const AttentionProblem& p, const char* what) {
      EXPECT_EQ(rows.attend(context, p, false), rows.attend(context, p, true)) << what << ", " << seqlen_q;
    };
    AttentionProblem p;
    p.mask.causal = true;
    check(p, "causal");
    p.softcap = 5.0f;
    p.alibi_slopes = slopes;
    check(p, "causal, softcap, ALiBi");
    p = {};
    p.mask.window_left = 200;
    p.mask.window_right = 3;
    check(p, "window");
    p = {};
    p.leftpad_k = leftpad;
    for (int64_t key = 0; key < leftpad[0]; ++key) rows.poison(0, key);
    check(p, "leftpad");
  }
}

// Every key that is not there or that leftpad hides is NaN: one that is read would show.
TEST_P(RowsInPlace, ReadNothingThatNoRowSees) {
  ThreadPool pool({.threads = 2});
  Context context(pool);
  const int32_t leftpad[] = {129, 0, 63};
  Rows rows(GetParam(), {8, 2, 64, 64, 2}, false);
  for (int64_t b = 0; b < Rows::kBatch; ++b) {
    for (int64_t key = 0; key < leftpad[b]; ++key) rows.poison(b, key);
  }
  AttentionProblem p;
  p.mask.causal = true;
  p.leftpad_k = leftpad;
  const std::vector<char> o = rows.attend(context, p, false);
  const int64_t bytes = GetParam() == DType::f32 ? 4 : 2;
  for (size_t i = 0; i < o.size(); i += size_t(bytes)) {
    float value;
    uint16_t half;
    std::memcpy(&value, o.data() + i, sizeof value * (bytes == 4));
    std::memcpy(&half, o.data() + i, sizeof half);
    if (bytes == 2) value = GetParam() == DType::f16 ? f16_to_f32(half) : bf16_to_f32(half);
    ASSERT_TRUE(std::isfinite(value)) << "element " << i / size_t(bytes);
  }
}

}  // namespace
}  // namespace tessera::attention
