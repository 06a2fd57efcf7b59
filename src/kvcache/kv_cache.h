// KvCache: pool and tree as one, with the rules for when a block may be taken.
#pragma once

#include <cstdint>
#include <span>

#include "kvcache/block_pool.h"
#include "kvcache/block_table.h"
#include "kvcache/prefix_tree.h"
#include "tessera/status.h"

namespace tessera::kvcache {

struct KvCacheOptions {
  int32_t num_blocks = 0;
  int block_tokens = 64;
  // Publish and match across sequences. Off: the tree stays empty.
  bool prefix_caching = true;
  // Off: no block is ever shared, which implies prefix_caching = false; a fork is followed by a copy of all
  // its blocks.
  bool kv_sharing = true;
};

// Not thread-safe: the engine's thread owns it.
class KvCache {
 public:
  explicit KvCache(const KvCacheOptions& options)
      : options_(options), pool_(options.num_blocks), tree_(&pool_, options.block_tokens) {}

  int block_tokens() const { return options_.block_tokens; }
  bool caching() const { return options_.prefix_caching && options_.kv_sharing; }
  bool sharing() const { return options_.kv_sharing; }
  int64_t blocks_for(int64_t tokens) const {
    return (tokens + options_.block_tokens - 1) / options_.block_tokens;
  }

  // A free block, evicting if need be; empty when every block is referenced (or a test made it fail).
  BlockRef allocate();
  // What allocate() could hand out now.
  int32_t available() const { return pool_.free() + pool_.cached(); }

  // Nothing is found and nothing kept when caching() is off.
  PrefixMatch match(const RootKey& key, std::span<const int32_t> tokens);
  void insert(const RootKey& key, std::span<const int32_t> tokens, BlockTable& table);
  void forget(const RootKey& key, std::span<const int32_t> tokens);

  // The block of position `position` is shared by somebody else; `pins` are references of the caller's own
  // bookkeeping, which do not count.
  bool is_shared(const BlockTable& table, int32_t index, int32_t pins) const {
    return pool_.references(table.id(index)) - pins > 1;
  }

  BlockPool& pool() { return pool_; }
  const BlockPool& pool() const { return pool_; }
  PrefixTree& tree() { return tree_; }
  const PrefixTree& tree() const { return tree_; }
  uint64_t evicted() const { return evicted_; }

  Status check_invariants() const;

 private:
  KvCacheOptions options_;
  BlockPool pool_;
  PrefixTree tree_;
  uint64_t evicted_ = 0;
};

}  // namespace tessera::kvcache
