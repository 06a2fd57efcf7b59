// The tiny kernel before a call over a cache that appends: new rows of K and V into the cache, K rotated, and
// q rotated into scratch. One warp a row; every row moves once in and once out.
#pragma once

#include "attention/cuda/steps/params.h"
#include "core/cuda/device.h"
#include "tessera/paged.h"
#include "tessera/rope.h"

namespace tessera::attention::cuda::steps {

struct AppendParams {
  TokenRows<const void> k, v;        // [batch, appended, kv_heads, head_dim]
  TokenRows<void> k_cache, v_cache;  // batch_stride between blocks, row_stride between slots
  TokenRows<const void> q;
  void* rotated;  // q turned: [rows][heads][head_dim]; null: q is not turned
  int32_t batch, appended, tokens, heads, kv_heads, head_dim, v_head_dim;
  int32_t rows;                 // of q, of all sequences
  const int32_t* cu_seqlens_q;  // [batch + 1]: sequences of any number of rows; null: `tokens` of each
  const int32_t* block_table;
  const int32_t* block_of;
  int64_t table_stride;
  int32_t page, capacity, num_blocks;
  const int32_t* seqlens;
  int32_t seqlen;
  int32_t rotary_dim;  // 0: none
  int32_t interleaved;
  const void* cos;
  const void* sin;
  DType table_dtype;
  int64_t table_row_stride;
  int32_t table_positions;
  int32_t advancing_q;  // row r of q stands at the sequence's length + r, else at its length
};

// Launches it for a call's new rows; with a Rotary, q is then the rotated one (kRotatedSlot). REQUIRES:
// append.seqlen > 0, a checked problem; problem.total_q with cu_seqlens_q.
Status write_new_rows(tessera::cuda::Launch& launch, const AttentionProblem& problem, const CacheView& cache,
                      const CacheAppend& append, TokenRows<const void>& q);

// The kernel of a dtype, and how many blocks of 128 threads it wants.
const void* append_kernel_for(DType dtype);
int64_t append_blocks(const AppendParams& params);

}  // namespace tessera::attention::cuda::steps
