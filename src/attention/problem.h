// AttentionProblem: everything that decides what attention computes. Plain data; no pointer is owned.
//
// Conventions that hold in every kernel and in the reference:
//   q [batch, seqlen_q, heads, head_dim], k [.., kv_heads, head_dim], v [.., kv_heads, v_head_dim]; strides
//   in elements. Query head h reads kv head h / (heads / kv_heads). A key at position j is visible to a query
//   at position i iff
//     (!causal || j <= i) && (window_left < 0 || j >= i - window_left) && (window_right < 0 || j <= i +
//     window_right).
//   Without explicit positions, query row r stands at r + seqlen_k - seqlen_q (bottom-right aligned).
//   A row with no visible key gives 0 and LSE = -inf. LSE is the natural logarithm.
//   score = scale * q.k, then softcap (cap * tanh(score / cap)) when softcap > 0, then ALiBi (minus slope of
//   the head * |position of query - position of key|), then the mask.
#pragma once

#include <cstdint>

#include "tessera/dtype.h"

namespace tessera::attention {

// Keys are cut by position alone, counted from position 0 (law 1). Constant per backend.
inline constexpr int kKeyTile = 64;
inline constexpr int kSegment = 512;
inline constexpr int kTilesPerSegment = kSegment / kKeyTile;

struct Mask {
  bool causal = true;
  int64_t window_left = -1;   // keys before the query that stay visible; -1: all
  int64_t window_right = -1;  // keys after it; -1: all (causal narrows it)
};

struct AttentionProblem {
  uint32_t struct_size = sizeof(AttentionProblem);
  int64_t batch = 1;
  int64_t seqlen_q = 0;
  int64_t seqlen_k = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int v_head_dim = 0;
  DType dtype = DType::f32;  // of k and v as stored; q and o are f32 on the CPU's engine path
  float scale = 0.0f;        // REQUIRES: finite; callers pass 1/sqrt(head_dim) explicitly
  Mask mask;
  float softcap = 0.0f;                 // 0: off
  const float* alibi_slopes = nullptr;  // [heads] or null
};

// Checks the sizes and options that no kernel supports; the Status names the field and its limit.
Status validate(const AttentionProblem& problem);

}  // namespace tessera::attention
