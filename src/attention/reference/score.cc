#include "attention/reference/score.h"

#include <cmath>

namespace tessera::attention::reference {
namespace {

struct Block {
  uint32_t word[4];
};

// Salmon et al. 2011, section 3.3, with ten rounds.
Block philox(Block counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{counter.word[0]} * 0xD2511F53u, b = uint64_t{counter.word[2]} * 0xCD9E8D57u;
    counter = {{uint32_t(b >> 32) ^ counter.word[1] ^ key0, uint32_t(b),
                uint32_t(a >> 32) ^ counter.word[3] ^ key1, uint32_t(a)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

double mask_element(const AttentionProblem& p, int64_t batch, int64_t head, int64_t row, int64_t key) {
  const MaskTensor& mask = p.mask.tensor;
  const int64_t at =
      batch * mask.batch_stride + head * mask.head_stride + row * mask.row_stride + key * mask.key_stride;
  if (mask.kind == MaskKind::boolean) return static_cast<const uint8_t*>(mask.data)[at];
  if (mask.dtype == DType::f32) return static_cast<const float*>(mask.data)[at];
  const uint16_t bits = static_cast<const uint16_t*>(mask.data)[at];
  return mask.dtype == DType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

// Node of the tree that a key is, or -1 before the tree.
int64_t tree_node(const AttentionProblem& p, int64_t batch, int64_t key) {
  const int64_t node = key - (extent(p, batch).keys - p.mask.ancestors.tree_keys);
  return p.mask.ancestors.tree_keys == 0 || node < 0 ? -1 : node;
}

}  // namespace

Extent extent(const AttentionProblem& p, int64_t batch) {
  Extent e{0, 0, p.seqlen_q, p.seqlen_k, 0};
  if (p.cu_seqlens_q != nullptr) {
    e.first_row = p.cu_seqlens_q[batch];
    e.rows = p.cu_seqlens_q[batch + 1] - e.first_row;
    e.first_key = p.cu_seqlens_k[batch];
    e.length = p.cu_seqlens_k[batch + 1] - e.first_key;
  }
  e.keys = p.seqused_k != nullptr ? p.seqused_k[batch] : e.length;
  return e;
}

int64_t key_position(const AttentionProblem& p, int64_t batch, int64_t key) {
  const Ancestors& tree = p.mask.ancestors;
  const int64_t node = tree_node(p, batch, key);
  if (node < 0 || tree.depth == nullptr) return key;
  return key - node + tree.depth[batch * tree.tree_keys + node];
}

int64_t query_position(const AttentionProblem& p, int64_t batch, int64_t row) {
  const Extent e = extent(p, batch);
  const int64_t key = row + e.keys - e.rows;  // the key that the row's own token is
  return p.mask.ancestors.tree_keys > 0 ? key_position(p, batch, key) : key;
}

bool visible(const AttentionProblem& p, int64_t batch, int64_t head, int64_t row, int64_t key) {
  const Mask& mask = p.mask;
  if (key >= extent(p, batch).keys) return false;
  if (p.leftpad_k != nullptr && key < p.leftpad_k[batch]) return false;
  if (mask.tensor.kind == MaskKind::boolean && mask_element(p, batch, head, row, key) == 0) return false;
  if (mask.tensor.kind == MaskKind::additive && mask_element(p, batch, head, row, key) < kHidingMask)
    return false;
  if (const int64_t node = tree_node(p, batch, key); node >= 0) {
    const int64_t words = (mask.ancestors.tree_keys + 63) / 64;
    const uint64_t* bits = mask.ancestors.bits + (batch * p.seqlen_q + row) * words;
    return (bits[node / 64] >> (node % 64) & 1) != 0;
  }
  const int64_t i = query_position(p, batch, row);
  return (!mask.causal || key <= i) && (mask.window_left < 0 || key >= i - mask.window_left) &&
         (mask.window_right < 0 || key <= i + mask.window_right);
}

Score score(const AttentionProblem& p, int64_t batch, int64_t head, int64_t row, int64_t key, double dot) {
  Score s{double{p.scale} * dot, double{p.scale}};
  if (p.softcap > 0) {
    const double t = std::tanh(s.value / p.softcap);
    s = {p.softcap * t, s.slope * (1 - t * t)};
  }
  if (p.alibi_slopes != nullptr) {
    const int64_t distance = query_position(p, batch, row) - key_position(p, batch, key);
    s.value -= double{p.alibi_slopes[batch * p.alibi_batch_stride + head]} *
               static_cast<double>(distance < 0 ? -distance : distance);
  }
  if (p.mask.tensor.kind == MaskKind::additive) s.value += mask_element(p, batch, head, row, key);
  return s;
}

double keep(const AttentionProblem& p, int64_t batch, int64_t head, int64_t row, int64_t key) {
  const Dropout& d = p.dropout;
  if (d.p == 0) return 1;
  const Block sub = philox({{uint32_t(d.offset), uint32_t(d.offset >> 32), 0x64726f70u, 0}}, uint32_t(d.seed),
                           uint32_t(d.seed >> 32));
  const int64_t column = d.col0 + key;
  const Block random = philox(
      {{uint32_t(column / 16), uint32_t(d.row0 + row), uint32_t(d.head0 + head), uint32_t(d.batch0 + batch)}},
      sub.word[0], sub.word[1]);
  const uint32_t byte = random.word[column % 16 / 4] >> (8 * (column % 4)) & 255;
  return byte <= static_cast<uint32_t>(d.threshold()) ? 256.0 / (d.threshold() + 1) : 0.0;
}

}  // namespace tessera::attention::reference
