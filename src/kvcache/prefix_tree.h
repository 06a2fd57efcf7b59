// PrefixTree: which token sequences have their K/V in which blocks.
//
// A radix tree whose edges are runs of blocks. A node holds the tokens and blocks of the edge that leads to
// it; every edge begins at a multiple of block_tokens, and only a leaf's last block may be partly filled (a
// tail). Siblings may begin with the same tokens, as long as their first blocks differ.
//
// Invariants (numbers as in README.md; 1 and 2 are the pool's):
//  3. A node's blocks hold K/V of exactly its tokens after exactly its ancestors' tokens, under its root's
//  key.
//     Tokens are compared; there is no hash.
//  4. A block is in the tree at most once.
//  5. Who references a block of the tree references all blocks before it on the path. So what is not
//  referenced
//     can always be evicted leaf first: evictable blocks = pool.cached().
//  6. A whole block in the tree is never written. A tail's rows are never written either; rows behind them
//  may
//     be, by the one sequence that references the block and continues it.
//  7. Every node but a root has tokens; no two children of a node have the same first block of tokens.
//
// Cost: match and insert compare each token once along the path, plus O(block_tokens * log children) at each
// node (children are ordered by their first block's tokens; the longest common prefix is a neighbour of the
// lower bound). evict looks at each leaf that a sequence references at most once for each node that it
// removes.
//
// Not thread-safe: the engine's thread owns it.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvcache/block_pool.h"
#include "tessera/status.h"

namespace tessera::kvcache {

// K/V are shared only within one key. All parts are compared.
struct RootKey {
  std::string tenant;
  std::string cache_salt;
  std::string adapter;
  std::string revision;  // of the model
  auto operator<=>(const RootKey&) const = default;
};

// Rows [first, first + count) of one block become the same rows of another. kv_storage carries it out.
struct CopyPlan {
  int32_t source = -1;
  int32_t destination = -1;
  int32_t first = 0;
  int32_t count = 0;
};

struct PrefixMatch {
  std::vector<BlockRef> blocks;  // whole blocks, by reference, from position 0
  BlockRef tail;                 // empty, or the block to copy rows [0, tail_rows) from
  int32_t tail_rows = 0;

  int64_t tokens(int block_tokens) const {
    return static_cast<int64_t>(blocks.size()) * block_tokens + tail_rows;
  }
};

class PrefixTree {
 public:
  // The pool must outlive the tree.
  PrefixTree(BlockPool* pool, int block_tokens);
  ~PrefixTree();
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  // The longest cached prefix of `tokens`. The caller that takes the tail allocates a block and carries out
  // CopyPlan{tail.id(), its block, 0, tail_rows}. Marks the path as used now.
  PrefixMatch match(const RootKey& key, std::span<const int32_t> tokens);

  // Publishes `tokens`, whose K/V lie in `table` in order of position. REQUIRES: the table covers the tokens.
  // Where the tree has a whole block of the same tokens already, the table is switched to it and the table's
  // own block is dropped (freed, unless something else holds it). A tail that the tree covers already stays
  // private. Everything else enters the tree, up to the first block that another table references too (so
  // publish before you fork); the table keeps its references.
  void insert(const RootKey& key, std::span<const int32_t> tokens, std::vector<BlockRef>& table);

  // Frees at least `blocks` blocks, or all that are not referenced: least recently used leaf first, from its
  // end. Returns how many.
  int32_t evict(int32_t blocks);

  // Drops from the end of this path what nobody references and nothing else hangs on; for K/V that turned out
  // bad after they were published. Returns the number of blocks.
  int32_t forget(const RootKey& key, std::span<const int32_t> tokens);

  int block_tokens() const { return block_tokens_; }
  int64_t nodes() const { return nodes_; }  // without roots
  int64_t roots() const { return static_cast<int64_t>(roots_.size()); }

  // One line of a listing: the blocks of one node with all tokens from position 0 to its end.
  struct Listing {
    const RootKey* key;
    std::span<const int32_t> path;    // tokens from position 0
    std::span<const int32_t> blocks;  // of this node: the last ones of the path
    uint64_t last_use;
    bool leaf;
  };
  void for_each(const std::function<void(const Listing&)>& visit) const;

  // An internal Status says which invariant is broken and where. O(blocks * block_tokens).
  Status check_invariants() const;

 private:
  struct Node;
  struct ByFirstBlock {
    using is_transparent = void;
    int block_tokens;
    bool operator()(const std::unique_ptr<Node>& a, const std::unique_ptr<Node>& b) const;
    bool operator()(const std::unique_ptr<Node>& a, std::span<const int32_t> b) const;
    bool operator()(std::span<const int32_t> a, const std::unique_ptr<Node>& b) const;
  };
  using Children = std::set<std::unique_ptr<Node>, ByFirstBlock>;

  std::span<const int32_t> block_of(const Node& node, size_t index) const;
  Node* exact_child(const Node& node, std::span<const int32_t> tokens) const;
  Node* nearest_child(const Node& node, std::span<const int32_t> tokens, size_t* common) const;
  std::span<const int32_t> exclusive_part(std::span<const int32_t> tokens, const std::vector<BlockRef>& table,
                                          size_t first) const;
  void append(Node* leaf, std::span<const int32_t> tokens, std::vector<BlockRef>& table, size_t first);
  void add_child(Node* parent, std::span<const int32_t> tokens, std::vector<BlockRef>& table, size_t first);
  void grow_tail(Node* leaf, std::span<const int32_t> tokens, std::vector<BlockRef>& table, size_t first);
  void insert_below(Node* node, std::span<const int32_t> tokens, std::vector<BlockRef>& table);
  void insert_rest(Node* node, std::span<const int32_t> tokens, std::vector<BlockRef>& table, size_t first);
  bool insert_inside(Node* child, size_t index, std::span<const int32_t> tokens, std::vector<BlockRef>& table,
                     size_t first);
  void adopt(BlockRef& own, int32_t tree_block);
  void split(Node* node, size_t blocks);
  void pop_block(Node* leaf);
  void touch(Node* node);
  Status check_node(const Node& node, std::vector<bool>& seen) const;
  void list(const Node& node, const RootKey& key, std::vector<int32_t>& path,
            const std::function<void(const Listing&)>& visit) const;

  BlockPool* pool_;
  int block_tokens_;
  uint64_t now_ = 0;  // counts matches and insertions
  uint64_t births_ = 0;
  int64_t nodes_ = 0;
  std::map<RootKey, std::unique_ptr<Node>> roots_;  // a root without children is erased
  struct LruKey {
    uint64_t last_use;
    uint64_t birth;  // makes keys unique and runs repeatable
    auto operator<=>(const LruKey&) const = default;
  };
  std::map<LruKey, Node*> leaves_;  // every node without children that is not a root
  std::vector<Node*> tail_owner_;   // [pool total]: the node whose last, partly filled block this is, or null
};

}  // namespace tessera::kvcache
