#include "kvcache/kv_cache.h"

namespace tessera::kvcache {

BlockRef KvCache::allocate() {
  if (pool_.free() == 0) evicted_ += static_cast<uint64_t>(tree_.evict(1));
  return pool_.allocate();
}

PrefixMatch KvCache::match(const RootKey& key, std::span<const int32_t> tokens) {
  return caching() ? tree_.match(key, tokens) : PrefixMatch{};
}

void KvCache::insert(const RootKey& key, std::span<const int32_t> tokens, BlockTable& table) {
  if (caching()) tree_.insert(key, tokens, table.blocks());
}

void KvCache::forget(const RootKey& key, std::span<const int32_t> tokens) {
  if (caching()) tree_.forget(key, tokens);
}

Status KvCache::check_invariants() const {
  TESSERA_RETURN_IF_ERROR(pool_.check_invariants());
  return tree_.check_invariants();
}

}  // namespace tessera::kvcache
