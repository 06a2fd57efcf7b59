// BlockTable: where the K/V of one sequence lie, in order of position.
//
// Invariants (numbers as in README.md):
//  8. Rows are written only into blocks that this table alone references (copy on write otherwise). Appended
//     blocks are private from birth; whole blocks that came by reference are never written.
//
// Not thread-safe: the engine's thread owns it.
#pragma once

#include <cstdint>
#include <vector>

#include "kvcache/block_pool.h"
#include "kvcache/prefix_tree.h"

namespace tessera::kvcache {

class BlockTable {
 public:
  BlockTable() = default;

  int32_t size() const { return static_cast<int32_t>(blocks_.size()); }
  bool empty() const { return blocks_.empty(); }
  int64_t capacity(int block_tokens) const { return static_cast<int64_t>(blocks_.size()) * block_tokens; }
  int32_t id(int32_t index) const { return blocks_[static_cast<size_t>(index)].id(); }
  // For PrefixTree::insert, which may switch entries to the tree's blocks of the same tokens.
  std::vector<BlockRef>& blocks() { return blocks_; }
  const std::vector<BlockRef>& blocks() const { return blocks_; }

  // Takes over what a match found, without its tail. REQUIRES: empty.
  void adopt(PrefixMatch&& match) { blocks_ = std::move(match.blocks); }
  void append(BlockRef block) { blocks_.push_back(std::move(block)); }
  // Puts a private block in the place of a shared one; returns the old reference, which the caller keeps
  // until the copy is on its way.
  BlockRef replace(int32_t index, BlockRef block);
  // Shares the blocks of the first `tokens` tokens. The first writer of a shared tail copies it.
  BlockTable fork(int64_t tokens, int block_tokens) const;
  // Drops the blocks behind the first `tokens` tokens.
  void truncate(int64_t tokens, int block_tokens);
  void release() { blocks_.clear(); }

 private:
  std::vector<BlockRef> blocks_;
};

}  // namespace tessera::kvcache
