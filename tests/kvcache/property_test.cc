// A model-based property test: random operations on pool, tree and tables beside a model that knows only
// token sequences, reference counts and a "store" that holds, for each row of each block, a hash of the exact
// prefix whose K/V a real store would hold there. After every operation all checks run:
//  (a) free + cached + referenced = total, no id twice;
//  (b) a block's references are the live tables (and held copies) that name it;
//  (c) evict takes exactly what the model of least-recently-used, leaf-first eviction takes;
//  (d) every row of the tree and of every live table holds the K/V of its exact prefix;
//  (e) a match is the longest that any listing of the tree allows, under the same key only, and what was
//      published is found until something is evicted;
//  (f) writers own their blocks alone;
//  (g) after cancel-all nothing is referenced, after evict-all everything is free.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <random>

#include "kvcache/kv_cache.h"

namespace tessera::kvcache {
namespace {

using Tokens = std::vector<int32_t>;
constexpr int kBlockTokens = 4;
constexpr int32_t kBlocks = 48;
constexpr size_t kMaxLength = 40;

uint64_t mix(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9E3779B97F4A7C15u + (hash << 6) + (hash >> 2);
  return hash * 0xD6E8FEB86659FD93u;
}
uint64_t start_hash(const RootKey& key) {
  return key.tenant.empty() ? 1 : mix(2, key.tenant[0]);
}

struct Live {
  RootKey key;
  Tokens tokens;
  BlockTable table;
  size_t computed = 0;
};

struct Published {
  RootKey key;
  Tokens tokens;
  size_t found;  // tokens that a match must find
};

class World {
 public:
  explicit World(uint64_t seed) : random_(seed), store_(kBlocks * kBlockTokens, 0) {}

  void operate() {
    if (random(40) == 0) cache_.pool().fail_allocation(1 + random(3));
    const int kind = random(100);
    if (kind < 26) {
      admit();
    } else if (kind < 58) {
      extend();
    } else if (kind < 64) {
      fork();
    } else if (kind < 74) {
      publish(pick());
    } else if (kind < 79) {
      end(pick(), true);
    } else if (kind < 82) {
      end(pick(), false);  // cancelled
    } else if (kind < 87) {
      preempt();
    } else if (kind < 92) {
      resume();
    } else if (kind < 96) {
      evict(1 + random(6));
    } else if (kind < 98) {
      poison();
    } else {
      probe();
    }
    check();
  }

  void end_all() {
    while (!live_.empty()) end(&live_.front(), random(2) == 0);
    ASSERT_EQ(cache_.pool().referenced(), 0);
    cache_.tree().evict(kBlocks);
    ASSERT_EQ(cache_.pool().free(), kBlocks);
    ASSERT_EQ(cache_.tree().nodes(), 0);
    ASSERT_EQ(cache_.tree().roots(), 0);
    published_.clear();
    waiting_.clear();
  }

  uint64_t hits = 0, copies = 0, writes_failed = 0, evictions = 0, switched = 0;

 private:
  int random(int limit) { return static_cast<int>(random_() % static_cast<uint64_t>(limit)); }

  // Half of the sequences continue or branch off from one that was there before; few letters, so that
  // accidental common prefixes are frequent.
  Tokens make_tokens(RootKey* key) {
    Tokens tokens;
    if (!published_.empty() && random(2) == 0) {
      const Published& old = published_[static_cast<size_t>(random(static_cast<int>(published_.size())))];
      *key = old.key;
      tokens.assign(old.tokens.begin(), old.tokens.begin() + random(static_cast<int>(old.tokens.size()) + 1));
    } else {
      key->tenant = random(3) == 0 ? "a" : "";
    }
    const size_t length = std::min(kMaxLength, tokens.size() + 1 + static_cast<size_t>(random(12)));
    while (tokens.size() < length) tokens.push_back(random(3));
    return tokens;
  }

  std::vector<uint64_t> hashes(const RootKey& key, std::span<const int32_t> tokens) {
    std::vector<uint64_t> result;
    uint64_t hash = start_hash(key);
    for (const int32_t token : tokens) result.push_back(hash = mix(hash, static_cast<uint64_t>(token) + 1));
    return result;
  }

  void copy(const CopyPlan& plan) {
    ++copies;
    for (int32_t row = plan.first; row < plan.first + plan.count; ++row) {
      store_[static_cast<size_t>(plan.destination * kBlockTokens + row)] =
          store_[static_cast<size_t>(plan.source * kBlockTokens + row)];
    }
  }

  // Computes rows up to `length`; false when blocks ran out.
  bool compute(Live& live, size_t length) {
    const auto hash = hashes(live.key, live.tokens);
    for (; live.computed < length; ++live.computed) {
      const auto index = static_cast<int32_t>(live.computed / kBlockTokens);
      const auto offset = static_cast<int32_t>(live.computed % kBlockTokens);
      if (index == live.table.size()) {
        BlockRef block = cache_.allocate();
        if (!block) return ++writes_failed, false;
        live.table.append(std::move(block));
      } else if (cache_.is_shared(live.table, index, 0)) {
        BlockRef block = cache_.allocate();
        if (!block) return ++writes_failed, false;
        const int32_t fresh = block.id();
        const BlockRef old = live.table.replace(index, std::move(block));
        copy({old.id(), fresh, 0, offset});
      }
      EXPECT_EQ(cache_.pool().references(live.table.id(index)), 1);  // (f)
      store_[static_cast<size_t>(live.table.id(index) * kBlockTokens + offset)] = hash[live.computed];
    }
    return true;
  }

  size_t longest(const RootKey& key, std::span<const int32_t> tokens) {
    size_t best = 0;
    cache_.tree().for_each([&](const PrefixTree::Listing& node) {
      if (*node.key != key) return;
      const size_t limit = std::min(node.path.size(), tokens.size());
      size_t common = 0;
      while (common < limit && node.path[common] == tokens[common]) ++common;
      best = std::max(best, common);
    });
    return best;
  }

  bool start(RootKey key, Tokens tokens) {
    const std::span<const int32_t> wanted = std::span<const int32_t>(tokens).first(tokens.size() - 1);
    PrefixMatch match = cache_.match(key, wanted);
    EXPECT_EQ(match.tokens(kBlockTokens), static_cast<int64_t>(longest(key, wanted)));  // (e)
    hits += match.blocks.empty() ? 0 : 1;
    Live live{key, std::move(tokens), {}, 0};
    BlockRef tail = std::move(match.tail);
    const int32_t tail_rows = match.tail_rows;
    live.table.adopt(std::move(match));
    live.computed = static_cast<size_t>(live.table.capacity(kBlockTokens));
    if (tail) {
      BlockRef block = cache_.allocate();
      if (block) {
        copy({tail.id(), block.id(), 0, tail_rows});
        live.table.append(std::move(block));
        live.computed += static_cast<size_t>(tail_rows);
      }
    }
    tail.reset();
    if (!compute(live, live.tokens.size())) {
      if (live.computed > 0 && random(2) == 0) publish(&live);
      return false;
    }
    live_.push_back(std::move(live));
    return true;
  }

  void admit() {
    if (live_.size() >= 8) return end(pick(), true);
    RootKey key;
    Tokens tokens = make_tokens(&key);
    start(std::move(key), std::move(tokens));
  }

  Live* pick() {
    return live_.empty() ? nullptr : &live_[static_cast<size_t>(random(static_cast<int>(live_.size())))];
  }

  void extend() {
    Live* live = pick();
    if (live == nullptr || live->tokens.size() >= kMaxLength) return;
    for (int i = 1 + random(6); i > 0; --i) live->tokens.push_back(random(3));
    compute(*live, live->tokens.size());
    live->tokens.resize(live->computed);
  }

  void fork() {
    Live* parent = pick();
    if (parent == nullptr) return;
    const size_t index = static_cast<size_t>(parent - live_.data());
    for (int i = 1 + random(3); i > 0; --i) {
      const Live& source = live_[index];
      live_.push_back(
          {source.key, source.tokens, source.table.fork(source.computed, kBlockTokens), source.computed});
    }
  }

  void publish(Live* live) {
    if (live == nullptr || live->computed == 0) return;
    const std::span<const int32_t> tokens = std::span<const int32_t>(live->tokens).first(live->computed);
    std::vector<int32_t> before;
    bool shared = false;  // with a fork: then not everything enters the tree
    for (const BlockRef& block : live->table.blocks()) {
      before.push_back(block.id());
      shared |= cache_.pool().references(block.id()) > 1;
    }
    cache_.insert(live->key, tokens, live->table);
    for (size_t i = 0; i < before.size(); ++i)
      switched += before[i] != live->table.id(static_cast<int32_t>(i));
    if (published_.size() >= 16) published_.erase(published_.begin() + random(16));
    const size_t found = shared ? longest(live->key, tokens) : tokens.size();
    published_.push_back({live->key, {tokens.begin(), tokens.end()}, found});
  }

  void end(Live* live, bool keep) {
    if (live == nullptr) return;
    if (keep) publish(live);
    live_.erase(live_.begin() + (live - live_.data()));
  }

  void preempt() {
    Live* live = pick();
    if (live == nullptr) return;
    waiting_.emplace_back(live->key, live->tokens);
    end(live, true);
  }

  void resume() {
    if (waiting_.empty() || live_.size() >= 8) return;
    auto [key, tokens] = waiting_.back();
    waiting_.pop_back();
    start(key, tokens);
  }

  // A sequence whose K/V turned out bad.
  void poison() {
    Live* live = pick();
    if (live == nullptr) return;
    const RootKey key = live->key;
    const Tokens tokens = live->tokens;
    end(live, false);
    const int32_t before = cache_.pool().free();
    const int32_t dropped = cache_.tree().forget(key, tokens);
    EXPECT_EQ(dropped, cache_.pool().free() - before);
    note_losses();
  }

  void probe() {
    RootKey key;
    const Tokens tokens = make_tokens(&key);
    EXPECT_EQ(cache_.match(key, tokens).tokens(kBlockTokens), static_cast<int64_t>(longest(key, tokens)));
  }

  // The model of eviction: nodes as they were listed, the least recently used leaf whose last block nobody
  // references loses that block.
  std::vector<int32_t> model_evict(int blocks) {
    struct Node {
      std::vector<int32_t> blocks;
      uint64_t last_use;
      size_t children = 0;
      int parent = -1;
    };
    std::vector<Node> nodes;
    std::vector<std::pair<const RootKey*, Tokens>> paths;
    cache_.tree().for_each([&](const PrefixTree::Listing& entry) {
      Node node{{entry.blocks.begin(), entry.blocks.end()}, entry.last_use};
      size_t longest_parent = 0;
      for (size_t i = 0; i < paths.size(); ++i) {
        const Tokens& path = paths[i].second;
        const bool above = paths[i].first == entry.key && path.size() < entry.path.size() &&
                           path.size() + entry.blocks.size() * kBlockTokens >= entry.path.size() &&
                           path.size() % kBlockTokens == 0 &&
                           std::equal(path.begin(), path.end(), entry.path.begin());
        if (above && path.size() >= longest_parent) {
          longest_parent = path.size();
          node.parent = static_cast<int>(i);
        }
      }
      if (node.parent >= 0) ++nodes[static_cast<size_t>(node.parent)].children;
      nodes.push_back(std::move(node));
      paths.emplace_back(entry.key, Tokens(entry.path.begin(), entry.path.end()));
    });
    std::vector<int32_t> gone;
    while (static_cast<int>(gone.size()) < blocks) {
      Node* victim = nullptr;
      for (Node& node : nodes) {
        if (node.blocks.empty() || node.children != 0) continue;
        if (cache_.pool().references(node.blocks.back()) != 0) continue;
        if (victim == nullptr || node.last_use < victim->last_use) victim = &node;
      }
      if (victim == nullptr) break;
      gone.push_back(victim->blocks.back());
      victim->blocks.pop_back();
      if (victim->blocks.empty() && victim->parent >= 0)
        --nodes[static_cast<size_t>(victim->parent)].children;
    }
    return gone;
  }

  void evict(int blocks) {
    std::vector<int32_t> expected = model_evict(blocks);
    const int32_t got = cache_.tree().evict(blocks);
    ASSERT_EQ(got, static_cast<int32_t>(expected.size()));
    for (const int32_t id : expected) ASSERT_FALSE(cache_.pool().in_tree(id)) << "block " << id;  // (c)
    evictions += expected.size();
    note_losses();
  }

  // After an eviction less may be found of what was published.
  void note_losses() {
    for (Published& entry : published_) entry.found = longest(entry.key, entry.tokens);
    evicted_seen_ = cache_.evicted();
  }

  void check() {
    ASSERT_EQ(cache_.check_invariants().message(), "");  // (a), and the tree's own
    std::vector<int32_t> references(kBlocks, 0);
    for (const Live& live : live_) {
      const auto hash = hashes(live.key, std::span<const int32_t>(live.tokens).first(live.computed));
      for (const BlockRef& block : live.table.blocks()) ++references[static_cast<size_t>(block.id())];
      for (size_t i = 0; i < live.computed; ++i) {  // (d)
        const int32_t block = live.table.id(static_cast<int32_t>(i / kBlockTokens));
        ASSERT_EQ(store_[static_cast<size_t>(block * kBlockTokens) + i % kBlockTokens], hash[i]);
      }
    }
    for (int32_t id = 0; id < kBlocks; ++id) {  // (b)
      ASSERT_EQ(cache_.pool().references(id), references[static_cast<size_t>(id)]) << "block " << id;
    }
    std::vector<int32_t> path, above(kBlocks, -2);  // above: the block before it in the tree, -1 at a root
    cache_.tree().for_each([&](const PrefixTree::Listing& node) {  // (d)
      const auto hash = hashes(*node.key, node.path);
      path.resize((node.path.size() - 1) / kBlockTokens + 1 - node.blocks.size());
      for (const int32_t id : node.blocks) {
        above[static_cast<size_t>(id)] = path.empty() ? -1 : path.back();
        path.push_back(id);
      }
      const size_t begin = (node.path.size() - 1) / kBlockTokens + 1 - node.blocks.size();
      for (size_t i = begin * kBlockTokens; i < node.path.size(); ++i) {
        const auto block = static_cast<size_t>(node.blocks[i / kBlockTokens - begin]);
        ASSERT_EQ(store_[block * kBlockTokens + i % kBlockTokens], hash[i]);
      }
    });
    for (const Live& live : live_) {  // who holds a block of the tree holds those before it
      for (int32_t i = 0; i < live.table.size(); ++i) {
        if (!cache_.pool().in_tree(live.table.id(i))) continue;
        ASSERT_EQ(above[static_cast<size_t>(live.table.id(i))], i == 0 ? -1 : live.table.id(i - 1));
      }
    }
    if (cache_.evicted() != evicted_seen_) note_losses();
    for (const Published& entry : published_) {  // (e)
      ASSERT_GE(longest(entry.key, entry.tokens), entry.found);
    }
  }

  std::mt19937_64 random_;
  KvCache cache_{{.num_blocks = kBlocks, .block_tokens = kBlockTokens}};
  std::vector<uint64_t> store_;
  std::vector<Live> live_;
  std::vector<std::pair<RootKey, Tokens>> waiting_;
  std::vector<Published> published_;
  uint64_t evicted_seen_ = 0;
};

int64_t setting(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoll(text);
}

TEST(KvCacheProperty, RandomOperationsKeepEveryInvariant) {
  const int64_t operations = setting("TESSERA_KV_OPERATIONS", 20000);
  const auto seed = static_cast<uint64_t>(setting("TESSERA_SEED", 20240711));
  std::printf("seed %llu, %lld operations (TESSERA_SEED, TESSERA_KV_OPERATIONS)\n",
              static_cast<unsigned long long>(seed), static_cast<long long>(operations));
  World world(seed);
  for (int64_t i = 0; i < operations; ++i) {
    world.operate();
    if (i % 5000 == 4999) world.end_all();
    ASSERT_FALSE(::testing::Test::HasFailure()) << "seed " << seed << ", operation " << i;
  }
  world.end_all();
  std::printf("hits %llu, copies %llu, failed writes %llu, evicted %llu, switched %llu\n",
              static_cast<unsigned long long>(world.hits), static_cast<unsigned long long>(world.copies),
              static_cast<unsigned long long>(world.writes_failed),
              static_cast<unsigned long long>(world.evictions),
              static_cast<unsigned long long>(world.switched));
  // The run has seen what it is about.
  for (const uint64_t count :
       {world.hits, world.copies, world.writes_failed, world.evictions, world.switched}) {
    EXPECT_GT(count, static_cast<uint64_t>(operations) / 1000);
  }
}

}  // namespace
}  // namespace tessera::kvcache
