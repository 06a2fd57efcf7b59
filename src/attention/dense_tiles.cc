#include "attention/dense_tiles.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "attention/execution.h"
#include "attention/pack_tile.h"
#include "attention/registry.h"
#include "attention/unseen_keys.h"

namespace tessera::attention {
namespace {

// Whether a key may be in use and yet no row see it; without any of these the last row sees every key.
bool may_hide_keys(const AttentionProblem& p) {
  return p.mask.window_left >= 0 || p.mask.window_right >= 0 || p.leftpad_k != nullptr ||
         p.mask.tensor.kind != MaskKind::none || p.mask.ancestors.tree_keys > 0;
}

void clear_v_row(const KvFormat& format, int key, char* pair) {
  char* v = pair + format.k_tile_bytes();
  for (int d = 0; d < format.v_head_dim; ++d) {
    if (format.dtype == DType::f32) {
      std::memset(v + (int64_t{key} * format.v_width() + d) * 4, 0, 4);
    } else {
      std::memset(v + ((int64_t{key / 2} * format.v_width() + d) * 2 + key % 2) * 2, 0, 2);
    }
  }
}

}  // namespace

DenseTiles::DenseTiles(Context& context, const AttentionProblem& p, const Strided<const void*>& k,
                       const Strided<const void*>& v) {
  first_block_.push_back(0);
  for (int64_t batch = 0; batch < p.batch; ++batch) {
    first_block_.push_back(first_block_.back() + (sequence_of(p, batch).keys + kKeyTile - 1) / kKeyTile);
  }
  blocks_.resize(static_cast<size_t>(first_block_.back()));
  std::iota(blocks_.begin(), blocks_.end(), 0);
  const int64_t blocks = first_block_.back();
  const KvFormat format{tile_dtype(p.dtype), p.kv_heads, p.head_dim, p.v_head_dim, kKeyTile};
  void* memory =
      context.workspace(0).get(kInputSlot, static_cast<size_t>(format.bytes_per_block(1) * blocks));
  storage_ = KvStorage::over(format, 1, static_cast<int>(blocks), memory);

  const int64_t element = info(p.dtype).block_bytes;
  const bool check = may_hide_keys(p);
  // Keys of block i / kv_heads for kv head i % kv_heads.
  struct Source {
    int64_t batch, first;  // key in the batch
    int count;
    const char *k, *v;
  };
  const int64_t units = blocks * p.kv_heads;
  const int64_t k_bytes = k.row_stride * element, v_bytes = v.row_stride * element;
  const auto source = [&](int64_t unit) {
    const int64_t block = unit / p.kv_heads, head = unit % p.kv_heads;
    const auto after = std::upper_bound(first_block_.begin(), first_block_.end(), block);
    Source from{};
    from.batch = after - first_block_.begin() - 1;
    from.first = (block - after[-1]) * kKeyTile;
    const SequenceView s = sequence_of(p, from.batch);
    from.count = static_cast<int>(std::min<int64_t>(kKeyTile, s.keys - from.first));
    const auto at = [&](const Strided<const void*>& t) {
      return static_cast<const char*>(t.data) +
             (s.batch_axis * t.batch_stride + (s.first_key + from.first) * t.row_stride +
              head * t.head_stride) *
                 element;
    };
    from.k = at(k);
    from.v = at(v);
    return from;
  };
  // Rows lie kv_heads * dim elements apart, which no hardware prefetcher follows.
  const auto ahead = [&](const char* at, int64_t row_bytes, int rows, int dim) {
    const int64_t skew = static_cast<int64_t>(reinterpret_cast<uintptr_t>(at) % 64);
    return PackAhead{at - skew, row_bytes, rows, static_cast<int>((skew + dim * element + 63) / 64)};
  };
  const auto pack = [&](int64_t unit, const Source& from, const Source* next) {
    char* pair =
        storage_.mutable_pair(0, static_cast<int>(unit / p.kv_heads), static_cast<int>(unit % p.kv_heads));
    PackAhead next_k, next_v;
    PackRows rows{p.dtype, from.k, k_bytes, from.v, v_bytes, 0, from.count};
    if (next != nullptr) {
      next_k = ahead(next->k, k_bytes, next->count, p.head_dim);
      next_v = ahead(next->v, v_bytes, next->count, p.v_head_dim);
      rows.k_ahead = &next_k;
      rows.v_ahead = &next_v;
    }
    pack_tile(format, rows, pair);
    for (int key = 0; check && key < from.count; ++key) {
      if (finite_row(p.dtype, from.v + key * v_bytes, p.v_head_dim)) continue;
      const SequenceView s = sequence_of(p, from.batch);
      if (!any_row_sees(p, s, from.batch, unit % p.kv_heads, from.first + key)) {
        clear_v_row(format, key, pair);
      }
    }
  };
  context.pool.parallel_for(units, 4, [&](int64_t begin, int64_t end, int) {
    Source from = source(begin);
    for (int64_t unit = begin; unit < end; ++unit) {
      Source next{};
      if (unit + 1 < units) next = source(unit + 1);
      pack(unit, from, unit + 1 < units ? &next : nullptr);
      from = next;
    }
  });
}

}  // namespace tessera::attention
