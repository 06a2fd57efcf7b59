// What the forward kernel is told, made by the host once a call.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "attention/cuda/common/division.h"

namespace tessera::attention::cuda::sm90 {

struct PrefillParams {
  CUtensorMap q, k, v, o;  // boxes of 64, BN, BN and 64 rows
  float* lse;              // [batch][heads][seqlen_q], or null
  int32_t* next_tile;      // 0 between launches; null: tiles are dealt in turn
  int32_t seqlen_q, seqlen_k;
  int32_t first_position;             // of row 0: seqlen_k - seqlen_q
  int32_t window_left, window_right;  // kNoWindow: open. Causal is window_right = 0.
  float scale_log2;                   // scale * log2(e), above 0
  int32_t tiles;                      // of kRows rows, over all heads
  Division m_blocks;                  // tiles of one head
  Division heads, group;              // head index -> batch and head; head -> kv head
  // Longest first: heads are taken in sections whose K and V fit in L2 together, and inside one the last rows
  // of every head come before those above them. section_tiles = section_heads * m_blocks.
  Division section_heads, section_tiles;
  int32_t total_heads;  // batch * heads
};

inline constexpr int32_t kNoWindow = 1 << 29;

}  // namespace tessera::attention::cuda::sm90
