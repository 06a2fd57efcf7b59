// What a kernel must know about masks, scores and dropout: the problem as plain numbers and device pointers,
// filled on the host and passed by value.
#pragma once

#include <cmath>
#include <cstdint>

#include "attention/cpu/dropout_key.h"
#include "attention/dropout.h"
#include "attention/problem.h"

namespace tessera::attention::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;
// Stands for "no window": larger than any position, and the sum of two still fits 32 bits.
inline constexpr int kNoWindow = 1 << 30;

struct Features {
  // Where rows and keys lie; device pointers, null as in the problem.
  const int32_t* cu_seqlens_q = nullptr;
  const int32_t* cu_seqlens_k = nullptr;
  const int32_t* seqused_k = nullptr;
  const int32_t* leftpad_k = nullptr;
  int seqlen_q = 0, seqlen_k = 0;
  // Key j is in row i's interval iff i - left <= j <= i + right (causal: right = 0).
  int left = kNoWindow, right = kNoWindow;
  // Scores: dot * scale, capped, minus slope * distance, plus the mask; all in units of log2.
  float scale = 0;    // of dot, natural units
  float softcap = 0;  // 0: off
  const float* slopes = nullptr;
  int64_t slope_batch_stride = 0;
  MaskTensor mask;
  const uint64_t* tree_bits = nullptr;  // [batch][seqlen_q][tree_words]
  const int32_t* tree_depth = nullptr;  // [batch][tree_keys] or null
  int tree_keys = 0, tree_words = 0;
  bool dropout = false;
  float keep_scale = 1.0f;  // of a kept probability
  DropoutKey key;

  // More than intervals decides what a row sees or what a score is: the general kernels.
  bool general() const {
    return softcap > 0 || slopes != nullptr || mask.kind != MaskKind::none || tree_keys > 0 || dropout ||
           !(scale > 0);
  }
  // A key may be hidden from every row by something other than its position.
  bool holes() const { return mask.kind != MaskKind::none || tree_keys > 0; }
};

inline Features make_features(const AttentionProblem& p) {
  Features f;
  const auto window = [](int64_t keys) {
    return keys < 0 || keys >= kNoWindow ? kNoWindow : static_cast<int>(keys);
  };
  f.cu_seqlens_q = p.cu_seqlens_q;
  f.cu_seqlens_k = p.cu_seqlens_k;
  f.seqused_k = p.seqused_k;
  f.leftpad_k = p.leftpad_k;
  f.seqlen_q = static_cast<int>(p.seqlen_q);
  f.seqlen_k = static_cast<int>(p.seqlen_k);
  f.left = window(p.mask.window_left);
  f.right = p.mask.causal ? 0 : window(p.mask.window_right);
  f.scale = p.scale;
  f.softcap = p.softcap;
  f.slopes = p.alibi_slopes;
  f.slope_batch_stride = p.alibi_batch_stride;
  f.mask = p.mask.tensor;
  if (p.mask.ancestors.tree_keys > 0) {
    f.tree_keys = static_cast<int>(p.mask.ancestors.tree_keys);
    f.tree_words = (f.tree_keys + 63) / 64;
    f.tree_bits = p.mask.ancestors.bits;
    f.tree_depth = p.mask.ancestors.depth;
  }
  if (p.dropout.p > 0) {
    f.dropout = true;
    f.key = dropout_key(p.dropout);
    f.keep_scale = p.dropout.scale();
  }
  return f;
}

}  // namespace tessera::attention::cuda
