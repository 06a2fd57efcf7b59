#include "kvcache/block_table.h"

#include "core/check.h"

namespace tessera::kvcache {

BlockRef BlockTable::replace(int32_t index, BlockRef block) {
  TESSERA_CHECK(index >= 0 && index < size());
  std::swap(blocks_[static_cast<size_t>(index)], block);
  return block;
}

BlockTable BlockTable::fork(int64_t tokens, int block_tokens) const {
  const int64_t count = (tokens + block_tokens - 1) / block_tokens;
  TESSERA_CHECK(count <= size());
  BlockTable branch;
  branch.blocks_.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) branch.blocks_.push_back(blocks_[static_cast<size_t>(i)].share());
  return branch;
}

void BlockTable::truncate(int64_t tokens, int block_tokens) {
  const int64_t count = (tokens + block_tokens - 1) / block_tokens;
  while (size() > count) blocks_.pop_back();
}

}  // namespace tessera::kvcache
