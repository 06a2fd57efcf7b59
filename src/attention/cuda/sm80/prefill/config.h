// Tiles of the sm_80 forward and what its kernels take.
#pragma once

#include <cstdint>

#include "attention/cuda/common/features.h"
#include "tessera/dtype.h"

namespace tessera::attention::cuda::sm80 {

// A dimension is padded with zeros in shared memory to one of these.
inline constexpr int kDimClasses[] = {64, 96, 128, 192, 256};

struct ForwardConfig {
  int warps;  // each owns 16 * slabs query rows
  int slabs;
  int keys;    // per tile
  int stages;  // of K and V tiles: 1 loads V under QK and the next K under PV; 2 the next tile under both

  constexpr int threads() const { return warps * 32; }
  constexpr int rows() const { return warps * slabs * 16; }
  constexpr int shared_bytes(int pitch) const { return (rows() + 2 * stages * keys) * pitch; }
};

// 32 rows a warp halve the reads of K and V from shared memory, which bound 16 (at D 128 a step of 128 x 64
// reads 160 KB against 288 KB, and 1,600 cycles of mma.sync take 128 bytes each); they fit in registers up to
// D 128. f32 has twice the bytes and is not meant to be fast.
constexpr ForwardConfig forward_config(DType type, int dim, bool general) {
  if (type == DType::f32) return {4, 1, dim <= 128 ? 64 : 32, 1};
  if (dim <= 64) return {4, 2, 64, 1};
  if (dim <= 128) return general ? ForwardConfig{8, 1, 64, 1} : ForwardConfig{4, 2, 64, 1};
  return {8, 1, 64, 1};
}

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
};

}  // namespace tessera::attention::cuda::sm80
