// What the forward kernel is told, made by the host once a call.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "attention/cuda/common/division.h"
#include "attention/cuda/common/features.h"

namespace tessera::attention::cuda::sm90 {

struct PrefillParams {
  // Dimensions {dim, rows, heads, batches}, boxes of 64 x (64, box_rows, box_rows, 64). Grouped, q and o are
  // {dim, heads, rows, batches} in boxes of 64 x group x positions.
  CUtensorMap q, k, v, o;
  float* lse;  // row r of head h of batch b at b * lse_batch_stride + h * lse_head_stride + r; or null
  int64_t lse_batch_stride, lse_head_stride;
  int32_t* next_tile;                 // 0 between launches; null: tiles are dealt in turn
  int32_t seqlen_q, seqlen_k;         // of every batch, or the longest
  int32_t window_left, window_right;  // kNoWindow: open. Causal is window_right = 0.
  float scale_log2;                   // scale * log2(e), above 0
  int32_t tiles;                      // of kRows rows, over all heads
  Division m_blocks;                  // tiles of one head
  Division heads, group;              // head index -> batch and head (grouped: kv head); head -> kv head
  // Longest first: heads are taken in sections of kSectionBytes of K and V, and inside one the last rows
  // of every head come before those above them. section_tiles = section_heads * m_blocks.
  Division section_heads, section_tiles;
  int32_t total_heads;  // batch * heads (grouped: kv heads)
  int32_t box_rows;     // keys of one load; kKeys, or a page's where those are fewer
  // Ragged forms. Device pointers, null as in the problem.
  const int32_t *cu_seqlens_q, *cu_seqlens_k, *seqused_k, *leftpad_k;
  int32_t total_q, total_k;    // rows of all sequences, where cu_seqlens are
  const int32_t* block_table;  // [batch][table_stride] or null
  int32_t table_stride, pages;
  Division page;  // keys of a page
  // For rows that a box would write past their sequence: 16-byte stores.
  void* o_data;
  int64_t o_batch_stride, o_row_stride, o_head_stride;
  int32_t v_head_dim;
  // Behind all that the plain form reads, whose code is recorded (tests/cuda/code_test.py).
  int32_t added;  // keys of each batch beyond what seqused_k says
  // Grouped: a warpgroup's 64 rows hold as many whole groups as there is room for, one a position, and the
  // rest are idle. position_of = ceil(2^16 / group).
  Division positions;  // of a warpgroup
  int32_t position_of;
};

// Form::general's. window_left and window_right only bound the blocks that are walked; features says what a
// row sees.
struct GeneralParams : PrefillParams {
  Features features;
  const uint8_t*
      seen;  // [batch][kv_heads][seqlen_k], 0: no row sees the key; null where positions alone tell
};

}  // namespace tessera::attention::cuda::sm90
