// Tiles of the sm_80 backward and what its kernels take.
#pragma once

#include <cstdint>

#include "attention/cuda/common/features.h"
#include "tessera/dtype.h"

namespace tessera::attention::cuda::sm80 {

// Of shared memory, for a barrier and Steps.
inline constexpr int kStepBytes = 384;

// A CTA owns `keys` keys and walks tiles of `rows` query rows. Each product splits its result between the
// warps in its own way: so many warps along its first axis, the rest along the second.
struct BackwardConfig {
  int warps;
  int rows, keys;
  int score_warps;     // of s and dp [rows][keys], along rows
  int gradient_warps;  // of dk and dv [keys][dim], along keys
  int query_warps;     // of dq [rows][dim], along rows
  int q_stages;        // 2: the next rows of q load under the whole step

  constexpr int threads() const { return warps * 32; }
  // dim_pitch: bytes between rows of q, k, v and do; score_pitch: of p and ds.
  constexpr int shared_bytes(int dim_pitch, int score_pitch) const {
    return (2 * keys + (q_stages + 1) * rows) * dim_pitch + 2 * rows * score_pitch + 16 * rows + kStepBytes;
  }
};

// Problems without features, with any, and with any in the shared memory of few devices.
enum class BackwardTiles { plain, general, small };

// Tiles that fit the 99 KB of sm_86 and sm_89: f32 of 64 columns has them already, of more than 128 none.
constexpr bool has_small_tiles(DType type, int dim) {
  return type == DType::f32 ? dim > 64 && dim <= 128 : dim > 64;
}

// 32 x 32 (or 32 x 64) of scores a warp: the fewest bytes of shared memory per product that leave room for dk
// and dv in registers. All fit the 163 KB of sm_80; of those for 64 columns the general ones fit 99 KB.
constexpr BackwardConfig backward_config(DType type, int dim, BackwardTiles tiles) {
  const bool general = tiles != BackwardTiles::plain;
  if (tiles == BackwardTiles::small) {
    if (type == DType::f32) return {4, 32, 32, 2, 2, 2, 1};
    if (dim <= 96) return {8, 64, 64, 4, 4, 4, 2};
    if (dim <= 128) return {8, 64, 64, 4, 2, 2, 1};
    if (dim <= 192) return {8, 32, 64, 2, 2, 2, 1};
    return {4, 32, 32, 2, 2, 2, 1};
  }
  if (type == DType::f32) {
    if (dim <= 128) return {4, 32, 64, 2, 2, 2, 2};
    return {4, 32, 32, 2, 2, 2, 1};
  }
  // 64 x 64 scores a warp leave the features no registers.
  if (dim <= 64) return {8, general ? 64 : 128, 128, general ? 2 : 4, 4, 4, 2};
  if (dim <= 96) return {8, 64, 128, 2, 4, 4, 2};
  if (dim <= 128) return {8, 64, 128, 2, 4, 2, 2};
  if (dim <= 192) return {8, 64, 64, 4, 2, 2, 2};
  return {8, 64, 64, 4, 2, 2, 1};
}

struct BackwardParams {
  const void *q, *k, *v, *o, *dout;
  void *dq, *dk, *dv;
  const float* lse;
  int64_t q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, o_batch, o_row, o_head;
  int64_t dout_batch, dout_row, dout_head, dq_batch, dq_row, dq_head, dk_batch, dk_row, dk_head;
  int64_t dv_batch, dv_row, dv_head;
  int batch, heads, kv_heads, head_dim, v_head_dim;
  int row_tiles, key_tiles;  // of the longest sequence
  int together;              // key tiles of a head that surely run at the same time
  int set_heads;             // kv heads whose tiles begin in turn
  // Workspace. Rows are padded to whole tiles.
  float* lse2;          // [batch][heads][row_tiles * rows] LSE * log2(e); +inf where a row sees nothing
  float* delta;         // the same: sum of do * o
  uint8_t* sees;        // the same: 0 where a row sees nothing
  float* dq_sums;       // [batch][heads][row_tiles][rows * dim] in the order of the fragments
  uint32_t* visits;     // [batch][heads][row_tiles] key tiles that have added to dq_sums
  uint32_t* ticket;     // CTAs that have begun
  const uint8_t* seen;  // [batch][kv_heads][seqlen_k] as in ForwardParams, or null
  Features features;
};

}  // namespace tessera::attention::cuda::sm80
