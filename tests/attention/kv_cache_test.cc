// The packed cache's public face: what it holds, attention over block tables and shared prefixes, refusals.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "attention/reference/reference.h"
#include "core/context.h"
#include "tessera/paged.h"

namespace tessera::attention {
namespace {

constexpr uint32_t kSeed = 53;
constexpr int kHeads = 4, kKvHeads = 2, kDim = 24, kVDim = 16;

std::vector<float> random_floats(size_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

class KvCacheTest : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override { std::printf("seed: %u\n", kSeed); }

  static KvCache make(DType dtype, int blocks = 40, int layers = 1) {
    KvCacheOptions options;
    options.dtype = dtype;
    options.layers = layers;
    options.kv_heads = kKvHeads;
    options.head_dim = kDim;
    options.v_head_dim = kVDim;
    options.num_blocks = blocks;
    auto made = KvCache::create(options);
    EXPECT_TRUE(made.ok()) << made.status().message();
    return std::move(*made);
  }
  static AttentionProblem problem_of(DType dtype) {
    AttentionProblem p;
    p.heads = kHeads;
    p.kv_heads = kKvHeads;
    p.head_dim = kDim;
    p.v_head_dim = kVDim;
    p.dtype = dtype;
    p.scale = 1.0f / std::sqrt(static_cast<float>(kDim));
    return p;
  }
  template <typename Pointer>
  static Strided<Pointer> rows_view(Pointer data, int heads, int dim) {
    return {data, 0, int64_t{heads} * dim, dim};
  }
  CacheQuery query_of(const std::vector<float>& q, std::vector<float>& o) {
    CacheQuery query;
    query.q = rows_view<const void*>(q.data(), kHeads, kDim);
    query.o = rows_view<void*>(o.data(), kHeads, kVDim);
    return query;
  }

  ThreadPool pool{{.threads = 2}};
  Context context{pool};
  std::mt19937 random{kSeed};
};

INSTANTIATE_TEST_SUITE_P(Dtypes, KvCacheTest, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& info) { return std::string(name(info.param)); });

TEST_P(KvCacheTest, ChunksAndDecodeRowsTogetherHaveTheBitsOfTheDenseForward) {
  const DType dtype = GetParam();
  KvCache cache = make(dtype);
  const AttentionProblem p = problem_of(dtype);
  const int lengths[] = {700, 65, 130}, rows[] = {1, 1, 40};
  std::vector<int32_t> ids(40);
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), random);
  std::vector<std::vector<int32_t>> tables(3);
  std::vector<std::vector<float>> k(3), v(3), q(3);
  std::vector<CacheSequence> step;
  int64_t row = 0;
  for (size_t s = 0; s < 3; ++s) {
    for (int b = 0; b * 64 < lengths[s]; ++b) tables[s].push_back(ids.back()), ids.pop_back();
    k[s] = random_floats(size_t(lengths[s]) * kKvHeads * kDim, random);
    v[s] = random_floats(size_t(lengths[s]) * kKvHeads * kVDim, random);
    q[s] = random_floats(size_t(rows[s]) * kHeads * kDim, random);
    for (const auto& [first, end] : {std::pair{0, lengths[s] / 3}, {lengths[s] / 3, lengths[s]}}) {
      const CacheSequence piece[] = {{0, end - first, first, tables[s].data(), int64_t(tables[s].size())}};
      ASSERT_TRUE(cache
                      .append(context, 0, piece, DType::f32,
                              rows_view<const void*>(k[s].data() + first * kKvHeads * kDim, kKvHeads, kDim),
                              rows_view<const void*>(v[s].data() + first * kKvHeads * kVDim, kKvHeads, kVDim))
                      .ok());
    }
    step.push_back({row, rows[s], lengths[s] - rows[s], tables[s].data(), int64_t(tables[s].size())});
    row += rows[s];
  }
  std::vector<float> all_q, o(size_t(row) * kHeads * kVDim, NAN), lse(size_t(row) * kHeads, NAN);
  for (const auto& one : q) all_q.insert(all_q.end(), one.begin(), one.end());
  CacheQuery query = query_of(all_q, o);
  query.lse = lse.data();
  const Status status = tree_attention(context, p, cache, 0, step, query);
  ASSERT_TRUE(status.ok()) << status.message();

  for (size_t s = 0; s < 3; ++s) {
    AttentionProblem one = p;
    one.seqlen_q = rows[s];
    one.seqlen_k = lengths[s];
    // q in f32 over a bf16 cache has no dense form: there the reference judges.
    for (float& x : k[s]) x = dtype == DType::bf16 ? bf16_to_f32(f32_to_bf16(x)) : x;
    for (float& x : v[s]) x = dtype == DType::bf16 ? bf16_to_f32(f32_to_bf16(x)) : x;
    const size_t first = size_t(step[s].first_row) * kHeads * kVDim;
    if (dtype == DType::f32) {
      std::vector<float> want(size_t(rows[s]) * kHeads * kVDim), want_lse(size_t(rows[s]) * kHeads);
      ASSERT_TRUE(forward(context, one,
                          {contiguous<const void*>(q[s].data(), rows[s], kHeads, kDim),
                           contiguous<const void*>(k[s].data(), lengths[s], kKvHeads, kDim),
                           contiguous<const void*>(v[s].data(), lengths[s], kKvHeads, kVDim),
                           contiguous<void*>(want.data(), rows[s], kHeads, kVDim), want_lse.data()})
                      .ok());
      EXPECT_EQ(std::memcmp(want.data(), o.data() + first, want.size() * 4), 0) << s;
      for (size_t h = 0; h < kHeads; ++h) {
        for (size_t r = 0; r < size_t(rows[s]); ++r)
          EXPECT_EQ(want_lse[h * size_t(rows[s]) + r], lse[h * size_t(row) + size_t(step[s].first_row) + r]);
      }
      continue;
    }
    std::vector<double> want(size_t(rows[s]) * kHeads * kVDim);
    reference::attention(one, {q[s].data(), 0, kHeads * kDim, kDim}, {k[s].data(), 0, kKvHeads * kDim, kDim},
                         {v[s].data(), 0, kKvHeads * kVDim, kVDim}, want.data(), nullptr);
    for (size_t i = 0; i < want.size(); ++i)
      ASSERT_TRUE(std::abs(o[first + i] - want[i]) <= 12 * 0x1p-9) << o[first + i] << " for " << want[i];
  }
}

TEST_P(KvCacheTest, SharedBlocksAreReadOnceAndChangeNoBit) {
  const DType dtype = GetParam();
  KvCache cache = make(dtype);
  const AttentionProblem p = problem_of(dtype);
  // Sequences 0 to 4 share 4 blocks, 0 and 1 two more; each has one of its own; 5 shares nothing.
  std::vector<std::vector<int32_t>> tables;
  for (int s = 0; s < 5; ++s) tables.push_back({0, 1, 2, 3});
  tables[0].insert(tables[0].end(), {4, 5});
  tables[1].insert(tables[1].end(), {4, 5});
  tables.push_back({20, 21, 22});
  for (int32_t s = 0; s < 6; ++s) tables[size_t(s)].push_back(30 + s);
  std::vector<CacheSequence> step;
  for (int32_t block = 0; block < 40; ++block) {
    const auto k = random_floats(64 * kKvHeads * kDim, random),
               v = random_floats(64 * kKvHeads * kVDim, random);
    const CacheSequence whole[] = {{0, 64, 0, &block, 1}};
    ASSERT_TRUE(cache
                    .append(context, 0, whole, DType::f32, rows_view<const void*>(k.data(), kKvHeads, kDim),
                            rows_view<const void*>(v.data(), kKvHeads, kVDim))
                    .ok());
  }
  for (size_t s = 0; s < 6; ++s)
    step.push_back(
        {int64_t(s), 1, int64_t(tables[s].size()) * 64 - 7, tables[s].data(), int64_t(tables[s].size())});
  const auto q = random_floats(6 * kHeads * kDim, random);
  std::vector<float> shared_o(6 * kHeads * kVDim, NAN), own_o = shared_o;
  const auto shared = CachePlan::create(context, cache, p, step);
  const auto own = CachePlan::create(context, cache, p, step, {.share = false});
  ASSERT_TRUE(shared.ok() && own.ok());
  ASSERT_TRUE(shared->attend(context, cache, 0, query_of(q, shared_o)).ok());
  ASSERT_TRUE(own->attend(context, cache, 0, query_of(q, own_o)).ok());
  EXPECT_EQ(std::memcmp(shared_o.data(), own_o.data(), own_o.size() * 4), 0);
  const uint64_t each = 7 + 7 + 5 + 5 + 5 + 4;
  EXPECT_EQ(own->reads().tiles, each * kKvHeads);
  EXPECT_EQ(shared->reads().unshared, each * kKvHeads);
  EXPECT_EQ(shared->reads().tiles, (each - 4 * 4 - 2) * kKvHeads);
  EXPECT_EQ(shared->reads().shared_tiles, 6u * kKvHeads);
  EXPECT_NE(shared->explain().find("sequences stacked"), std::string::npos);
  for (const int threads : {1, 3}) {
    ThreadPool other_pool({.threads = threads});
    Context other(other_pool);
    std::vector<float> o(own_o.size(), NAN);
    ASSERT_TRUE(tree_attention(other, p, cache, 0, step, query_of(q, o)).ok());
    EXPECT_EQ(std::memcmp(o.data(), own_o.data(), o.size() * 4), 0) << threads << " threads";
  }
}

TEST_P(KvCacheTest, RotatesWhatItAppendsAndWhatAsks) {
  const DType dtype = GetParam();
  KvCache rotating = make(dtype), plain = make(dtype);
  RopeConfig config;
  config.rotary_dim = 16;
  const auto rope = RopeTable::create(config, 100);
  ASSERT_TRUE(rope.ok());
  const Rotary turn = rotary(*rope);
  const int32_t table[] = {7, 3};
  const CacheSequence sequence[] = {{0, 90, 0, table, 2}};
  auto k = random_floats(90 * kKvHeads * kDim, random), q = random_floats(90 * kHeads * kDim, random);
  const auto v = random_floats(90 * kKvHeads * kVDim, random);
  const auto v_view = rows_view<const void*>(v.data(), kKvHeads, kVDim);
  std::vector<float> o(90 * kHeads * kVDim), want = o;
  ASSERT_TRUE(rotating
                  .append(context, 0, sequence, DType::f32, rows_view<const void*>(k.data(), kKvHeads, kDim),
                          v_view, &turn)
                  .ok());
  CacheQuery query = query_of(q, o);
  query.rotary = &turn;
  ASSERT_TRUE(tree_attention(context, problem_of(dtype), rotating, 0, sequence, query).ok());

  const auto rotate = [&](std::vector<float>& x, int heads) {
    RopeProblem p;
    p.seqlen = 90;
    p.heads = heads;
    p.head_dim = kDim;
    p.rotary = turn;
    ASSERT_TRUE(rope_forward(context, p, contiguous<const void*>(x.data(), 90, heads, kDim),
                             contiguous<void*>(x.data(), 90, heads, kDim))
                    .ok());
  };
  rotate(k, kKvHeads);
  rotate(q, kHeads);
  ASSERT_TRUE(
      plain.append(context, 0, sequence, DType::f32, rows_view<const void*>(k.data(), kKvHeads, kDim), v_view)
          .ok());
  ASSERT_TRUE(tree_attention(context, problem_of(dtype), plain, 0, sequence, query_of(q, want)).ok());
  EXPECT_EQ(std::memcmp(o.data(), want.data(), o.size() * 4), 0);
}

TEST_P(KvCacheTest, TakesRowsOfEveryDtype) {
  const DType dtype = GetParam();
  const int32_t table[] = {0};
  const CacheSequence sequence[] = {{0, 20, 0, table, 1}};
  for (const DType rows : {DType::f16, DType::bf16}) {
    const auto narrow = [&](const std::vector<float>& x) {
      std::vector<uint16_t> out;
      for (const float value : x) out.push_back(rows == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value));
      return out;
    };
    const auto widen = [&](const std::vector<uint16_t>& x) {
      std::vector<float> out;
      for (const uint16_t value : x)
        out.push_back(rows == DType::f16 ? f16_to_f32(value) : bf16_to_f32(value));
      return out;
    };
    const auto k = narrow(random_floats(20 * kKvHeads * kDim, random)),
               v = narrow(random_floats(20 * kKvHeads * kVDim, random)),
               q = narrow(random_floats(20 * kHeads * kDim, random));
    KvCache a = make(dtype), b = make(dtype);
    ASSERT_TRUE(a.append(context, 0, sequence, rows, rows_view<const void*>(k.data(), kKvHeads, kDim),
                         rows_view<const void*>(v.data(), kKvHeads, kVDim))
                    .ok());
    const auto wide_k = widen(k), wide_v = widen(v), wide_q = widen(q);
    ASSERT_TRUE(b.append(context, 0, sequence, DType::f32,
                         rows_view<const void*>(wide_k.data(), kKvHeads, kDim),
                         rows_view<const void*>(wide_v.data(), kKvHeads, kVDim))
                    .ok());
    std::vector<float> want(20 * kHeads * kVDim);
    std::vector<uint16_t> o(want.size());
    ASSERT_TRUE(tree_attention(context, problem_of(dtype), b, 0, sequence, query_of(wide_q, want)).ok());
    CacheQuery query;
    query.dtype = rows;
    query.q = rows_view<const void*>(q.data(), kHeads, kDim);
    query.o = rows_view<void*>(o.data(), kHeads, kVDim);
    ASSERT_TRUE(tree_attention(context, problem_of(dtype), a, 0, sequence, query).ok());
    EXPECT_EQ(o, narrow(want));
  }
}

TEST_F(KvCacheTest, CopiesRowsInEveryLayer) {
  KvCache cache = make(DType::f32, 4, 2);
  const int32_t table[] = {1};
  const CacheSequence sequence[] = {{0, 30, 0, table, 1}};
  for (int layer = 0; layer < 2; ++layer) {
    const auto k = random_floats(30 * kKvHeads * kDim, random),
               v = random_floats(30 * kKvHeads * kVDim, random);
    ASSERT_TRUE(cache
                    .append(context, layer, sequence, DType::f32,
                            rows_view<const void*>(k.data(), kKvHeads, kDim),
                            rows_view<const void*>(v.data(), kKvHeads, kVDim))
                    .ok());
  }
  ASSERT_TRUE(cache.copy_rows(1, 2, 3, 20).ok());
  for (int layer = 0; layer < 2; ++layer) {
    std::vector<float> k(30 * kDim), v(30 * kVDim), k_copy = k, v_copy = v;
    ASSERT_TRUE(cache.read(layer, 1, 1, 0, 30, k.data(), v.data()).ok());
    ASSERT_TRUE(cache.read(layer, 2, 1, 0, 30, k_copy.data(), v_copy.data()).ok());
    for (int slot = 0; slot < 30; ++slot) {
      for (int d = 0; d < kDim; ++d)
        EXPECT_EQ(k_copy[size_t(slot * kDim + d)],
                  slot >= 3 && slot < 23 ? k[size_t(slot * kDim + d)] : 0.0f);
    }
  }
}

TEST_F(KvCacheTest, NamesWhatItRefuses) {
  KvCache cache = make(DType::bf16, 4);
  const int32_t table[] = {0, 1}, bad[] = {0, 4}, negative[] = {-1, 0}, same[] = {1, 1};
  const float zeros[200 * kHeads * kDim] = {};
  std::vector<float> o(200 * kHeads * kVDim);
  const auto view = rows_view<const void*>(zeros, kKvHeads, kDim);
  const auto append = [&](const CacheSequence& s, int layer = 0, const void* data = "x") {
    const CacheSequence one[] = {s};
    auto k = view;
    if (data == nullptr) k.data = nullptr;
    return cache.append(context, layer, one, DType::f32, k, view).field();
  };
  EXPECT_EQ(append({0, 10, 60, table, 2}), "");
  EXPECT_EQ(append({0, 10, 60, bad, 2}), "blocks");
  EXPECT_EQ(append({0, 10, 0, negative, 2}), "blocks");
  EXPECT_EQ(append({0, 70, 0, same, 2}), "blocks") << "two rows, one slot";
  EXPECT_EQ(append({0, 10, 120, table, 2}), "num_blocks");
  EXPECT_EQ(append({0, 10, -1, table, 2}), "first_position");
  EXPECT_EQ(append({0, -1, 0, table, 2}), "rows");
  EXPECT_EQ(append({-1, 1, 0, table, 2}), "first_row");
  EXPECT_EQ(append({0, 1, 0, nullptr, 2}), "blocks");
  EXPECT_EQ(append({0, 1, 0, table, 2}, 1), "layer");
  EXPECT_EQ(append({0, 1, 0, table, 2}, 0, nullptr), "k");
  RopeConfig config;
  config.rotary_dim = 8;
  const auto rope = RopeTable::create(config, 64);
  const Rotary turn = rotary(*rope);
  const CacheSequence beyond[] = {{0, 10, 60, table, 2}};
  EXPECT_EQ(cache.append(context, 0, beyond, DType::f32, view, view, &turn).field(), "rotary.positions");
  EXPECT_EQ(cache.append(context, 0, beyond, DType::i8, view, view).field(), "dtype");

  const auto plan = [&](auto&& change, std::vector<CacheSequence> sequences) {
    AttentionProblem p = problem_of(DType::bf16);
    change(p);
    return CachePlan::create(context, cache, p, sequences).status().field();
  };
  const auto none = [](AttentionProblem&) {};
  const std::vector<CacheSequence> good = {{0, 1, 69, table, 2}};
  EXPECT_EQ(plan(none, good), "");
  EXPECT_EQ(plan(none, {{0, 1, 69, bad, 2}}), "blocks");
  EXPECT_EQ(plan([](AttentionProblem& p) { p.mask.window_left = 3; }, {{0, 1, 69, negative, 2}}), "");
  EXPECT_EQ(plan([](AttentionProblem& p) { p.mask.window_left = 10; }, {{0, 1, 69, negative, 2}}), "blocks");
  EXPECT_EQ(plan(none, {{0, 3, 60, table, 2}, {2, 1, 0, table, 2}}), "first_row");
  EXPECT_EQ(plan([](AttentionProblem& p) { p.dtype = DType::f32; }, good), "dtype");
  EXPECT_EQ(plan([](AttentionProblem& p) { p.head_dim = 32; }, good), "head_dim");
  EXPECT_EQ(plan([](AttentionProblem& p) { p.kv_heads = 1; }, good), "kv_heads");
  EXPECT_EQ(plan([](AttentionProblem& p) { p.dropout.p = 0.1f; }, good), "dropout");
  EXPECT_EQ(plan([](AttentionProblem& p) { p.mask.ancestors.tree_keys = 2; }, good), "mask");
  EXPECT_EQ(plan([](AttentionProblem& p) { p.softcap = -1; }, good), "softcap");
  EXPECT_EQ(plan([&](AttentionProblem& p) { p.leftpad_k = table; }, good), "cu_seqlens_q");
  EXPECT_EQ(plan([](AttentionProblem& p) { p.alibi_batch_stride = 4; }, good), "alibi_batch_stride");

  const auto made = CachePlan::create(context, cache, problem_of(DType::bf16), good);
  CacheQuery query;
  EXPECT_EQ(made->attend(context, cache, 0, query).field(), "q");
  query.q = rows_view<const void*>(zeros, kHeads, kDim);
  EXPECT_EQ(made->attend(context, cache, 0, query).field(), "o");
  query.o = rows_view<void*>(o.data(), kHeads, kVDim);
  EXPECT_EQ(made->attend(context, cache, 0, query).field(), "");
  EXPECT_EQ(made->attend(context, cache, 2, query).field(), "layer");
  EXPECT_EQ(made->attend(context, make(DType::f32), 0, query).field(), "cache");
  query.rotary = &turn;
  EXPECT_EQ(made->attend(context, cache, 0, query).field(), "rotary.positions");
  KvCacheOptions options = cache.options();
  options.dtype = DType::f16;
  EXPECT_EQ(KvCache::create(options).status().field(), "kv_cache_dtype");
  EXPECT_EQ(cache.copy_rows(0, 4, 0, 1).field(), "destination");
  EXPECT_EQ(cache.copy_rows(0, 1, 60, 5).field(), "count");
  EXPECT_EQ(cache.read(0, 0, 2, 0, 1, o.data(), o.data()).field(), "kv_head");
  EXPECT_TRUE(tree_attention(context, problem_of(DType::bf16), cache, 0, {}, {}).ok()) << "an empty step";
}

}  // namespace
}  // namespace tessera::attention
