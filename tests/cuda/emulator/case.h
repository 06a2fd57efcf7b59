// Rows over a cache for the emulator's tests: host memory in the place of the device's, NaN wherever nothing
// was written, and the answer in float64.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "core/cuda/device.h"
#include "tessera/paged.h"

namespace tessera::attention::cuda::emulated {

inline constexpr uint32_t kSeed = 90210;

struct Shape {
  DType dtype = DType::bf16;
  bool tf32_inputs = true;  // of f32: values that tf32 holds, so that only probabilities are rounded
  int heads = 2, kv_heads = 2, head_dim = 128, tokens = 1;
  int v_head_dim = 0;  // 0: head_dim
  int page = 64;       // 0: contiguous
  std::vector<int32_t> lengths;
  // Sequence b takes its first `second` blocks from sequence `first`.
  std::vector<std::pair<int, int>> shared_blocks;
  bool causal = false;
  int window_left = -1, window_right = -1;
  float softcap = 0;
  std::vector<float> slopes;
  std::vector<int32_t> leftpad;
};

// 16-byte aligned elements; NaN until they are set.
class Rows {
 public:
  Rows(DType dtype, bool tf32, size_t count)
      : dtype_(dtype),
        tf32_(tf32),
        memory_(tessera::cuda::DeviceBuffer::create(bytes() * count, "rows").value()),
        count_(count) {}
  void* data() const { return memory_.data(); }
  size_t count() const { return count_; }
  double operator[](size_t i) const {
    if (dtype_ == DType::f32) return double{memory_.as<float>()[i]};
    const uint16_t bits = memory_.as<uint16_t>()[i];
    return double{dtype_ == DType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits)};
  }
  void set(size_t i, float x) const {
    if (dtype_ == DType::f32) {
      memory_.as<float>()[i] =
          tf32_ ? std::bit_cast<float>((std::bit_cast<uint32_t>(x) + 0x1000u) & 0xffffe000u) : x;
    } else {
      memory_.as<uint16_t>()[i] = dtype_ == DType::f16 ? f32_to_f16(x) : f32_to_bf16(x);
    }
  }
  std::vector<unsigned char> copy() const {
    return {memory_.as<unsigned char>(), memory_.as<unsigned char>() + count_ * bytes()};
  }
  void clear() const { std::memset(memory_.data(), 0xff, count_ * bytes()); }

 private:
  size_t bytes() const { return dtype_ == DType::f32 ? 4 : 2; }
  DType dtype_;
  bool tf32_;
  tessera::cuda::DeviceBuffer memory_;
  size_t count_;
};

class Case {
 public:
  explicit Case(Shape shape)
      : s(std::move(shape)),
        batch(static_cast<int>(s.lengths.size())),
        slots(s.page > 0 ? s.page : *std::max_element(s.lengths.begin(), s.lengths.end())),
        max_blocks((*std::max_element(s.lengths.begin(), s.lengths.end()) + slots - 1) / slots),
        num_blocks(batch * max_blocks + (s.page > 0 ? 3 : 0)),
        k(s.dtype, s.tf32_inputs, size_t(num_blocks) * block()),
        v(s.dtype, s.tf32_inputs, size_t(num_blocks) * v_block()),
        q(s.dtype, s.tf32_inputs, size_t(batch * s.tokens * s.heads * s.head_dim)),
        o(s.dtype, s.tf32_inputs, size_t(batch * s.tokens * s.heads * v_dim())),
        lse(size_t(batch * s.tokens * s.heads)) {
    std::mt19937 random(kSeed);
    std::vector<int32_t> ids(static_cast<size_t>(num_blocks));
    std::iota(ids.begin(), ids.end(), 0);
    if (s.page > 0) std::shuffle(ids.begin(), ids.end(), random);
    for (int b = 0; b < batch; ++b) {
      for (int i = 0; i < max_blocks; ++i) {
        const bool shared = b < int(s.shared_blocks.size()) && i < s.shared_blocks[size_t(b)].second;
        table.push_back(shared ? table[size_t(s.shared_blocks[size_t(b)].first * max_blocks + i)]
                               : ids[table.size()]);
      }
    }
    k.clear();
    v.clear();
    std::normal_distribution<float> normal;
    for (int b = 0; b < batch; ++b) {
      // What no row sees was never written: NaN, as behind the lengths.
      int first = s.leftpad.empty() ? 0 : s.leftpad[size_t(b)];
      if (s.window_left >= 0) first = std::max(first, s.lengths[size_t(b)] - s.tokens - s.window_left);
      for (int position = std::max(first, 0); position < s.lengths[size_t(b)]; ++position) {
        const auto fill = [&](const Rows& rows, int dim) {
          for (int i = 0; i < s.kv_heads * dim; ++i) {
            const size_t at = element(b, position, i / dim, dim) + size_t(i % dim);
            if (std::isnan(rows[at])) rows.set(at, normal(random));  // else a shared block's
          }
        };
        fill(k, s.head_dim);
        fill(v, v_dim());
      }
    }
    for (size_t i = 0; i < q.count(); ++i) q.set(i, normal(random));
  }

  AttentionProblem problem() const {
    AttentionProblem p;
    p.batch = batch, p.seqlen_q = s.tokens, p.heads = s.heads, p.kv_heads = s.kv_heads;
    p.head_dim = s.head_dim, p.v_head_dim = v_dim(), p.dtype = s.dtype;
    p.scale = 1.0f / std::sqrt(float(s.head_dim));
    p.mask.causal = s.causal, p.mask.window_left = s.window_left, p.mask.window_right = s.window_right;
    p.softcap = s.softcap;
    p.alibi_slopes = s.slopes.empty() ? nullptr : s.slopes.data();
    p.leftpad_k = s.leftpad.empty() ? nullptr : s.leftpad.data();
    return p;
  }
  CacheView view() const {
    CacheView c;
    c.k = {k.data(), int64_t(block()), s.head_dim, int64_t{slots} * s.head_dim};
    c.v = {v.data(), int64_t(v_block()), v_dim(), int64_t{slots} * v_dim()};
    c.num_blocks = num_blocks, c.block_size = slots;
    if (s.page > 0) c.block_table = table.data(), c.max_blocks = max_blocks;
    c.seqlens = s.lengths.data();
    return c;
  }
  CacheTensors tensors() {
    const int64_t width = int64_t{s.heads} * s.head_dim, v_width = int64_t{s.heads} * v_dim();
    o.clear();
    std::fill(lse.begin(), lse.end(), NAN);
    return {{q.data(), s.tokens * width, width, s.head_dim},
            {o.data(), s.tokens * v_width, v_width, v_dim()},
            lse.data()};
  }

  // The first value outside the tolerance of tests/cuda/support/paged_case.cuh.
  void check() const {
    // tf32 has the 11 bits of f16. Where q and K are rounded to it, too, scores are off by 2^-11 of each
    // product.
    const bool rounds = s.dtype == DType::f32 && !s.tf32_inputs;
    const double relative = s.dtype == DType::bf16 || rounds ? 1.0 / 128 : 1.0 / 1024;
    const double absolute = s.dtype == DType::bf16 ? 1e-5 : 2e-4;
    const double relative_lse = rounds ? 1.0 / 256 : 2e-5;
    for (int row = 0; row < batch * s.tokens * s.heads; ++row) {
      const int h = row % s.heads, t = row / s.heads % s.tokens, b = row / s.heads / s.tokens;
      const std::vector<double> p = probabilities(b, t, h);
      const double sum = std::accumulate(p.begin(), p.end(), 0.0);
      for (int d = 0; d < v_dim(); ++d) {
        double want = 0, weight = 0;
        for (int j = 0; j < s.lengths[size_t(b)]; ++j) {
          if (p[size_t(j)] == 0) continue;
          const double x = v[element(b, j, h / (s.heads / s.kv_heads), v_dim()) + size_t(d)];
          want += p[size_t(j)] / sum * x;
          weight += p[size_t(j)] / sum * std::fabs(x);
        }
        const double got = o[size_t(row) * size_t(v_dim()) + size_t(d)];
        const double limit = relative * (std::fabs(want) + weight) / 2 + absolute;
        ASSERT_TRUE(std::fabs(got - want) <= limit) << "sequence " << b << " token " << t << " head " << h
                                                    << " d " << d << " want " << want << " got " << got;
      }
      const double want = sum > 0 ? std::log(sum) : -INFINITY;
      const auto got = double{lse[size_t((b * s.heads + h) * s.tokens + t)]};
      ASSERT_TRUE(sum > 0 ? std::fabs(got - want) <= relative_lse * std::max(1.0, std::fabs(want))
                          : got == want)
          << "lse of sequence " << b << " token " << t << " head " << h << " want " << want << " got " << got;
    }
  }

  const Shape s;
  const int batch, slots, max_blocks, num_blocks;
  std::vector<int32_t> table;
  const Rows k, v, q, o;
  std::vector<float> lse;

 private:
  int v_dim() const { return s.v_head_dim > 0 ? s.v_head_dim : s.head_dim; }
  size_t block() const { return size_t(slots) * size_t(s.kv_heads * s.head_dim); }
  size_t v_block() const { return size_t(slots) * size_t(s.kv_heads * v_dim()); }
  size_t element(int b, int position, int kv_head, int dim) const {
    return size_t(table[size_t(b * max_blocks + position / slots)]) * size_t(slots * s.kv_heads * dim) +
           size_t((kv_head * slots + position % slots) * dim);
  }
  // exp(score), 0 where hidden.
  std::vector<double> probabilities(int b, int t, int h) const {
    const int length = s.lengths[size_t(b)], position = length - s.tokens + t;
    std::vector<double> p(static_cast<size_t>(length));
    for (int j = 0; j < length; ++j) {
      if (!s.leftpad.empty() && j < s.leftpad[size_t(b)]) continue;
      if (s.causal && j > position) continue;
      if (s.window_left >= 0 && j < position - s.window_left) continue;
      if (s.window_right >= 0 && j > position + s.window_right) continue;
      double x = 0;
      for (int d = 0; d < s.head_dim; ++d) {
        x += q[size_t(((b * s.tokens + t) * s.heads + h) * s.head_dim + d)] *
             k[element(b, j, h / (s.heads / s.kv_heads), s.head_dim) + size_t(d)];
      }
      x /= std::sqrt(double(s.head_dim));
      if (s.softcap != 0) x = double{s.softcap} * std::tanh(x / double{s.softcap});
      if (!s.slopes.empty()) x -= double{s.slopes[size_t(h)]} * std::abs(position - j);
      p[size_t(j)] = std::exp(x);
    }
    return p;
  }
};

// A launch on a small device of compute capability 8.6.
inline tessera::cuda::Launch small_device() {
  tessera::cuda::Launch launch{tessera::cuda::Stream::of(nullptr), {}, {}};
  launch.device.name = "emulator";
  launch.device.major = 8, launch.device.minor = 6;
  launch.device.multiprocessors = 5;
  launch.device.shared_bytes = 99 * 1024;
  return launch;
}

}  // namespace tessera::attention::cuda::emulated
