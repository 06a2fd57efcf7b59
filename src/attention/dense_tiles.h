// K and V of a caller's tensors, packed once into the tiles that the kernels read.
#pragma once

#include <vector>

#include "attention/kv_storage.h"
#include "attention/problem.h"
#include "core/context.h"

namespace tessera::attention {

// Lives in workspace slot 1 of worker 0. A tile holds 64 keys of one batch and kv head; batches have their
// tiles one after the other, as many as its keys in use need. Halves become f32. V rows that hold inf or NaN
// and that no query row sees become 0, so that a product with their probability of 0 is 0.
class DenseTiles {
 public:
  // REQUIRES: a valid problem and valid tensors. Moves K and V once in and once out, over the pool.
  DenseTiles(Context& context, const AttentionProblem& problem, const Strided<const void*>& k,
             const Strided<const void*>& v);

  const KvStorage& storage() const { return storage_; }
  // Block ids of the batch's tiles, in order of position.
  const int32_t* table(int64_t batch) const {
    return blocks_.data() + first_block_[static_cast<size_t>(batch)];
  }

 private:
  KvStorage storage_;
  std::vector<int32_t> blocks_;       // 0, 1, 2...
  std::vector<int64_t> first_block_;  // [batch + 1]
};

}  // namespace tessera::attention
