#include "kvcache/prefix_tree.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>

#include "kvcache/block_table.h"

namespace tessera::kvcache {
namespace {

using Tokens = std::vector<int32_t>;

// Four tokens a block.
struct Fixture {
  BlockPool pool{64};
  PrefixTree tree{&pool, 4};

  std::vector<BlockRef> blocks(size_t tokens) {
    std::vector<BlockRef> table;
    for (size_t i = 0; i < (tokens + 3) / 4; ++i) table.push_back(pool.allocate());
    return table;
  }
  // Publishes and lets go; returns the block ids of the table as the tree left it.
  std::vector<int32_t> publish(const Tokens& tokens, const RootKey& key = {}) {
    std::vector<BlockRef> table = blocks(tokens.size());
    tree.insert(key, tokens, table);
    std::vector<int32_t> ids;
    for (const BlockRef& block : table) ids.push_back(block.id());
    EXPECT_EQ(tree.check_invariants().message(), "");
    return ids;
  }
  int64_t matched(const Tokens& tokens, const RootKey& key = {}) { return tree.match(key, tokens).tokens(4); }
};

TEST(PrefixTree, MatchHasTokenGranularity) {
  Fixture f;
  const auto ids = f.publish({1, 2, 3, 4, 5, 6, 7, 8, 9, 10});
  PrefixMatch match = f.tree.match({}, Tokens{1, 2, 3, 4, 5, 6, 7, 99});
  ASSERT_EQ(match.blocks.size(), 1u);
  EXPECT_EQ(match.blocks[0].id(), ids[0]);
  EXPECT_EQ(match.tail.id(), ids[1]);
  EXPECT_EQ(match.tail_rows, 3);
  EXPECT_EQ(f.matched({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}), 10);
  EXPECT_EQ(f.matched({2, 2, 3, 4}), 0);
  EXPECT_EQ(f.matched({1}), 1);
  EXPECT_EQ(f.matched({}), 0);
}

TEST(PrefixTree, SequencesThatPartInsideABlockAreSiblings) {
  Fixture f;
  f.publish({1, 2, 3, 4, 5, 6, 7, 8});
  f.publish({1, 2, 3, 4, 5, 6, 9, 9, 1});
  EXPECT_EQ(f.tree.nodes(), 3);
  EXPECT_EQ(f.matched({1, 2, 3, 4, 5, 6, 7, 8, 1}), 8);
  EXPECT_EQ(f.matched({1, 2, 3, 4, 5, 6, 9, 9, 1}), 9);
  EXPECT_EQ(f.matched({1, 2, 3, 4, 5, 6, 1}), 6);
}

TEST(PrefixTree, EveryPartOfTheKeySeparates) {
  Fixture f;
  const Tokens tokens{1, 2, 3, 4, 5};
  f.publish(tokens, {"a", "s", "x", "r"});
  EXPECT_EQ(f.matched(tokens, {"a", "s", "x", "r"}), 5);
  for (const RootKey& other : {RootKey{"b", "s", "x", "r"},
                               {"a", "t", "x", "r"},
                               {"a", "s", "y", "r"},
                               {"a", "s", "x", "q"},
                               {"as", "", "x", "r"}}) {
    EXPECT_EQ(f.matched(tokens, other), 0);
  }
}

TEST(PrefixTree, DuplicateBlocksAreFreedAndTheTableIsSwitched) {
  Fixture f;
  const auto first = f.publish({1, 2, 3, 4, 5, 6, 7, 8, 9});
  std::vector<BlockRef> table = f.blocks(11);
  f.tree.insert({}, Tokens{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, table);
  EXPECT_EQ(table[0].id(), first[0]);
  EXPECT_EQ(table[1].id(), first[1]);
  EXPECT_NE(table[2].id(), first[2]);  // a longer tail takes the place of one that nobody writes
  EXPECT_EQ(f.pool.referenced(), 3);
  EXPECT_EQ(f.pool.cached(), 0);
  EXPECT_EQ(f.matched({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}), 11);
}

TEST(PrefixTree, ACoveredTailStaysPrivate) {
  Fixture f;
  f.publish({1, 2, 3, 4, 5, 6, 7});
  std::vector<BlockRef> table = f.blocks(6);
  const int32_t own = table[1].id();
  f.tree.insert({}, Tokens{1, 2, 3, 4, 5, 6}, table);
  EXPECT_EQ(table[1].id(), own);
  EXPECT_FALSE(f.pool.in_tree(own));
  EXPECT_EQ(f.tree.check_invariants().message(), "");
}

TEST(PrefixTree, ARunningSequencesTailGrowsInPlace) {
  Fixture f;
  std::vector<BlockRef> table = f.blocks(16);
  Tokens tokens{1, 2};
  for (int32_t next = 3; next <= 16; ++next) {
    f.tree.insert({}, tokens, table);
    ASSERT_EQ(f.tree.check_invariants().message(), "");
    EXPECT_EQ(f.matched(tokens), static_cast<int64_t>(tokens.size()));
    tokens.push_back(next);
  }
  EXPECT_EQ(f.tree.nodes(), 1);
}

// A's published tail, B's whole block of the same tokens, then A publishes again.
TEST(PrefixTree, AGrownTailGivesWayToAnotherSequencesWholeBlock) {
  Fixture f;
  std::vector<BlockRef> a = f.blocks(8), b = f.blocks(8);
  f.tree.insert({}, Tokens{1, 2}, a);
  f.tree.insert({}, Tokens{1, 2, 3, 4, 5}, b);
  EXPECT_EQ(f.tree.nodes(), 2);
  f.tree.insert({}, Tokens{1, 2, 3, 4, 6}, a);
  EXPECT_EQ(a[0].id(), b[0].id());
  EXPECT_EQ(f.tree.check_invariants().message(), "");
  EXPECT_EQ(f.matched({1, 2, 3, 4, 6}), 5);
}

TEST(PrefixTree, ATailDoesNotGrowIntoItsSibling) {
  Fixture f;
  std::vector<BlockRef> a = f.blocks(4), b = f.blocks(4);
  f.tree.insert({}, Tokens{1}, a);
  f.tree.insert({}, Tokens{1, 2, 3}, b);
  f.tree.insert({}, Tokens{1, 2, 3}, a);
  EXPECT_EQ(f.tree.check_invariants().message(), "");
  EXPECT_EQ(f.tree.nodes(), 2);
  EXPECT_EQ(f.matched({1, 2, 3, 4}), 3);
}

TEST(PrefixTree, EvictsTheLeastRecentlyUsedLeafFromItsEnd) {
  Fixture f;
  f.publish({1, 2, 3, 4, 5, 6, 7, 8});
  f.publish({1, 2, 3, 4, 9, 9, 9, 9});
  f.publish({7, 7, 7, 7});
  EXPECT_EQ(f.matched({1, 2, 3, 4, 5, 6, 7, 8}), 8);  // used last
  EXPECT_EQ(f.tree.evict(1), 1);
  EXPECT_EQ(f.matched({1, 2, 3, 4, 9, 9, 9, 9}), 4);
  EXPECT_EQ(f.tree.evict(1), 1);
  EXPECT_EQ(f.matched({7, 7, 7, 7}), 0);
  EXPECT_EQ(f.tree.evict(1), 1);
  EXPECT_EQ(f.matched({1, 2, 3, 4, 5, 6, 7, 8}), 4);
  EXPECT_EQ(f.tree.evict(100), 1);
  EXPECT_EQ(f.tree.nodes(), 0);
  EXPECT_EQ(f.tree.roots(), 0);
  EXPECT_EQ(f.pool.free(), 64);
}

TEST(PrefixTree, NeverEvictsWhatASequenceReferences) {
  Fixture f;
  f.publish({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});
  PrefixMatch held = f.tree.match({}, Tokens{1, 2, 3, 4, 5, 6});
  EXPECT_EQ(f.tree.evict(100), 1);  // the third block; the second is held as the source of a copy
  held.tail.reset();
  EXPECT_EQ(f.tree.evict(100), 1);
  held.blocks.clear();
  EXPECT_EQ(f.tree.evict(100), 1);
  EXPECT_EQ(f.pool.free(), 64);
}

TEST(PrefixTree, ForgetDropsThePathsEndUntilSomethingHangsOnIt) {
  Fixture f;
  f.publish({1, 2, 3, 4, 5, 6, 7, 8, 9});
  f.publish({1, 2, 3, 4, 5, 5, 5, 5});
  EXPECT_EQ(f.tree.forget({}, Tokens{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}), 2);
  EXPECT_EQ(f.tree.check_invariants().message(), "");
  EXPECT_EQ(f.matched({1, 2, 3, 4, 5, 6, 7, 8, 9}), 5);
  EXPECT_EQ(f.tree.forget({}, Tokens{1, 2, 3, 4}), 0);
  EXPECT_EQ(f.tree.forget({}, Tokens{1, 2, 3, 4, 5, 5, 5, 5, 6}), 2);
  EXPECT_EQ(f.tree.roots(), 0);
  EXPECT_EQ(f.tree.forget({}, Tokens{1}), 0);
}

// Thousands of siblings: a match looks at two of them. 32 times the children (and their cache
// misses) must not cost 16 times the time.
TEST(PrefixTree, FindingAChildIsNotLinearInTheirNumber) {
  const auto seconds = [](int32_t children) {
    BlockPool pool(children);
    PrefixTree tree(&pool, 4);
    std::vector<BlockRef> table(1);
    for (int32_t i = 0; i < children; ++i) {
      table[0] = pool.allocate();
      tree.insert({}, Tokens{i / 97, i % 97, i, i}, table);
    }
    table.clear();
    double best = 1e9;
    for (int round = 0; round < 5; ++round) {
      const auto begin = std::chrono::steady_clock::now();
      int64_t total = 0;
      for (int32_t i = 0; i < 2000; ++i) {
        const int32_t child = (i * 7919) % children;
        total += tree.match({}, Tokens{child / 97, child % 97, child, -1}).tokens(4);
      }
      EXPECT_EQ(total, 3 * 2000);
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    return best;
  };
  EXPECT_LT(seconds(32768), 16 * seconds(1024));
}

}  // namespace
}  // namespace tessera::kvcache
