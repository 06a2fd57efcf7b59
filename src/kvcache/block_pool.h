// BlockPool: the ids of the KV blocks, who holds them, and which are free. It never sees a tensor byte.
//
// Invariants (numbers as in README.md):
//  1. free + cached + referenced = total, and no id is in two of the three:
//     referenced: at least one BlockRef names it; cached: none does, but the prefix tree holds it; free:
//     neither.
//  2. A count falls in one place only, BlockRef's destructor.
//
// Not thread-safe: the engine's thread owns it.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "tessera/status.h"

namespace tessera::kvcache {

class BlockPool;

// One reference to one block; move-only. The pool must outlive it.
class BlockRef {
 public:
  BlockRef() = default;
  ~BlockRef() { reset(); }
  BlockRef(BlockRef&& other) noexcept { swap(other); }
  BlockRef& operator=(BlockRef&& other) noexcept {
    if (this != &other) {
      reset();
      swap(other);
    }
    return *this;
  }
  BlockRef(const BlockRef&) = delete;
  BlockRef& operator=(const BlockRef&) = delete;

  explicit operator bool() const { return pool_ != nullptr; }
  int32_t id() const { return id_; }
  // Another reference to the same block. REQUIRES: not empty.
  BlockRef share() const;
  void reset();

 private:
  friend class BlockPool;
  BlockRef(BlockPool* pool, int32_t id) : pool_(pool), id_(id) {}
  void swap(BlockRef& other) {
    std::swap(pool_, other.pool_);
    std::swap(id_, other.id_);
  }
  BlockPool* pool_ = nullptr;
  int32_t id_ = -1;
};

class BlockPool {
 public:
  // REQUIRES: total >= 1.
  explicit BlockPool(int32_t total);
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // A free block with one reference; empty when none is free. Blocks freed last come first (their bytes may
  // still be in a CPU cache).
  BlockRef allocate();
  // One more reference. REQUIRES: the block is referenced or cached.
  BlockRef share(int32_t id);

  int32_t total() const { return static_cast<int32_t>(blocks_.size()); }
  int32_t free() const { return static_cast<int32_t>(free_.size()); }
  int32_t cached() const { return cached_; }
  int32_t referenced() const { return referenced_; }
  int32_t references(int32_t id) const { return blocks_[static_cast<size_t>(id)].references; }
  bool in_tree(int32_t id) const { return blocks_[static_cast<size_t>(id)].in_tree; }

  // For the prefix tree alone. enter_tree REQUIRES: referenced and not in the tree.
  void enter_tree(int32_t id);
  // Frees the block if nobody references it. REQUIRES: in the tree.
  void leave_tree(int32_t id);

  // For tests: the n-th allocation from now on finds nothing (1: the next one); once. 0: none.
  void fail_allocation(int64_t n) { fail_in_ = n; }

  // An internal Status says which invariant is broken and where. O(total).
  Status check_invariants() const;

 private:
  friend class BlockRef;
  struct Block {
    int32_t references = 0;
    bool in_tree = false;
  };
  void drop(int32_t id);

  std::vector<Block> blocks_;
  std::vector<int32_t> free_;  // a stack
  int32_t cached_ = 0;
  int32_t referenced_ = 0;
  int64_t fail_in_ = 0;
};

}  // namespace tessera::kvcache
