#include "attention/unseen_keys.h"

#include <cstring>

namespace tessera::attention {
namespace {

bool mask_shows(const AttentionProblem& p, int64_t batch, int64_t head, int64_t row, int64_t key) {
  const MaskTensor& mask = p.mask.tensor;
  const int64_t at =
      batch * mask.batch_stride + head * mask.head_stride + row * mask.row_stride + key * mask.key_stride;
  if (mask.kind == MaskKind::boolean) return static_cast<const uint8_t*>(mask.data)[at] != 0;
  float value;
  if (mask.dtype == DType::f32) {
    value = static_cast<const float*>(mask.data)[at];
  } else {
    const uint16_t bits = static_cast<const uint16_t*>(mask.data)[at];
    value = mask.dtype == DType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits);
  }
  return !(value < kHidingMask);
}

// Told by the bits of the exponent; without an early end, so that it runs on vectors.
template <typename Word, Word exponent>
bool finite(const char* row, int count) {
  bool all = true;
  for (int d = 0; d < count; ++d) {
    Word word;
    std::memcpy(&word, row + d * static_cast<int64_t>(sizeof word), sizeof word);
    all &= (word & exponent) != exponent;
  }
  return all;
}

}  // namespace

bool finite_row(DType dtype, const char* row, int count) {
  if (dtype == DType::f32) return finite<uint32_t, 0x7f800000u>(row, count);
  if (dtype == DType::f16) return finite<uint16_t, 0x7c00u>(row, count);
  return finite<uint16_t, 0x7f80u>(row, count);
}

bool any_row_sees(const AttentionProblem& p, const SequenceView& s, int64_t batch, int64_t kv_head,
                  int64_t key) {
  if (key < s.leftpad) return false;
  const Ancestors& tree = p.mask.ancestors;
  const int64_t tree_first = s.keys - tree.tree_keys, words = (tree.tree_keys + 63) / 64;
  const int64_t group = p.heads / p.kv_heads;
  for (int64_t row = 0; row < s.rows; ++row) {
    int64_t i = row + s.keys - s.rows;
    if (tree.tree_keys > 0 && tree.depth != nullptr) {
      i = tree_first + tree.depth[batch * tree.tree_keys + i - tree_first];
    }
    if (key >= tree_first && tree.tree_keys > 0) {
      const int64_t node = key - tree_first;
      if ((tree.bits[(batch * p.seqlen_q + row) * words + node / 64] >> (node % 64) & 1) == 0) continue;
    } else if ((p.mask.causal && key > i) || (p.mask.window_left >= 0 && key < i - p.mask.window_left) ||
               (p.mask.window_right >= 0 && key > i + p.mask.window_right)) {
      continue;
    }
    if (p.mask.tensor.kind == MaskKind::none) return true;
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      if (mask_shows(p, batch, head, row, key)) return true;
    }
  }
  return false;
}

}  // namespace tessera::attention
