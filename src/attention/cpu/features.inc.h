// What changes single scores and probabilities of a tile: soft cap, ALiBi, mask tensors, ancestors, dropout.
// Each works on one row's 64 scores in L1, apart from the products, so the plain kernel carries none of it.
// Compiled per ISA (include it in *_ISA.cc files only).
#pragma once

#include "attention/cpu/dropout.inc.h"
#include "attention/cpu/tile_kernel.h"
#include "attention/problem.h"
#include "simd/vec_math.h"

namespace tessera::attention {
inline namespace TESSERA_SIMD_NAMESPACE {

using namespace simd;

// Far enough below kNoMaximum that 2^(kHidden - m) is 0 for every m >= kNoMaximum.
inline constexpr float kHidden = -3e38f;
inline constexpr float kLog2e = 0x1.715476p+0f;

// Soft cap, then ALiBi, of the first `keys` scores [kKeyTile] of one row; keys is a multiple of 16.
TESSERA_VEC void transform_scores(float* scores, const ItemRows& rows, int row, int64_t first_key,
                                  int keys = kKeyTile) {
  for (int key = 0; key < keys; key += kLanes) {
    F32 s = load(scores + key);
    if (rows.softcap > 0) s = set1(rows.softcap) * tanh(s / set1(rows.softcap));
    if (rows.slope != nullptr) {
      const I32 distance = iota_i32() + set1_i32(static_cast<int32_t>(first_key) + key - rows.position[row]);
      s = fnma(set1(rows.slope[row]), abs(to_f32(distance)), s);
    }
    store(scores + key, s);
  }
}

// Elements [first_key, first_key + kKeyTile) of a mask row side by side: in place when they are so already,
// else copied to `copy`. What lies behind the mask's last key is 0.
template <typename Element>
TESSERA_VEC const Element* mask_elements(const RowFeatures& f, int row, int64_t first_key, Element* copy) {
  const Element* from = static_cast<const Element*>(f.mask[row]);
  const int64_t count = f.keys - first_key < kKeyTile ? f.keys - first_key : kKeyTile;
  if (f.mask_stride == 1 && count == kKeyTile) return from + first_key;
  for (int key = 0; key < kKeyTile; ++key) {
    copy[key] = key < count ? from[(first_key + key) * f.mask_stride] : Element{0};
  }
  return copy;
}

TESSERA_VEC void hide_where_zero(float* scores, const uint8_t* seen) {
  for (int key = 0; key < kKeyTile; key += kLanes) {
    const simd::Mask visible = gt(load_u8(seen + key), set1_i32(0));
    store(scores + key, select(visible, load(scores + key), set1(kHidden)));
  }
}

TESSERA_VEC void add_mask(float* scores, F32 mask) {
  const F32 sum = fma(mask, set1(kLog2e), load(scores));
  store(scores, select(lt(mask, set1(kHidingMask)), set1(kHidden), sum));
}

// ancestors' bits of the tile's keys; keys before the tree are set.
TESSERA_VEC uint64_t tree_bits(const RowFeatures& f, int row, int64_t first_key) {
  const int64_t node = first_key - f.tree_first;  // of the tile's key 0
  const uint64_t* words = f.ancestors[row];
  const int64_t count = (f.tree_keys + 63) / 64;
  if (node <= -kKeyTile) return ~uint64_t{0};
  if (node < 0) return words[0] << -node | ((uint64_t{1} << -node) - 1);
  uint64_t bits = node / 64 < count ? words[node / 64] >> (node % 64) : 0;
  if (node % 64 != 0 && node / 64 + 1 < count) bits |= words[node / 64 + 1] << (64 - node % 64);
  return bits;
}

// ALiBi took a tree key's place for its position: puts that right.
TESSERA_VEC void correct_distances(float* scores, const ItemRows& rows, int row, int64_t first_key) {
  const RowFeatures& f = *rows.features;
  for (int key = 0; key < kKeyTile; ++key) {
    const int64_t node = first_key + key - f.tree_first;
    if (node < 0 || node >= f.tree_keys) continue;
    const int64_t taken = first_key + key - rows.position[row];
    const int64_t meant = f.tree_first + f.depth[node] - rows.position[row];
    const int64_t excess = (taken < 0 ? -taken : taken) - (meant < 0 ? -meant : meant);
    scores[key] += rows.slope[row] * static_cast<float>(excess);
  }
}

// Mask tensor and ancestors. scores [kKeyTile] of one row, after transform_scores.
__attribute__((noinline)) inline void mask_scores(float* scores, const ItemRows& rows, int row,
                                                  int64_t first_key) {
  const RowFeatures& f = *rows.features;
  alignas(64) float copy[kKeyTile];
  if (f.tree_keys > 0) {
    if (f.depth != nullptr && rows.slope != nullptr && first_key + kKeyTile > f.tree_first) {
      correct_distances(scores, rows, row, first_key);
    }
    const uint64_t bits = tree_bits(f, row, first_key);
    uint8_t seen[kKeyTile];
    for (int key = 0; key < kKeyTile; ++key) seen[key] = static_cast<uint8_t>(bits >> key & 1);
    if (bits != ~uint64_t{0}) hide_where_zero(scores, seen);
  }
  switch (f.mask_form) {
    case MaskForm::none:
      break;
    case MaskForm::boolean:
      hide_where_zero(scores, mask_elements(f, row, first_key, reinterpret_cast<uint8_t*>(copy)));
      break;
    case MaskForm::f32: {
      const float* mask = mask_elements(f, row, first_key, copy);
      for (int key = 0; key < kKeyTile; key += kLanes) add_mask(scores + key, load(mask + key));
      break;
    }
    case MaskForm::f16: {
      const uint16_t* mask = mask_elements(f, row, first_key, reinterpret_cast<uint16_t*>(copy));
      for (int key = 0; key < kKeyTile; key += kLanes) add_mask(scores + key, load_f16(mask + key));
      break;
    }
    case MaskForm::bf16: {
      const uint16_t* mask = mask_elements(f, row, first_key, reinterpret_cast<uint16_t*>(copy));
      for (int key = 0; key < kKeyTile; key += kLanes) add_mask(scores + key, load_bf16(mask + key));
      break;
    }
  }
}

// Zeroes the dropped probabilities of `count` rows: of f32 ones, or of those rounded to bf16.
template <int count>
TESSERA_VEC void drop(uint8_t* bytes, const ItemRows& rows, int row, int64_t first_key, float* p,
                      uint16_t* rounded, bool coarse) {
  const RowFeatures& f = *rows.features;
  dropout_tile<count>(f.dropout_key, f.dropout + row, count, first_key, bytes);
  const I32 threshold = set1_i32(static_cast<int32_t>(f.dropout_key.threshold));
  for (int i = 0; i < count * kKeyTile; i += kLanes) {
    const simd::Mask kept = le(load_u8(bytes + i), threshold);
    if (coarse) {
      // Exact: a bf16 number, or 0.
      store_bf16(rounded + i, select(kept, load_bf16(rounded + i), zero()));
    } else {
      store(p + i, select(kept, load(p + i), zero()));
    }
  }
}

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::attention
