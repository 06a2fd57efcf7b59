#include "kvcache/block_pool.h"

#include "core/check.h"
#include "core/format.h"

namespace tessera::kvcache {

BlockRef BlockRef::share() const {
  TESSERA_CHECK(pool_ != nullptr);
  return pool_->share(id_);
}

void BlockRef::reset() {
  if (pool_ == nullptr) return;
  pool_->drop(id_);
  pool_ = nullptr;
  id_ = -1;
}

BlockPool::BlockPool(int32_t total) {
  TESSERA_CHECK_MSG(total >= 1, "a block pool needs at least one block");
  blocks_.resize(static_cast<size_t>(total));
  free_.reserve(blocks_.size());
  for (int32_t id = total; id-- > 0;) free_.push_back(id);
}

BlockRef BlockPool::allocate() {
  if (fail_in_ > 0 && --fail_in_ == 0) return {};
  if (free_.empty()) return {};
  const int32_t id = free_.back();
  free_.pop_back();
  blocks_[static_cast<size_t>(id)].references = 1;
  ++referenced_;
  return BlockRef(this, id);
}

BlockRef BlockPool::share(int32_t id) {
  Block& block = blocks_[static_cast<size_t>(id)];
  TESSERA_CHECK_MSG(block.references > 0 || block.in_tree, "a free block cannot be shared");
  if (block.references++ == 0) {
    --cached_;
    ++referenced_;
  }
  return BlockRef(this, id);
}

// Runs in destructors, so it must not throw: the counts are private to this file and BlockRef keeps them
// right.
void BlockPool::drop(int32_t id) {
  Block& block = blocks_[static_cast<size_t>(id)];
  if (--block.references > 0) return;
  --referenced_;
  if (block.in_tree) {
    ++cached_;
  } else {
    free_.push_back(id);  // its capacity is the pool's total: no allocation
  }
}

void BlockPool::enter_tree(int32_t id) {
  Block& block = blocks_[static_cast<size_t>(id)];
  TESSERA_CHECK(block.references > 0 && !block.in_tree);
  block.in_tree = true;
}

void BlockPool::leave_tree(int32_t id) {
  Block& block = blocks_[static_cast<size_t>(id)];
  TESSERA_CHECK(block.in_tree);
  block.in_tree = false;
  if (block.references == 0) {
    --cached_;
    free_.push_back(id);
  }
}

Status BlockPool::check_invariants() const {
  const auto broken = [](const std::string& what) { return Status(StatusCode::internal, what); };
  int32_t cached = 0, referenced = 0, idle = 0;
  for (size_t id = 0; id < blocks_.size(); ++id) {
    const Block& block = blocks_[id];
    if (block.references < 0) return broken(format("block {}: {} references", id, block.references));
    if (block.references > 0) {
      ++referenced;
    } else if (block.in_tree) {
      ++cached;
    } else {
      ++idle;
    }
  }
  if (cached != cached_ || referenced != referenced_ || idle != free()) {
    return broken(format("blocks free/cached/referenced: counted {}/{}/{}, kept {}/{}/{}", idle, cached,
                         referenced, free(), cached_, referenced_));
  }
  std::vector<bool> seen(blocks_.size(), false);
  for (const int32_t id : free_) {
    const Block& block = blocks_[static_cast<size_t>(id)];
    if (seen[static_cast<size_t>(id)]) return broken(format("block {} is twice in the free list", id));
    seen[static_cast<size_t>(id)] = true;
    if (block.references != 0 || block.in_tree) return broken(format("block {} is free and in use", id));
  }
  return {};
}

}  // namespace tessera::kvcache
