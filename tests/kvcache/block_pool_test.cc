#include "kvcache/block_pool.h"

#include <gtest/gtest.h>

#include <set>

#include "kvcache/block_table.h"
#include "kvcache/kv_cache.h"

namespace tessera::kvcache {
namespace {

TEST(BlockPool, HandsOutEachBlockOnceAndNoneWhenAllAreHeld) {
  BlockPool pool(5);
  std::vector<BlockRef> held;
  std::set<int32_t> ids;
  for (int i = 0; i < 5; ++i) {
    held.push_back(pool.allocate());
    ASSERT_TRUE(held.back());
    ids.insert(held.back().id());
    EXPECT_TRUE(pool.check_invariants().ok());
  }
  EXPECT_EQ(ids.size(), 5u);
  EXPECT_FALSE(pool.allocate());
  held.pop_back();
  EXPECT_EQ(pool.free(), 1);
  EXPECT_TRUE(pool.allocate());
}

TEST(BlockPool, ABlockIsFreeWhenItsLastReferenceGoes) {
  BlockPool pool(2);
  BlockRef first = pool.allocate();
  BlockRef second = first.share();
  EXPECT_EQ(pool.references(first.id()), 2);
  first.reset();
  EXPECT_EQ(pool.referenced(), 1);
  BlockRef moved = std::move(second);
  EXPECT_EQ(pool.referenced(), 1);
  moved = BlockRef();
  EXPECT_EQ(pool.free(), 2);
  EXPECT_TRUE(pool.check_invariants().ok());
}

TEST(BlockPool, WhatTheTreeHoldsIsCachedUntilItLeaves) {
  BlockPool pool(1);
  BlockRef block = pool.allocate();
  const int32_t id = block.id();
  pool.enter_tree(id);
  EXPECT_EQ(pool.referenced(), 1);
  block.reset();
  EXPECT_EQ(pool.cached(), 1);
  EXPECT_FALSE(pool.allocate());
  block = pool.share(id);
  EXPECT_EQ(pool.referenced(), 1);
  pool.leave_tree(id);
  EXPECT_EQ(pool.referenced(), 1);
  block.reset();
  EXPECT_EQ(pool.free(), 1);
}

TEST(BlockPool, TheNthAllocationFailsOnce) {
  BlockPool pool(4);
  pool.fail_allocation(2);
  BlockRef first = pool.allocate();
  EXPECT_TRUE(first);
  EXPECT_FALSE(pool.allocate());
  BlockRef third = pool.allocate();
  EXPECT_TRUE(third);
}

TEST(BlockTable, ForkSharesTheBlocksOfTheTokensAndTruncateDropsTheRest) {
  BlockPool pool(8);
  BlockTable table;
  for (int i = 0; i < 4; ++i) table.append(pool.allocate());
  BlockTable branch = table.fork(9, 4);
  EXPECT_EQ(branch.size(), 3);
  EXPECT_EQ(pool.references(table.id(2)), 2);
  EXPECT_EQ(pool.references(table.id(3)), 1);
  table.truncate(8, 4);
  EXPECT_EQ(table.size(), 2);
  EXPECT_EQ(pool.referenced(), 3);
  BlockRef old = branch.replace(2, pool.allocate());
  EXPECT_EQ(pool.references(old.id()), 1);
  old.reset();
  branch.release();
  table.release();
  EXPECT_EQ(pool.free(), 8);
}

TEST(KvCache, AllocateEvictsWhatNobodyReferences) {
  KvCache cache({.num_blocks = 3, .block_tokens = 4});
  const std::vector<int32_t> tokens{1, 2, 3, 4, 5, 6, 7, 8, 9};
  BlockTable table;
  for (int i = 0; i < 3; ++i) table.append(cache.allocate());
  cache.insert({}, tokens, table);
  EXPECT_FALSE(cache.allocate());
  table.release();
  EXPECT_EQ(cache.available(), 3);
  BlockRef block = cache.allocate();
  ASSERT_TRUE(block);
  EXPECT_EQ(cache.evicted(), 1u);
  EXPECT_EQ(cache.match({}, tokens).tokens(4), 8);  // the end went first
}

TEST(KvCache, WithoutCachingNothingIsKeptOrFound) {
  for (const bool sharing : {false, true}) {
    KvCache cache({.num_blocks = 3, .block_tokens = 4, .prefix_caching = !sharing, .kv_sharing = sharing});
    BlockTable table;
    table.append(cache.allocate());
    const std::vector<int32_t> tokens{1, 2, 3, 4};
    cache.insert({}, tokens, table);
    EXPECT_EQ(cache.match({}, tokens).tokens(4), 0);
    table.release();
    EXPECT_EQ(cache.pool().free(), 3);
  }
}

}  // namespace
}  // namespace tessera::kvcache
