// When the query heads that share a kv head (a group) share tiles of rows too (Form::grouped): row r of such
// a tile is head r % group at position r / group, and K and V are read once for all of them. Host only.
//
// A row's bits are those of the tile of its head alone: its maximum is taken in the last block of keys that
// it sees itself, blocks that it does not see change nothing, and blocks are cut from position 0.
#pragma once

#include <algorithm>
#include <cstdint>

namespace tessera::attention::cuda::sm90 {

// The heads of a group lie inside a warpgroup's 64 rows. False for heads that are no problem's.
inline bool can_pack(int heads, int kv_heads) {
  if (kv_heads < 1 || heads % kv_heads != 0) return false;
  const int group = heads / kv_heads;
  return group > 1 && 64 % group == 0;
}

// Whether it pays for tiles of `tile_rows` rows: they hold less than 0.9 as many rows of use apart as packed
// (FlashAttention's rule), and there are fewer rounds of tiles over the multiprocessors. Where all tiles find
// one of their own anyway, fewer of them end no sooner.
inline bool packing_pays(int64_t batch, int64_t seqlen_q, int heads, int kv_heads, int tile_rows,
                         int multiprocessors) {
  if (!can_pack(heads, kv_heads)) return false;
  const int64_t group = heads / kv_heads;
  const auto over = [](int64_t count, int64_t by) { return (count + by - 1) / std::max<int64_t>(1, by); };
  const int64_t apart = over(seqlen_q, tile_rows) * group, packed = over(seqlen_q * group, tile_rows);
  const int64_t groups = batch * kv_heads;
  return 10 * packed < 9 * apart &&
         over(groups * packed, multiprocessors) < over(groups * apart, multiprocessors);
}

}  // namespace tessera::attention::cuda::sm90
