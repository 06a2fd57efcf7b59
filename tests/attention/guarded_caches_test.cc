// Caches, rotary embedding and merging between pages that may not be touched: nothing outside the tensors is
// read or written.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>

#include "core/context.h"
#include "tessera/merge.h"
#include "tessera/paged.h"
#include "tests/attention/guarded.h"

namespace tessera::attention {
namespace {

constexpr uint32_t kSeed = 83;

class GuardedCaches : public ::testing::TestWithParam<std::tuple<DType, bool>> {
 protected:
  void SetUp() override { std::printf("seed: %u\n", kSeed); }

  char* bytes(size_t count) {
    held_.push_back(std::make_unique<Guarded>(count, std::get<1>(GetParam())));
    return held_.back()->data();
  }
  // Random elements of the dtype.
  char* tensor(DType dtype, int64_t count) {
    std::normal_distribution<float> normal;
    char* to = bytes(size_t(count) * (dtype == DType::f32 ? 4 : 2));
    for (int64_t i = 0; i < count; ++i) {
      const float value = normal(random_);
      const uint16_t half = dtype == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
      if (dtype == DType::f32) {
        std::memcpy(to + i * 4, &value, 4);
      } else {
        std::memcpy(to + i * 2, &half, 2);
      }
    }
    return to;
  }
  int32_t* ints(std::vector<int32_t> values) {
    char* to = bytes(values.size() * 4);
    std::memcpy(to, values.data(), values.size() * 4);
    return reinterpret_cast<int32_t*>(to);
  }
  template <typename Pointer = const void*>
  Strided<Pointer> packed(void* data, int64_t rows, int64_t heads, int64_t dim) {
    return contiguous<Pointer>(static_cast<Pointer>(data), rows, heads, dim);
  }

  ThreadPool pool{{.threads = 2}};
  Context context{pool};

 private:
  std::mt19937 random_{kSeed};
  std::vector<std::unique_ptr<Guarded>> held_;
};

INSTANTIATE_TEST_SUITE_P(DtypesAndEnds, GuardedCaches,
                         ::testing::Combine(::testing::Values(DType::f32, DType::f16, DType::bf16),
                                            ::testing::Bool()));

TEST_P(GuardedCaches, AttendCacheStaysInside) {
  const DType dtype = std::get<0>(GetParam());
  RopeConfig config;
  config.rotary_dim = 24;
  const auto table = RopeTable::create(config, 110);
  ASSERT_TRUE(table.ok());
  for (const int64_t block_size : {1, 7, 64, 110}) {
    for (const int64_t rows : {1, 3}) {
      // The last sequence fills its blocks to the last slot, and the last block is its last.
      const int64_t keys = 110 - 110 % block_size, per = keys / block_size, blocks = 2 * per;
      AttentionProblem p;
      p.batch = 2;
      p.seqlen_q = rows;
      p.heads = 2;
      p.kv_heads = 1;
      p.head_dim = 24;
      p.v_head_dim = block_size == 64 ? 16 : 8;  // 16: tiles are read where they lie
      p.dtype = dtype;
      p.scale = 0.2f;
      const int64_t dv = p.v_head_dim;
      CacheView cache;
      cache.k = packed<void*>(tensor(dtype, blocks * block_size * 24), block_size, 1, 24);
      cache.v = packed<void*>(tensor(dtype, blocks * block_size * dv), block_size, 1, dv);
      cache.num_blocks = blocks;
      cache.block_size = block_size;
      std::vector<int32_t> ids;
      for (int32_t i = 0; i < blocks; ++i) ids.push_back(i);
      cache.block_table = ints(ids);
      cache.max_blocks = per;
      const int32_t old_keys = static_cast<int32_t>(keys - rows);
      cache.seqlens = ints({old_keys / 2, old_keys});
      Rotary turn = rotary(*table);
      char* cos = bytes(size_t(keys) * 12 * 4);
      char* sin = bytes(size_t(keys) * 12 * 4);
      std::memcpy(cos, table->cos(), size_t(keys) * 12 * 4);
      std::memcpy(sin, table->sin(), size_t(keys) * 12 * 4);
      turn.cos = cos;
      turn.sin = sin;
      turn.positions = keys;
      CacheAppend append;
      append.seqlen = rows;
      append.k = packed(tensor(dtype, 2 * rows * 24), rows, 1, 24);
      append.v = packed(tensor(dtype, 2 * rows * dv), rows, 1, dv);
      append.rotary = &turn;
      p.leftpad_k = ints({0, block_size == 64 ? 0 : 3});
      CacheTensors t;
      t.q = packed(tensor(dtype, 2 * rows * 2 * 24), rows, 2, 24);
      t.o = packed<void*>(tensor(dtype, 2 * rows * 2 * dv), rows, 2, dv);
      t.lse = reinterpret_cast<float*>(bytes(size_t(2 * rows * 2) * 4));
      const Status status = attend_cache(context, p, cache, append, t);
      ASSERT_TRUE(status.ok()) << status.message();
      for (int64_t i = 0; i < 4 * rows; ++i) EXPECT_TRUE(std::isfinite(t.lse[i]));
    }
  }
}

TEST_P(GuardedCaches, RotatingAndMergingStayInside) {
  const DType dtype = std::get<0>(GetParam());
  for (const int dim : {6, 16, 40, 70}) {
    RopeProblem rope;
    rope.seqlen = 5;
    rope.heads = 3;
    rope.head_dim = dim;
    rope.dtype = dtype;
    rope.rotary = {RopeStyle::half, dim, tensor(dtype, 5 * dim / 2), tensor(dtype, 5 * dim / 2), dtype, 5, 0};
    for (const RopeStyle style : {RopeStyle::half, RopeStyle::interleaved}) {
      rope.rotary.style = style;
      ASSERT_TRUE(rope_forward(context, rope, packed(tensor(dtype, 15 * dim), 5, 3, dim),
                               packed<void*>(tensor(dtype, 15 * dim), 5, 3, dim))
                      .ok());
    }
    MergeProblem merge;
    merge.seqlen = 5;
    merge.heads = 3;
    merge.head_dim = dim;
    merge.dtype = merge.out_dtype = dtype;
    const auto part = [&] {
      const auto* lse = reinterpret_cast<const float*>(tensor(DType::f32, 15));
      return AttentionPart{packed(tensor(dtype, 15 * dim), 5, 3, dim),
                           contiguous_lse<const float*>(lse, 5, 3)};
    };
    auto* lse = reinterpret_cast<float*>(bytes(15 * 4));
    ASSERT_TRUE(merge_states(context, merge, part(), part(),
                             packed<void*>(tensor(dtype, 15 * dim), 5, 3, dim),
                             contiguous_lse<float*>(lse, 5, 3))
                    .ok());
  }
}

TEST_P(GuardedCaches, AppendAndTreeAttentionStayInside) {
  const DType dtype = std::get<0>(GetParam());
  KvCacheOptions options;
  options.dtype = dtype == DType::f16 ? DType::bf16 : dtype;
  options.kv_heads = 1;
  options.head_dim = 24;
  options.v_head_dim = 8;
  options.num_blocks = 2;
  auto cache = KvCache::create(options);
  ASSERT_TRUE(cache.ok());
  AttentionProblem p;
  p.heads = 2;
  p.kv_heads = 1;
  p.head_dim = 24;
  p.v_head_dim = 8;
  p.dtype = options.dtype;
  p.scale = 0.2f;
  const CacheSequence sequence[] = {{0, 128, 0, ints({1, 0}), 2}};
  ASSERT_TRUE(cache
                  ->append(context, 0, sequence, dtype, packed(tensor(dtype, 128 * 24), 128, 1, 24),
                           packed(tensor(dtype, 128 * 8), 128, 1, 8))
                  .ok());
  CacheQuery query;
  query.dtype = dtype;
  query.q = packed(tensor(dtype, 128 * 2 * 24), 128, 2, 24);
  query.o = packed<void*>(tensor(dtype, 128 * 2 * 8), 128, 2, 8);
  query.lse = reinterpret_cast<float*>(bytes(128 * 2 * 4));
  const Status status = tree_attention(context, p, *cache, 0, sequence, query);
  ASSERT_TRUE(status.ok()) << status.message();
}

}  // namespace
}  // namespace tessera::attention
