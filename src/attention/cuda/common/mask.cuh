// Which keys a row sees and what its scores are (rules 2 and 3 of tessera/attention.h), over the row and
// column numbers of fragments. Pure device functions; the layout of a fragment is philox.cuh's.
//
// Intervals (causal, windows, leftpad, seqused, varlen) are two numbers a row. All else (masks, trees) is
// decided element by element, in passes over a fragment, each behind one uniform branch.
#pragma once

#include <cstdint>

#include "attention/cuda/common/features.h"
#include "attention/cuda/common/softmax.cuh"

namespace tessera::attention::cuda {

// One batch's rows and keys.
struct Sequence {
  int first_row, first_key;  // in tensors without a batch axis (varlen); else 0
  int rows, length, keys;    // keys: of `length`, in use
  int leftpad;
  int shift;  // position of row r: r + shift
  int tree;   // first key of the tree, or `keys`

  __device__ __forceinline__ int position(int row) const { return row + shift; }
};

__device__ __forceinline__ Sequence sequence_of(const Features& f, int batch) {
  Sequence s{0, 0, f.seqlen_q, f.seqlen_k, 0, 0, 0, 0};
  if (f.cu_seqlens_q != nullptr) {
    s.first_row = f.cu_seqlens_q[batch];
    s.rows = f.cu_seqlens_q[batch + 1] - s.first_row;
    s.first_key = f.cu_seqlens_k[batch];
    s.length = f.cu_seqlens_k[batch + 1] - s.first_key;
  }
  s.keys = f.seqused_k != nullptr ? f.seqused_k[batch] : s.length;
  s.leftpad = f.leftpad_k != nullptr ? f.leftpad_k[batch] : 0;
  s.shift = s.keys - s.rows;
  s.tree = s.keys - f.tree_keys;
  return s;
}

struct Interval {
  int begin, end;  // [begin, end); empty when end <= begin
};

// Keys that a row at `position` may see by its interval.
__device__ __forceinline__ Interval keys_of(const Features& f, const Sequence& s, int position) {
  return {max(s.leftpad, position - f.left), min(s.keys, position + f.right + 1)};
}

// The union of keys_of over rows [row, row + count). A tree's rows see keys of their own, up to the last.
__device__ __forceinline__ Interval keys_of_rows(const Features& f, const Sequence& s, int row, int count) {
  if (f.tree_keys > 0) return {s.leftpad, s.keys};
  const int last = min(row + count, s.rows) - 1;
  return {max(s.leftpad, s.position(row) - f.left), min(s.keys, s.position(last) + f.right + 1)};
}

// Keys that each of those rows sees by its interval: tiles inside need no mask.
__device__ __forceinline__ Interval keys_of_all_rows(const Features& f, const Sequence& s, int row,
                                                     int count) {
  const int last = min(row + count, s.rows) - 1;
  return {max(s.leftpad, s.position(last) - f.left), min(s.keys, s.position(row) + f.right + 1)};
}

// Rows that may see a key of [key, key + count) by their intervals.
__device__ __forceinline__ Interval rows_of_keys(const Features& f, const Sequence& s, int key, int count) {
  const int first = max(key, s.leftpad), last = min(key + count, s.keys) - 1;
  if (last < first) return {0, 0};
  return {max(0, first - f.right - s.shift), min(s.rows, last + f.left + 1 - s.shift)};
}

// -inf to every element outside its row's interval. column: of the lane's first element. The limits are
// moved instead of the columns, so that each element compares with a constant.
template <int N>
__device__ __forceinline__ void hide_outside(float (&s)[N], const Interval (&keys)[2], int column) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int begin = keys[half].begin - column, end = keys[half].end - column;
#pragma unroll
    for (int e = 0; e < N; ++e) {
      if (e / 2 % 2 != half) continue;
      const int at = 8 * (e / 4) + e % 2;
      s[e] = at >= begin && at < end ? s[e] : kMinusInfinity;
    }
  }
}

__device__ __forceinline__ float bfloat_bits_to_float(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

// An element of the mask tensor as what is added to the score: -inf hides.
__device__ __forceinline__ float mask_value(const MaskTensor& mask, int64_t at) {
  if (mask.kind == MaskKind::boolean) {
    return static_cast<const uint8_t*>(mask.data)[at] != 0 ? 0.0f : kMinusInfinity;
  }
  float x;
  if (mask.dtype == DType::f32) {
    x = static_cast<const float*>(mask.data)[at];
  } else {
    const uint16_t bits = static_cast<const uint16_t*>(mask.data)[at];
    x = mask.dtype == DType::f16 ? half_bits_to_float(bits) : bfloat_bits_to_float(bits);
  }
  return x < kHidingMask ? kMinusInfinity : x;
}

// Position of key `key`, and of row `row`: by depth inside a tree.
__device__ __forceinline__ int key_position(const Features& f, const Sequence& s, int batch, int key) {
  if (f.tree_depth == nullptr || key < s.tree || key >= s.keys) return key;
  return s.tree + f.tree_depth[int64_t{batch} * f.tree_keys + key - s.tree];
}
__device__ __forceinline__ int row_position(const Features& f, const Sequence& s, int batch, int row) {
  return f.tree_keys > 0 ? key_position(f, s, batch, s.position(row)) : s.position(row);
}

// Whether the row sees the key, by everything.
__device__ __forceinline__ bool sees(const Features& f, const Sequence& s, int batch, int head, int row,
                                     int key) {
  if (key < s.leftpad || key >= s.keys) return false;
  if (f.mask.kind != MaskKind::none) {
    const int64_t at = batch * f.mask.batch_stride + head * f.mask.head_stride + row * f.mask.row_stride +
                       key * f.mask.key_stride;
    if (mask_value(f.mask, at) == kMinusInfinity) return false;
  }
  if (f.tree_keys > 0 && key >= s.tree) {
    const int node = key - s.tree;
    return f.tree_bits[(int64_t{batch} * f.seqlen_q + row) * f.tree_words + node / 64] >> (node % 64) & 1;
  }
  const Interval keys = keys_of(f, s, row_position(f, s, batch, row));
  return key >= keys.begin && key < keys.end;
}

// Turns dots into scores in units of log2, -inf where the row does not see the key, by every feature.
// row, column: of the lane's first element. With kSlope, gradient[e] is multiplied by d score / d (scale *
// dot). Reads nothing outside the problem.
template <bool kSlope, int N>
__device__ __forceinline__ void score_fragment(const Features& f, const Sequence& s, int batch, int head,
                                               int row, int column, float (&x)[N], float* gradient) {
  if (f.softcap > 0) {
    const float inner = f.scale / f.softcap, outer = f.softcap * kLog2E;
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const float t = tanhf(x[e] * inner);
      x[e] = outer * t;
      if constexpr (kSlope) gradient[e] *= 1.0f - t * t;
    }
  } else {
    const float factor = f.scale * kLog2E;
#pragma unroll
    for (int e = 0; e < N; ++e) x[e] *= factor;
  }
  const int rows[2] = {row, row + 8};
  if (f.slopes != nullptr) {
    const float slope = f.slopes[batch * f.slope_batch_stride + head] * kLog2E;
    const int position[2] = {row < s.rows ? row_position(f, s, batch, row) : 0,
                             row + 8 < s.rows ? row_position(f, s, batch, row + 8) : 0};
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const int key = column + 8 * (e / 4) + e % 2;
      const int at = f.tree_keys > 0 ? key_position(f, s, batch, key) : key;
      x[e] -= slope * static_cast<float>(abs(position[e / 2 % 2] - at));
    }
  }
  if (f.mask.kind != MaskKind::none) {
    const int64_t base = batch * f.mask.batch_stride + head * f.mask.head_stride;
    // Boolean masks and each dtype of additive ones share one loop: a load is the cost, not the branch.
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const int key = column + 8 * (e / 4) + e % 2;
      if (rows[e / 2 % 2] < s.rows && key < s.keys) {
        const float added =
            mask_value(f.mask, base + rows[e / 2 % 2] * f.mask.row_stride + key * f.mask.key_stride);
        // Chosen, not added: a hidden dot may be NaN.
        x[e] = added == kMinusInfinity ? kMinusInfinity : x[e] + kLog2E * added;
      }
    }
  }
  Interval keys[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    keys[half] = {0, 0};
    if (rows[half] >= s.rows) continue;
    keys[half] = keys_of(f, s, row_position(f, s, batch, rows[half]));
  }
  if (f.tree_keys == 0) {
    hide_outside(x, keys, column);
    return;
  }
#pragma unroll
  for (int e = 0; e < N; ++e) {
    const int key = column + 8 * (e / 4) + e % 2;
    const bool seen = rows[e / 2 % 2] < s.rows && sees(f, s, batch, head, rows[e / 2 % 2], key);
    x[e] = seen ? x[e] : kMinusInfinity;
  }
}

}  // namespace tessera::attention::cuda
