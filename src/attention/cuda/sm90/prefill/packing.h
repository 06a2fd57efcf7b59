// When the query heads that share a kv head (a group) share tiles of rows too (Form::grouped): row r of a
// warpgroup's 64 is head r % group at position r / group, as long as whole groups fit, and K and V are read
// once for all of them. Host only.
//
// A row's bits are those of the tile of its head alone: its maximum is taken in the last block of keys that
// it sees itself, blocks that it does not see change nothing, and blocks are cut from position 0.
#pragma once

#include <algorithm>
#include <cstdint>

namespace tessera::attention::cuda::sm90 {

// A group lies inside a warpgroup's 64 rows. False for heads that are no problem's.
inline bool can_pack(int heads, int kv_heads) {
  if (kv_heads < 1 || heads % kv_heads != 0) return false;
  const int group = heads / kv_heads;
  return group > 1 && group <= 64;
}

// Rows of a kv head's tiles up to the last that is not idle, for `seqlen_q` rows of each head of a group.
inline int64_t packed_rows(int64_t seqlen_q, int group) {
  const int positions = 64 / group;
  return seqlen_q / positions * 64 + seqlen_q % positions * group;
}

// Tenths of the time that one warpgroup's rows take in a tile of several: what a tile takes beside its rows
// is about a fifth of that, and a warpgroup without rows does nothing. But one alone has nobody to fill its
// softmax: 64 rows in tiles of 128 take 0.7 of what 128 do (H200).
inline int64_t tile_cost(int64_t rows, int tile_rows) {
  if (rows <= 64 && tile_rows == 128) return 16;
  return (rows + 63) / 64 * 10 + 2;
}

// Of `heads` heads of `rows` rows each in tiles of tile_rows: as many rounds of the longest tile over the
// multiprocessors as all tiles fill.
inline int64_t rounds_cost(int64_t heads, int64_t rows, int tile_rows, int multiprocessors) {
  const int64_t whole = rows / tile_rows, rest = rows % tile_rows;
  const int64_t all =
      heads * (whole * tile_cost(tile_rows, tile_rows) + (rest > 0 ? tile_cost(rest, tile_rows) : 0));
  const int64_t longest = tile_cost(std::min<int64_t>(rows, tile_rows), tile_rows);
  const int64_t round = std::max(1, multiprocessors) * longest;
  return (all + round - 1) / round * longest;
}

// Whether it pays for tiles of `tile_rows` rows: FlashAttention packs where tiles are filled less than 0.9 as
// well apart; here empty warpgroups cost nothing, and fewer tiles may not leave multiprocessors without any.
inline bool packing_pays(int64_t batch, int64_t seqlen_q, int heads, int kv_heads, int tile_rows,
                         int multiprocessors) {
  if (!can_pack(heads, kv_heads) || seqlen_q < 1) return false;
  const int64_t apart = rounds_cost(batch * heads, seqlen_q, tile_rows, multiprocessors);
  const int64_t packed =
      rounds_cost(batch * kv_heads, packed_rows(seqlen_q, heads / kv_heads), tile_rows, multiprocessors);
  return 20 * packed < 19 * apart;
}

}  // namespace tessera::attention::cuda::sm90
