// Tiles of the sm_80 forward and what its kernels take.
#pragma once

#include <cstdint>

#include "attention/cuda/common/division.h"
#include "attention/cuda/common/features.h"
#include "tessera/dtype.h"

namespace tessera::attention::cuda::sm80 {

struct ForwardConfig {
  int warps;  // each owns 16 * slabs query rows
  int slabs;
  int keys;      // per tile
  int resident;  // CTAs of an SM that registers are rationed for

  constexpr int threads() const { return warps * 32; }
  constexpr int rows() const { return warps * slabs * 16; }
  constexpr int shared_bytes(int pitch) const { return (rows() + 2 * keys) * pitch; }
};

// A dimension is padded with zeros in shared memory to 64, 96, 128, 192 or 256.
//
// 32 rows a warp halve the reads of K and V from shared memory, which bound 16 (at D 128 a step of 128 x 64
// reads 160 KB against 288 KB, and 1,600 cycles of mma.sync take 128 bytes each); they fit in registers up to
// D 128. f32 has twice the bytes and is not meant to be fast.
// Tried on an H200, bf16, and lost: two stages of K and V (-4 % at D 128, -3 % at D 64 from 2k up); 32 keys a
// tile (-4 %); QK of the next tile issued before the softmax of this one (-10 %, spills); 256 rows (-8 %); 16
// rows a warp and twice the warps (-9 %). At D 64 three CTAs of 168 registers gain 14 % at 512 and lose 1 %
// at 16k to two, 128 keys a tile gain 5 % and nothing.
constexpr ForwardConfig forward_config(DType type, int dim, bool general) {
  if (type == DType::f32) return {4, 1, dim <= 128 ? 64 : 32, 1};
  if (dim <= 64) return {4, 2, 64, general ? 2 : 3};
  if (dim <= 128) return general ? ForwardConfig{8, 1, 64, 1} : ForwardConfig{4, 2, 64, 2};
  // The general tiles fit the 99 KB of sm_86 and sm_89 up to D 256 and take plain problems there too.
  return general ? ForwardConfig{4, 1, 64, 2} : ForwardConfig{8, 1, 64, 1};
}

// K and V in blocks of a cache (tessera/paged.h): k_batch and v_batch lie between blocks. A contiguous cache
// has blocks of all its rows, and its cache_batch_idx as a table of one column.
struct CacheRows {
  const int32_t* block_table;  // [batch][table_stride], or null: block b
  int64_t table_stride;
  Division by_page;
  int num_blocks;
  const int32_t* seqlens;  // [batch] keys before the call, or null: seqlen
  int seqlen, appended;
  int capacity;  // of a sequence
};

struct ForwardParams {
  const void *q, *k, *v;
  void* o;
  float* lse;
  int64_t q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, o_batch, o_row, o_head;
  int batch, heads, group, head_dim, v_head_dim;
  int row_tiles;        // CTAs of a head
  bool last_first;      // the rows with most keys first
  const uint8_t* seen;  // [batch][kv_heads][seqlen_k]: 0 where no row sees the key; or null
  Features features;
  CacheRows cache;  // of the kernels that walk one
};

}  // namespace tessera::attention::cuda::sm80
