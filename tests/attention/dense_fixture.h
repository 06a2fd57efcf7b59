// Problems over dense tensors for tests: every feature by name, tensors in the problem's dtype with NaN in
// the gaps and in every row that nothing sees, the reference's answer, and the plain form in the same dtype.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "attention/reference/reference.h"
#include "attention/reference/score.h"
#include "core/context.h"
#include "tessera/attention.h"

namespace tessera::attention {

enum class Feature {
  causal,
  window,
  softcap,
  alibi,
  alibi_per_batch,
  boolean_mask,
  additive_mask,
  varlen,
  seqused,
  leftpad,
  dropout,
  grouped,
  wide_values,
  gaps,
  ancestors,
};
inline constexpr Feature kEveryFeature[] = {
    Feature::causal,          Feature::window,       Feature::softcap,       Feature::alibi,
    Feature::alibi_per_batch, Feature::boolean_mask, Feature::additive_mask, Feature::varlen,
    Feature::seqused,         Feature::leftpad,      Feature::dropout,       Feature::grouped,
    Feature::wide_values,     Feature::gaps,         Feature::ancestors};

inline const char* name(Feature feature) {
  const char* const names[] = {"causal",       "window",        "softcap",     "alibi",   "alibi_per_batch",
                               "boolean_mask", "additive_mask", "varlen",      "seqused", "leftpad",
                               "dropout",      "grouped",       "wide_values", "gaps",    "ancestors"};
  return names[static_cast<size_t>(feature)];
}

// A value as a tensor of the dtype holds it.
inline float rounded(DType dtype, double value) {
  const float narrow = static_cast<float>(value);
  if (dtype == DType::f16) return f16_to_f32(f32_to_f16(narrow));
  if (dtype == DType::bf16) return bf16_to_f32(f32_to_bf16(narrow));
  return narrow;
}

// [axes.batches][rows][heads][dim] in the dtype, with `gap` elements of NaN behind heads, rows and batches.
class DenseTensor {
 public:
  DenseTensor() = default;
  DenseTensor(DType dtype, int64_t batches, int64_t rows, int64_t heads, int64_t dim, int64_t gap)
      : dtype_(dtype), batches_(batches), rows_(rows), heads_(heads), dim_(dim) {
    head_stride_ = dim + gap;
    row_stride_ = heads * head_stride_ + gap;
    batch_stride_ = rows * row_stride_ + gap;
    bytes_.assign(static_cast<size_t>((batches * batch_stride_ + 1) * element()), static_cast<char>(0xff));
  }
  void fill(std::mt19937& random, float scale = 1.0f) {
    std::normal_distribution<float> normal(0.0f, scale);
    for (int64_t b = 0; b < batches_; ++b) {
      for (int64_t r = 0; r < rows_; ++r) {
        for (int64_t h = 0; h < heads_; ++h) {
          for (int64_t d = 0; d < dim_; ++d) set(b, r, h, d, normal(random));
        }
      }
    }
  }
  void set(int64_t b, int64_t r, int64_t h, int64_t d, float value) {
    char* to = bytes_.data() + offset(b, r, h, d) * element();
    if (dtype_ == DType::f32) {
      std::memcpy(to, &value, 4);
    } else {
      const uint16_t bits = dtype_ == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
      std::memcpy(to, &bits, 2);
    }
  }
  void set_row(int64_t b, int64_t r, int64_t h, float value) {
    for (int64_t d = 0; d < dim_; ++d) set(b, r, h, d, value);
  }
  float at(int64_t b, int64_t r, int64_t h, int64_t d) const {
    const char* from = bytes_.data() + offset(b, r, h, d) * element();
    if (dtype_ == DType::f32) {
      float value;
      std::memcpy(&value, from, 4);
      return value;
    }
    uint16_t bits;
    std::memcpy(&bits, from, 2);
    return dtype_ == DType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits);
  }
  // Every element, contiguous.
  std::vector<float> values() const {
    std::vector<float> all;
    for (int64_t b = 0; b < batches_; ++b) {
      for (int64_t r = 0; r < rows_; ++r) {
        for (int64_t h = 0; h < heads_; ++h) {
          for (int64_t d = 0; d < dim_; ++d) all.push_back(at(b, r, h, d));
        }
      }
    }
    return all;
  }
  reference::Operand operand(const std::vector<float>& values) const {
    return {values.data(), rows_ * heads_ * dim_, heads_ * dim_, dim_};
  }
  Strided<const void*> view() const { return {bytes_.data(), batch_stride_, row_stride_, head_stride_}; }
  Strided<void*> view() { return {bytes_.data(), batch_stride_, row_stride_, head_stride_}; }
  const std::vector<char>& bytes() const { return bytes_; }
  int64_t heads() const { return heads_; }
  int64_t dim() const { return dim_; }

 private:
  int64_t element() const { return dtype_ == DType::f32 ? 4 : 2; }
  int64_t offset(int64_t b, int64_t r, int64_t h, int64_t d) const {
    return b * batch_stride_ + r * row_stride_ + h * head_stride_ + d;
  }
  DType dtype_ = DType::f32;
  int64_t batches_ = 0, rows_ = 0, heads_ = 0, dim_ = 0;
  int64_t batch_stride_ = 0, row_stride_ = 0, head_stride_ = 0;
  std::vector<char> bytes_;
};

// A problem with what its pointers point at. Set p's sizes, add features, then fill().
struct DenseCase {
  AttentionProblem p;
  std::mt19937 random;
  int64_t gap = 0;
  DenseTensor q, k, v, o;
  std::vector<float> lse;
  // What p points at.
  std::vector<int32_t> cu_q, cu_k, used, pad, depth;
  std::vector<float> slopes;
  std::vector<char> mask;
  std::vector<uint64_t> bits;

  DenseCase(DType dtype, int64_t batch, int64_t seqlen_q, int64_t seqlen_k, int heads, int dim, uint32_t seed)
      : random(seed) {
    p.batch = batch;
    p.seqlen_q = seqlen_q;
    p.seqlen_k = seqlen_k;
    p.heads = p.kv_heads = heads;
    p.head_dim = p.v_head_dim = dim;
    p.dtype = dtype;
    p.scale = 1.0f / std::sqrt(static_cast<float>(dim));
    p.mask.causal = false;
  }
  DenseCase(const DenseCase&) = delete;

  int below(int64_t limit) { return static_cast<int>(random() % static_cast<uint32_t>(limit)); }

  void add(Feature feature) {
    switch (feature) {
      case Feature::causal:
        p.mask.causal = true;
        break;
      case Feature::window:
        p.mask.window_left = 1 + below(p.seqlen_k);
        p.mask.window_right = below(9);
        break;
      case Feature::softcap:
        p.softcap = 1.5f;
        break;
      case Feature::alibi:
      case Feature::alibi_per_batch:
        p.alibi_batch_stride = feature == Feature::alibi_per_batch ? p.heads + 1 : p.alibi_batch_stride;
        slopes.resize(static_cast<size_t>(p.batch * (p.heads + 1)));
        for (float& slope : slopes) slope = static_cast<float>(below(64)) / 128.0f;
        p.alibi_slopes = slopes.data();
        break;
      case Feature::boolean_mask:
      case Feature::additive_mask:
        add_mask(feature == Feature::boolean_mask);
        break;
      case Feature::varlen:
        cu_q = lengths(p.seqlen_q);
        cu_k = lengths(p.seqlen_k);
        p.cu_seqlens_q = cu_q.data();
        p.cu_seqlens_k = cu_k.data();
        break;
      case Feature::seqused:
        for (int64_t b = 0; b < p.batch; ++b) used.push_back(below(reference::extent(p, b).length + 1));
        p.seqused_k = used.data();
        break;
      case Feature::leftpad:
        for (int64_t b = 0; b < p.batch; ++b) pad.push_back(below(reference::extent(p, b).length / 2 + 1));
        p.leftpad_k = pad.data();
        break;
      case Feature::dropout:
        p.dropout.p = 0.2f;
        p.dropout.seed = random();
        p.dropout.offset = random();
        p.dropout.row0 = below(100);
        p.dropout.col0 = 16 * below(100);
        break;
      case Feature::grouped:
        p.kv_heads = p.heads / 2;
        break;
      case Feature::wide_values:
        p.v_head_dim = p.head_dim + 16;
        break;
      case Feature::gaps:
        gap = 3;
        break;
      case Feature::ancestors:
        add_ancestors();
        break;
    }
  }

  // Lengths from 0 (the last but one) to the longest (the first).
  std::vector<int32_t> lengths(int64_t longest) {
    std::vector<int32_t> sums = {0};
    for (int64_t b = 0; b < p.batch; ++b) {
      const int length = b == 0 ? static_cast<int>(longest) : b == p.batch - 2 ? 0 : 1 + below(longest);
      sums.push_back(sums.back() + length);
    }
    return sums;
  }

  // Broadcast over heads or batches at random; whole rows and whole columns hidden. NaN where nothing may
  // read.
  void add_mask(bool boolean) {
    MaskTensor& m = p.mask.tensor;
    m.kind = boolean ? MaskKind::boolean : MaskKind::additive;
    m.dtype = p.dtype;
    const int element = boolean ? 1 : p.dtype == DType::f32 ? 4 : 2;
    const int64_t keys = p.seqlen_k + 5;
    m.key_stride = below(4) == 0 ? 2 : 1;
    m.row_stride = keys * m.key_stride;
    m.head_stride = below(2) == 0 ? 0 : p.seqlen_q * m.row_stride;
    m.batch_stride = below(2) == 0 ? 0 : p.heads * p.seqlen_q * m.row_stride;
    mask.assign(static_cast<size_t>(p.batch * p.heads * p.seqlen_q * m.row_stride * element),
                static_cast<char>(0xff));
    std::normal_distribution<float> normal;
    std::vector<bool> column(static_cast<size_t>(p.seqlen_k));
    for (size_t key = 0; key < column.size(); ++key) column[key] = below(8) == 0;
    for (int64_t row = 0; row < p.batch * p.heads * p.seqlen_q; ++row) {
      const bool dead = below(20) == 0;
      for (int64_t key = 0; key < p.seqlen_k; ++key) {
        const bool hidden = dead || column[static_cast<size_t>(key)] || below(4) == 0;
        char* at = mask.data() + (row * m.row_stride + key * m.key_stride) * element;
        if (boolean) {
          *at = hidden ? 0 : static_cast<char>(1 + below(255));
          continue;
        }
        const float lowest[] = {-std::numeric_limits<float>::infinity(), -3e38f};
        const float value = hidden ? lowest[below(p.dtype == DType::f16 ? 1 : 2)] : normal(random);
        const uint16_t half = p.dtype == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
        std::memcpy(at, p.dtype == DType::f32 ? static_cast<const void*>(&value) : &half,
                    static_cast<size_t>(element));
      }
    }
    m.data = mask.data();
  }

  // The rows are the tree's last nodes; parents are random earlier nodes. Sequences must be long enough.
  void add_ancestors() {
    Ancestors& tree = p.mask.ancestors;
    tree.tree_keys = p.seqlen_q + 7;
    const int64_t words = (tree.tree_keys + 63) / 64;
    bits.assign(static_cast<size_t>(p.batch * p.seqlen_q * words), 0);
    depth.assign(static_cast<size_t>(p.batch * tree.tree_keys), 0);
    for (int64_t b = 0; b < p.batch; ++b) {
      std::vector<int64_t> parent(static_cast<size_t>(tree.tree_keys), -1);
      int32_t* depths = depth.data() + b * tree.tree_keys;
      for (int64_t t = 1; t < tree.tree_keys; ++t) {
        parent[static_cast<size_t>(t)] = below(t + 1) - 1;
        if (parent[static_cast<size_t>(t)] >= 0) depths[t] = depths[parent[static_cast<size_t>(t)]] + 1;
      }
      const reference::Extent e = reference::extent(p, b);
      for (int64_t row = 0; row < e.rows; ++row) {
        for (int64_t t = tree.tree_keys - e.rows + row; t >= 0; t = parent[static_cast<size_t>(t)]) {
          bits[static_cast<size_t>((b * p.seqlen_q + row) * words + t / 64)] |= uint64_t{1} << (t % 64);
        }
      }
    }
    tree.bits = bits.data();
    tree.depth = depth.data();
  }

  bool varlen() const { return p.cu_seqlens_q != nullptr; }
  int64_t axis(int64_t batch) const { return varlen() ? 0 : batch; }
  int64_t batches() const { return varlen() ? 1 : p.batch; }
  int64_t all_rows() const { return varlen() ? cu_q.back() : p.seqlen_q; }
  int64_t all_keys() const { return varlen() ? cu_k.back() : p.seqlen_k; }

  // Random q, k, v; NaN in the rows that nothing sees (q rows that see nothing too).
  void fill(float q_scale = 1.0f) {
    q = DenseTensor(p.dtype, batches(), all_rows(), p.heads, p.head_dim, gap);
    k = DenseTensor(p.dtype, batches(), all_keys(), p.kv_heads, p.head_dim, gap);
    v = DenseTensor(p.dtype, batches(), all_keys(), p.kv_heads, p.v_head_dim, gap);
    o = DenseTensor(p.dtype, batches(), all_rows(), p.heads, p.v_head_dim, gap);
    lse.assign(static_cast<size_t>(batches() * p.heads * all_rows()), 7.0f);
    q.fill(random, q_scale);
    k.fill(random);
    v.fill(random);
    poison_unseen();
  }

  void poison_unseen() {
    const int64_t group = p.heads / p.kv_heads;
    for (int64_t b = 0; b < p.batch; ++b) {
      const reference::Extent e = reference::extent(p, b);
      for (int64_t kv = 0; kv < p.kv_heads; ++kv) {
        for (int64_t key = 0; key < e.length; ++key) {
          bool seen = false;
          for (int64_t i = 0; i < e.rows * group && !seen; ++i) {
            seen = reference::visible(p, b, kv * group + i / e.rows, i % e.rows, key);
          }
          if (seen) continue;
          k.set_row(axis(b), e.first_key + key, kv, std::nanf(""));
          v.set_row(axis(b), e.first_key + key, kv, std::nanf(""));
        }
      }
    }
  }

  ForwardTensors tensors() {
    ForwardTensors t;
    t.q = std::as_const(q).view();
    t.k = std::as_const(k).view();
    t.v = std::as_const(v).view();
    t.o = o.view();
    t.lse = lse.data();
    return t;
  }
  Status run(Context& context, const Tuning& tuning = {}) { return forward(context, p, tensors(), tuning); }

  struct Answer {
    std::vector<double> o, lse;
  };
  Answer reference_answer() const {
    Answer answer;
    answer.o.resize(static_cast<size_t>(batches() * all_rows() * p.heads * p.v_head_dim), std::nan(""));
    answer.lse.resize(lse.size(), std::nan(""));
    const std::vector<float> q_values = q.values(), k_values = k.values(), v_values = v.values();
    reference::attention(p, q.operand(q_values), k.operand(k_values), v.operand(v_values), answer.o.data(),
                         answer.lse.data());
    return answer;
  }

  // The plain form of flash-attn's tests: the whole row of scores, every step rounded to the dtype.
  std::vector<float> plain_form() const {
    std::vector<float> out(static_cast<size_t>(batches() * all_rows() * p.heads * p.v_head_dim), 0.0f);
    std::vector<float> qs = q.values(), ks = k.values(), vs = v.values();
    for (float& value : ks) value = rounded(p.dtype, value * p.scale);
    // A kept probability's scale goes into v, as flash-attn's plain form has it.
    for (float& value : vs) value = rounded(p.dtype, value * (p.dropout.p > 0 ? p.dropout.scale() : 1.0f));
    const int64_t group = p.heads / p.kv_heads;
    for (int64_t b = 0; b < p.batch; ++b) {
      const reference::Extent e = reference::extent(p, b);
      for (int64_t h = 0; h < p.heads; ++h) {
        for (int64_t row = 0; row < e.rows; ++row) {
          const int64_t at = ((axis(b) * all_rows() + e.first_row + row) * p.heads + h);
          std::vector<float> weight(static_cast<size_t>(e.keys));
          std::vector<bool> seen(weight.size());
          float maximum = -std::numeric_limits<float>::infinity(), sum = 0;
          for (int64_t key = 0; key < e.keys; ++key) {
            const auto j = static_cast<size_t>(key);
            seen[j] = reference::visible(p, b, h, row, key);
            if (!seen[j]) continue;
            const int64_t from = (axis(b) * all_keys() + e.first_key + key) * p.kv_heads + h / group;
            float dot = 0;
            for (int64_t d = 0; d < p.head_dim; ++d) {
              dot += qs[static_cast<size_t>(at * p.head_dim + d)] *
                     ks[static_cast<size_t>(from * p.head_dim + d)];
            }
            weight[j] = plain_score(b, h, row, key, rounded(p.dtype, dot));
            maximum = std::max(maximum, weight[j]);
          }
          for (size_t j = 0; j < weight.size(); ++j) {
            weight[j] = seen[j] ? std::exp(weight[j] - maximum) : 0.0f;
            sum += weight[j];
          }
          for (size_t j = 0; j < weight.size(); ++j) {
            weight[j] = rounded(p.dtype, weight[j] / sum);
            if (seen[j] && reference::keep(p, b, h, row, static_cast<int64_t>(j)) == 0) weight[j] = 0;
          }
          for (int64_t d = 0; d < p.v_head_dim; ++d) {
            float total = 0;
            for (int64_t key = 0; key < e.keys; ++key) {
              const int64_t from = (axis(b) * all_keys() + e.first_key + key) * p.kv_heads + h / group;
              if (seen[static_cast<size_t>(key)]) {
                total += weight[static_cast<size_t>(key)] * vs[static_cast<size_t>(from * p.v_head_dim + d)];
              }
            }
            out[static_cast<size_t>(at * p.v_head_dim + d)] = rounded(p.dtype, total);
          }
        }
      }
    }
    return out;
  }

  float plain_score(int64_t b, int64_t h, int64_t row, int64_t key, float scaled) const {
    // The reference's score without scale, soft cap aside, is what is added: ALiBi and the additive mask.
    AttentionProblem added = p;
    added.softcap = 0;
    const double more = reference::score(added, b, h, row, key, 0.0).value;
    if (p.softcap > 0) {
      scaled =
          rounded(p.dtype, p.softcap * rounded(p.dtype, std::tanh(rounded(p.dtype, scaled / p.softcap))));
    }
    return more == 0 ? scaled : rounded(p.dtype, scaled + more);
  }

  // flash-attn's rule: the error is at most `factor` times that of the plain form, plus `slack`.
  void check(double factor = 2.0) {
    const Answer want = reference_answer();
    const std::vector<float> plain = plain_form(), got = o.values();
    double error = 0, plain_error = 0, lse_error = 0, largest = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      if (!(std::abs(got[i] - want.o[i]) <= error)) error = std::abs(got[i] - want.o[i]);
      if (!(std::abs(plain[i] - want.o[i]) <= plain_error)) plain_error = std::abs(plain[i] - want.o[i]);
      largest = std::max(largest, std::abs(want.o[i]));
    }
    for (size_t i = 0; i < lse.size(); ++i) {
      if (std::isinf(want.lse[i])) {
        ASSERT_EQ(lse[i], -INFINITY) << "row " << i;
        continue;
      }
      const double difference = std::abs(lse[i] - want.lse[i]) / std::max(1.0, std::abs(want.lse[i]));
      if (!(difference <= lse_error)) lse_error = difference;
    }
    ASSERT_FALSE(std::isnan(plain_error));
    // The slack is what f32 needs where both errors are a few of its roundings of `largest`.
    EXPECT_TRUE(error <= factor * plain_error + 8.0 / (1 << 24) * largest)
        << error << " against " << plain_error << " of the plain form";
    const double lse_limit = p.dtype == DType::bf16 ? 2e-2 : 1e-5;
    EXPECT_TRUE(lse_error <= lse_limit) << lse_error;
  }
};

}  // namespace tessera::attention
