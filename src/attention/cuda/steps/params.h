// What a launch gives to the kernels; everything points to device memory.
#pragma once

#include <cuda.h>
#include <vector_types.h>

#include <cstdint>

#include "attention/cuda/steps/work.h"

namespace tessera::attention::cuda::steps {

// Quotients of numbers below 2^31 by a divisor known at launch.
struct Divisor {
  uint32_t value = 1, multiplier = 1u << 31, shift = 31;
  Divisor() = default;
  explicit Divisor(int64_t divisor) : value(static_cast<uint32_t>(divisor)) {
    uint32_t log = 0;
    while ((uint64_t{1} << log) < value) ++log;
    shift = 31 + log;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << shift) + value - 1) / value);
  }
#ifdef __CUDACC__
  __device__ __forceinline__ int32_t quotient(int32_t x) const {
    return static_cast<int32_t>((uint64_t{static_cast<uint32_t>(x)} * multiplier) >> shift);
  }
  __device__ __forceinline__ int32_t remainder(int32_t x) const {
    return x - quotient(x) * static_cast<int32_t>(value);
  }
#endif
};

// Token t of head h lies at data + (t / tokens) * batch_stride + (t % tokens) * row_stride + h * head_stride.
template <typename T>
struct TokenRows {
  T* data;
  int64_t batch_stride, row_stride, head_stride;
};

inline constexpr int kMostBlocks = 160;  // of a tree's grid: no sm_90 has more multiprocessors

// Partials of a (token, kv head), for the tree: entries [first, first + count) of the list, none when its o
// is written already. A length outside [least, most] is not what was planned: NaN is written.
struct alignas(16) TokenPartials {
  int32_t first, count;
  int32_t least, most;
};

// In the order of the keys; there when the sequence is longer than first_key.
struct alignas(16) PartialEntry {
  int32_t row;  // of the group's first head; the sign bit: it continues the segment of the entry before
  int32_t first_key;
  int32_t block;  // of the grid, which hands it over
  int32_t unused;
};
inline constexpr PartialEntry kNoPartial = {0, INT32_MAX, 0, 0};

// How many warps of a block have handed over everything. A block sets its own to 0 before it lets combine
// start, which begins with a row when the blocks that have parts of it are done. In a sector of its own: many
// ask.
struct alignas(32) BlockProgress {
  uint32_t warps;
};
inline constexpr uint32_t kHandingWarps = 8;  // of a block

struct RowFeatures {
  int32_t causal;
  int32_t window_left, window_right;  // -1: none
  float softcap;                      // 0: none
  const float* alibi_slopes;          // null: none
  int64_t alibi_batch_stride;
  const int32_t* leftpad;  // [batch], or null
};

struct DecodeParams {
  CUtensorMap k_map, v_map;  // boxes of box_rows slots

  TokenRows<const void> q;
  TokenRows<void> o;
  float* lse;  // [batch][heads][tokens] at (t / tokens * heads + h) * tokens + t % tokens, or null
  int32_t batch;
  int32_t tokens;  // query tokens of a sequence
  int32_t kv_heads, group;
  Divisor by_tokens, by_kv_heads, by_group;
  int32_t head_dim;    // of q and K; at most the kernel's, below it only with features: what is missing is 0
  int32_t v_head_dim;  // of V and o, likewise
  float scale;         // of q.k
  float scale_log2;    // scale * log2(e)

  const int32_t* block_table;  // [batch][table_stride], or null: block = block_of[b] or b
  const int32_t* block_of;
  int64_t table_stride;
  Divisor by_page;
  int32_t page;            // slots of a block
  int32_t box_rows;        // 8, 16 or 64: divides the page (any page when contiguous: 64)
  int32_t box_panels;      // of a box: all of a row, or 1 (box_rows = 8)
  const int32_t* seqlens;  // [batch] keys before the call, or null: seqlen
  int32_t seqlen;
  int32_t appended;  // keys that the call adds
  int32_t capacity;  // of a table; lengths are clamped to it

  // Decode: how lengths become pieces. may_split: pieces of rows may be handed over; partials then hold
  // [item][units_most][piece_rows].
  int32_t may_split;
  int32_t piece_rows;  // most rows of a piece: the kernel's groups times 8, or all rows if fewer
  int32_t row_blocks;  // of piece_rows rows in a (sequence, kv head)
  Divisor by_row_blocks;
  Divisor by_blocks;   // of the grid
  int32_t units_most;  // units of `capacity`

  // Tree: the host's list. Block i of the grid walks pieces [piece_first[i], piece_first[i + 1]).
  const Piece* pieces;
  const int32_t* token_list;  // first_token counts in here; null: it is the token

  float* partial_o;    // [partial row][head_dim]
  float2* partial_ml;  // [partial row] (m, l)

  RowFeatures features;

#ifdef __CUDACC__
  // Reads a field of each 64 bytes that every step needs. At a kernel's start all of them are far away: asked
  // for together, before there is anything else to do, they arrive in the time of one. What they add up to
  // has no meaning: the pause, of no time, is there so that the reads are.
  __device__ __forceinline__ void touch() const {
    const auto low = [](const void* pointer) {
      return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(pointer));
    };
    [[maybe_unused]] const uint32_t sum =
        low(q.data) + low(o.data) + low(lse) + static_cast<uint32_t>(tokens) + by_kv_heads.value +
        static_cast<uint32_t>(head_dim) + low(block_table) + by_page.value + low(seqlens) +
        static_cast<uint32_t>(may_split) + by_blocks.value + low(token_list) + low(partial_ml) +
        static_cast<uint32_t>(features.causal);
#ifdef __CUDA_ARCH__
    asm volatile("{\n.reg .pred zero;\nsetp.eq.u32 zero, %0, 0;\n@zero nanosleep.u32 0;\n}\n" ::"r"(sum));
#endif
  }
#endif

  int32_t piece_first[kMostBlocks + 1];  // of the tree

  // Tree: what each row folds. Decode: null, the partials follow from the lengths.
  const TokenPartials* partials;  // [token][kv_head]
  const PartialEntry* entries;
  int32_t entry_stride;  // lists begin at multiples of it, filled up with entries that are never there; or 0
  BlockProgress* progress;  // [blocks of the grid]; null: combine waits for the whole kernel

  // Of kernels that copy rows themselves: batch_stride between blocks, row_stride between slots.
  TokenRows<const void> k, v;
  int32_t num_blocks;
};

inline constexpr int kCombineWarps = 4;
// Partials that a warp of combine has on their way at once.
constexpr int combine_rows(int dim) {
  return dim > 128 ? 8 : 16;
}

}  // namespace tessera::attention::cuda::steps
