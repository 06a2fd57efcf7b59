// CacheTreePlan on the CPU: attend_cache's bits, and tables refused before anything is read or written.
#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "core/context.h"
#include "tessera/paged.h"

namespace tessera::attention {
namespace {

constexpr int kHeads = 4, kKvHeads = 2, kDim = 16, kBlock = 64, kBlocks = 9, kMaxBlocks = 4;

class CacheTree : public ::testing::Test {
 protected:
  CacheTree() {
    std::mt19937 random(41);
    std::normal_distribution<float> normal;
    for (auto* values : {&k_, &v_, &k_new_, &v_new_, &q_})
      for (float& x : *values) x = normal(random);
    problem_.batch = 2;
    problem_.seqlen_q = 1;
    problem_.heads = kHeads;
    problem_.kv_heads = kKvHeads;
    problem_.head_dim = problem_.v_head_dim = kDim;
    problem_.scale = 0.25f;
    tables_.num_blocks = kBlocks;
    tables_.block_size = kBlock;
    tables_.block_table = table_.data();
    tables_.max_blocks = kMaxBlocks;
    tables_.seqlens = lengths_.data();
    tables_.appended = 1;
  }
  CacheView view() {
    CacheView cache;
    cache.k = contiguous<void*>(k_.data(), kBlock, kKvHeads, kDim);
    cache.v = contiguous<void*>(v_.data(), kBlock, kKvHeads, kDim);
    cache.num_blocks = kBlocks;
    cache.block_size = kBlock;
    cache.block_table = table_.data();
    cache.max_blocks = kMaxBlocks;
    cache.seqlens = lengths_.data();
    return cache;
  }
  CacheAppend append() {
    return {1, contiguous<const void*>(k_new_.data(), 1, kKvHeads, kDim),
            contiguous<const void*>(v_new_.data(), 1, kKvHeads, kDim), nullptr};
  }
  CacheTensors tensors(std::vector<float>& o) {
    return {contiguous<const void*>(q_.data(), 1, kHeads, kDim), contiguous<void*>(o.data(), 1, kHeads, kDim),
            nullptr};
  }
  void refused(const char* field, const std::string& text, const std::function<void()>& change) {
    const AttentionProblem problem = problem_;
    const CacheTables tables = tables_;
    const CacheTreeOptions options = options_;
    const auto table = table_, lengths = lengths_;
    change();
    const auto plan = CacheTreePlan::create(context_, problem_, tables_, options_);
    ASSERT_FALSE(plan.ok()) << field;
    EXPECT_EQ(plan.status().field(), field);
    EXPECT_NE(plan.status().message().find(text), std::string::npos) << plan.status().message();
    problem_ = problem, tables_ = tables, options_ = options, table_ = table, lengths_ = lengths;
  }

  std::vector<int32_t> table_ = {2, 7, 1, -1, 2, 5, -1, -1};
  std::vector<int32_t> lengths_ = {150, 127};
  std::vector<float> k_ = std::vector<float>(kBlocks * kBlock * kKvHeads * kDim), v_ = k_;
  std::vector<float> k_new_ = std::vector<float>(2 * kKvHeads * kDim), v_new_ = k_new_;
  std::vector<float> q_ = std::vector<float>(2 * kHeads * kDim);
  AttentionProblem problem_;
  CacheTables tables_;
  CacheTreeOptions options_;
  ThreadPool pool_{{.threads = 2}};
  Context context_{pool_};
};

TEST_F(CacheTree, GivesAttendCachesBitsAndWritesWhatItWrites) {
  std::vector<float> want(q_.size()), got(q_.size());
  const auto k = k_;
  ASSERT_TRUE(attend_cache(context_, problem_, view(), append(), tensors(want)).ok());
  const auto k_after = k_;
  k_ = k;
  auto plan = CacheTreePlan::create(context_, problem_, tables_, {.sharing = TreeSharing::always});
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  const Status status = plan->attend(context_, view(), append(), tensors(got));
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(got, want);
  EXPECT_EQ(k_, k_after);
}

TEST_F(CacheTree, CountsWhatEverySequenceReadsOnItsOwn) {
  auto plan = CacheTreePlan::create(context_, problem_, tables_);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->reads().tiles, 2u * (3 + 2));
  EXPECT_EQ(plan->reads().unshared, plan->reads().tiles);
  EXPECT_EQ(plan->reads().shared_tiles, 0u);
  problem_.mask.window_left = 20;  // keys from 130 and 107 on
  plan = CacheTreePlan::create(context_, problem_, tables_);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->reads().tiles, 2u * (1 + 1));
}

TEST_F(CacheTree, BlocksOutsideTheWindowAreNotLookedAt) {
  problem_.mask.window_left = 20;
  table_[0] = table_[1] = -5;
  EXPECT_TRUE(CacheTreePlan::create(context_, problem_, tables_).ok());
}

TEST_F(CacheTree, LengthsOutsideTheTableAreRefusedByAttendToo) {
  auto plan = CacheTreePlan::create(context_, problem_, tables_);
  ASSERT_TRUE(plan.ok());
  std::vector<float> o(q_.size(), 5.0f);
  const auto before = o;
  CacheView cache = view();
  cache.seqlens = nullptr;
  cache.seqlen = 256;
  const Status status = plan->attend(context_, cache, append(), tensors(o));
  EXPECT_EQ(status.message(),
            "cache_seqlens=256 of sequence 0 must be from 0 to 255 under this plan; make a new one");
  EXPECT_EQ(o, before);
}

TEST_F(CacheTree, RefusesTablesThatCannotBe) {
  refused("block_table", "block_table is null", [&] { tables_.block_table = nullptr; });
  refused("seqlens", "seqlens is null", [&] { tables_.seqlens = nullptr; });
  refused("block_table", "block_table=9 of sequence 1 must be from 0 to 8 (entry 1)", [&] { table_[5] = 9; });
  refused("block_table", "block_table=-1 of sequence 0 must be from 0 to 8 (entry 2)",
          [&] { table_[2] = -1; });
  refused("seqlens", "seqlens=256 of sequence 1 must be from 0 to 255 (capacity 256 less 1 new keys)",
          [&] { lengths_[1] = 256; });
  refused("seqlens", "seqlens=-1 of sequence 0", [&] { lengths_[0] = -1; });
  refused("reserve", "reserve=-1", [&] { options_.reserve = -1; });
  refused("block_size", "block_size=0 must be from 1", [&] { tables_.block_size = 0; });
  refused("num_blocks", "num_blocks=-1", [&] { tables_.num_blocks = -1; });
  refused("max_blocks", "max_blocks=-1", [&] { tables_.max_blocks = -1; });
  refused("appended", "appended=-1", [&] { tables_.appended = -1; });
  refused("struct_size", "struct_size=0", [&] { tables_.struct_size = 0; });
  refused("struct_size", "struct_size=0", [&] { options_.struct_size = 0; });
}

TEST_F(CacheTree, RefusesProblemsThatAreNoStep) {
  refused("seqlen_q", "seqlen_q=2 of a prefix tree must be 1", [&] { problem_.seqlen_q = 2; });
  refused("head_dim", "head_dim=12", [&] { problem_.head_dim = 12; });
  refused("dropout", "dropout=0.5", [&] { problem_.dropout.p = 0.5f; });
  refused("mask", "mask tensor", [&] { problem_.mask.tensor.kind = MaskKind::boolean; });
  const std::vector<int32_t> cu = {0, 1, 2};
  refused("cu_seqlens_q", "one query row", [&] { problem_.cu_seqlens_q = cu.data(); });
}

}  // namespace
}  // namespace tessera::attention
