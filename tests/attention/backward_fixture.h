// A backward problem with its tensors between guard pages, the double reference and the plain form.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "attention/reference/backward.h"
#include "attention/reference/score.h"
#include "core/context.h"
#include "tessera/attention.h"

namespace tessera::attention {

inline constexpr uint32_t kBackwardSeed = 52711;

// `bytes` whose last one is followed by a page that must not be touched.
class Guarded {
 public:
  explicit Guarded(size_t bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    mapped_ = (bytes + page - 1) / page * page + 2 * page;
    base_ = static_cast<char*>(
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_EQ(mprotect(base_, page, PROT_NONE), 0);
    EXPECT_EQ(mprotect(base_ + mapped_ - page, page, PROT_NONE), 0);
    data_ = base_ + mapped_ - page - bytes;
    std::memset(data_, 0xff, bytes);  // NaN in every dtype
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  char* data() { return data_; }

 private:
  size_t mapped_ = 0;
  char *base_ = nullptr, *data_ = nullptr;
};

inline float rounded_to(DType dtype, float x) {
  if (dtype == DType::f32) return x;
  return dtype == DType::bf16 ? bf16_to_f32(f32_to_bf16(x)) : f16_to_f32(f32_to_f16(x));
}
inline void put(char* to, DType dtype, float x) {
  if (dtype == DType::f32) {
    std::memcpy(to, &x, 4);
  } else {
    const uint16_t bits = dtype == DType::bf16 ? f32_to_bf16(x) : f32_to_f16(x);
    std::memcpy(to, &bits, 2);
  }
}
inline float get(const char* from, DType dtype) {
  float x;
  uint16_t bits;
  if (dtype == DType::f32) {
    std::memcpy(&x, from, 4);
    return x;
  }
  std::memcpy(&bits, from, 2);
  return dtype == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

// A tensor of the caller's: rows of all batches, contiguous as f32 in `values`, and with gaps in memory.
struct CallerTensor {
  int64_t batches, rows, heads, dim;  // batches is 1 with cu_seqlens
  DType dtype;
  int64_t gap;
  std::vector<float> values;
  Guarded memory;

  CallerTensor(int64_t batches_in, int64_t rows_in, int64_t heads_in, int64_t dim_in, DType dtype_in,
               int64_t gap_in)
      : batches(batches_in),
        rows(rows_in),
        heads(heads_in),
        dim(dim_in),
        dtype(dtype_in),
        gap(gap_in),
        values(size_t(batches * rows * heads * dim)),
        memory(size_t(span() * element())) {}

  int64_t element() const { return dtype == DType::f32 ? 4 : 2; }
  int64_t head_stride() const { return dim + gap; }
  int64_t row_stride() const { return heads * head_stride() + gap; }
  int64_t batch_stride() const { return rows * row_stride() + gap; }
  // Elements up to the last one's end.
  int64_t span() const {
    if (batches * rows * heads * dim == 0) return 0;
    return offset(batches - 1, rows - 1, heads - 1, dim - 1) + 1;
  }
  int64_t offset(int64_t b, int64_t r, int64_t h, int64_t d) const {
    return b * batch_stride() + r * row_stride() + h * head_stride() + d;
  }
  size_t index(int64_t b, int64_t r, int64_t h, int64_t d) const {
    return size_t(((b * rows + r) * heads + h) * dim + d);
  }
  template <typename F>
  void each(F&& f) {
    for (int64_t b = 0; b < batches; ++b)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t h = 0; h < heads; ++h)
          for (int64_t d = 0; d < dim; ++d)
            f(values[index(b, r, h, d)], memory.data() + offset(b, r, h, d) * element());
  }
  void fill(const std::vector<float>& from) {
    size_t i = 0;
    each([&](float& value, char* at) {
      value = rounded_to(dtype, from[i++]);
      put(at, dtype, value);
    });
  }
  void random(uint32_t seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    std::vector<float> from(values.size());
    for (float& x : from) x = normal(generator);
    fill(from);
  }
  void read() {
    each([&](float& value, char* at) { value = get(at, dtype); });
  }
  // A row of a head becomes NaN, in memory only.
  void poison(int64_t b, int64_t r, int64_t h) {
    for (int64_t d = 0; d < dim; ++d) put(memory.data() + offset(b, r, h, d) * element(), dtype, NAN);
  }
  reference::Operand operand() const { return {values.data(), rows * heads * dim, heads * dim, dim}; }
  template <typename Pointer>
  Strided<Pointer> strided() {
    return {memory.data(), batch_stride(), row_stride(), head_stride()};
  }
};

struct Gradients {
  std::vector<double> dq, dk, dv;
};

// The plain form in the problem's dtype, with whole matrices: every product, the probabilities and ds are
// rounded to it, sums run in f32 in rising order.
inline void plain_backward(const AttentionProblem& p, const CallerTensor& q, const CallerTensor& k,
                           const CallerTensor& v, const CallerTensor& dout, Gradients* out) {
  const auto r = [&](float x) { return rounded_to(p.dtype, x); };
  const int group = p.heads / p.kv_heads;
  std::vector<float> dq(q.values.size()), dk(k.values.size()), dv(v.values.size());
  for (int64_t b = 0; b < p.batch; ++b) {
    const reference::Extent e = reference::extent(p, b);
    const int64_t axis = p.cu_seqlens_q != nullptr ? 0 : b;
    for (int64_t h = 0; h < p.heads; ++h) {
      std::vector<float> part_k(size_t(e.keys * k.dim)), part_v(size_t(e.keys * v.dim));
      for (int64_t i = 0; i < e.rows; ++i) {
        std::vector<float> prob(size_t(e.keys), -INFINITY), slope(prob.size()), factor(prob.size()),
            dp(prob.size());
        float top = -INFINITY, sum = 0, delta = 0;
        for (int64_t j = 0; j < e.keys; ++j) {
          if (!reference::visible(p, b, h, i, j)) continue;
          float dot = 0, grad = 0;
          const float* qi = &q.values[q.index(axis, e.first_row + i, h, 0)];
          const float* kj = &k.values[k.index(axis, e.first_key + j, h / group, 0)];
          const float* gi = &dout.values[dout.index(axis, e.first_row + i, h, 0)];
          const float* vj = &v.values[v.index(axis, e.first_key + j, h / group, 0)];
          for (int64_t d = 0; d < k.dim; ++d) dot += qi[d] * kj[d];
          for (int64_t d = 0; d < v.dim; ++d) grad += gi[d] * vj[d];
          const reference::Score s = reference::score(p, b, h, i, j, r(dot));
          factor[size_t(j)] = float(reference::keep(p, b, h, i, j));
          prob[size_t(j)] = r(float(s.value));
          slope[size_t(j)] = float(s.slope);
          dp[size_t(j)] = r(r(grad) * factor[size_t(j)]);
          top = std::max(top, prob[size_t(j)]);
        }
        if (top == -INFINITY) continue;
        for (float& x : prob) sum += x = std::exp(x - top);
        for (size_t j = 0; j < prob.size(); ++j) delta += (prob[j] = r(prob[j] / sum)) * dp[j];
        for (int64_t j = 0; j < e.keys; ++j) {
          const float x = prob[size_t(j)], ds = r(r(x * (dp[size_t(j)] - delta)) * slope[size_t(j)]);
          const float dropped = r(x * factor[size_t(j)]);
          if (x == 0) continue;
          for (int64_t d = 0; d < k.dim; ++d) {
            dq[q.index(axis, e.first_row + i, h, d)] +=
                ds * k.values[k.index(axis, e.first_key + j, h / group, d)];
            part_k[size_t(j * k.dim + d)] += ds * q.values[q.index(axis, e.first_row + i, h, d)];
          }
          for (int64_t d = 0; d < v.dim; ++d) {
            part_v[size_t(j * v.dim + d)] += dropped * dout.values[dout.index(axis, e.first_row + i, h, d)];
          }
        }
      }
      for (int64_t j = 0; j < e.keys; ++j) {
        for (int64_t d = 0; d < k.dim; ++d)
          dk[k.index(axis, e.first_key + j, h / group, d)] += r(part_k[size_t(j * k.dim + d)]);
        for (int64_t d = 0; d < v.dim; ++d)
          dv[v.index(axis, e.first_key + j, h / group, d)] += r(part_v[size_t(j * v.dim + d)]);
      }
    }
  }
  const auto finish = [&](const std::vector<float>& from, std::vector<double>* to) {
    to->resize(from.size());
    for (size_t i = 0; i < from.size(); ++i) (*to)[i] = r(from[i]);
  };
  finish(dq, &out->dq);
  finish(dk, &out->dk);
  finish(dv, &out->dv);
}

struct BackwardCase {
  AttentionProblem p;
  CallerTensor q, k, v, o, dout, dq, dk, dv;
  std::vector<float> lse;

  static int64_t q_rows(const AttentionProblem& p) {
    return p.cu_seqlens_q != nullptr ? p.cu_seqlens_q[p.batch] : p.seqlen_q;
  }
  static int64_t k_rows(const AttentionProblem& p) {
    return p.cu_seqlens_k != nullptr ? p.cu_seqlens_k[p.batch] : p.seqlen_k;
  }
  static int64_t batches(const AttentionProblem& p) { return p.cu_seqlens_q != nullptr ? 1 : p.batch; }

  // o and lse are the reference's, rounded.
  explicit BackwardCase(const AttentionProblem& problem, int64_t gap = 0, uint32_t seed = kBackwardSeed)
      : p(problem),
        q(batches(p), q_rows(p), p.heads, p.head_dim, p.dtype, gap),
        k(batches(p), k_rows(p), p.kv_heads, p.head_dim, p.dtype, gap),
        v(batches(p), k_rows(p), p.kv_heads, p.v_head_dim, p.dtype, gap),
        o(batches(p), q_rows(p), p.heads, p.v_head_dim, p.dtype, gap),
        dout(batches(p), q_rows(p), p.heads, p.v_head_dim, p.dtype, gap),
        dq(batches(p), q_rows(p), p.heads, p.head_dim, p.dtype, gap),
        dk(batches(p), k_rows(p), p.kv_heads, p.head_dim, p.dtype, gap),
        dv(batches(p), k_rows(p), p.kv_heads, p.v_head_dim, p.dtype, gap) {
    q.random(seed);
    k.random(seed + 1);
    v.random(seed + 2);
    dout.random(seed + 3);
    make_outputs();
  }

  void make_outputs() {
    std::vector<double> out(o.values.size()), sums(size_t(q.batches * q.rows * p.heads));
    reference::attention(p, q.operand(), k.operand(), v.operand(), out.data(), sums.data());
    o.fill(std::vector<float>(out.begin(), out.end()));
    lse.assign(sums.begin(), sums.end());
  }

  BackwardTensors tensors() {
    return {q.strided<const void*>(), k.strided<const void*>(),    v.strided<const void*>(),
            o.strided<const void*>(), dout.strided<const void*>(), lse.data(),
            dq.strided<void*>(),      dk.strided<void*>(),         dv.strided<void*>()};
  }

  // NaN in every key that no row sees, in every row of q that sees nothing, and in that row's o and dout.
  void poison_unseen() {
    const int64_t group = p.heads / p.kv_heads;
    for (int64_t b = 0; b < p.batch; ++b) {
      const reference::Extent e = reference::extent(p, b);
      const int64_t axis = p.cu_seqlens_q != nullptr ? 0 : b;
      std::vector<bool> seen(size_t(e.length * p.kv_heads));
      for (int64_t h = 0; h < p.heads; ++h) {
        for (int64_t i = 0; i < e.rows; ++i) {
          bool blind = true;
          for (int64_t j = 0; j < e.keys; ++j) {
            if (!reference::visible(p, b, h, i, j)) continue;
            seen[size_t(j * p.kv_heads + h / group)] = true;
            blind = false;
          }
          if (!blind) continue;
          for (CallerTensor* t : {&q, &o, &dout}) t->poison(axis, e.first_row + i, h);
        }
      }
      for (int64_t j = 0; j < e.length; ++j) {
        for (int64_t h = 0; h < p.kv_heads; ++h) {
          if (seen[size_t(j * p.kv_heads + h)]) continue;
          k.poison(axis, e.first_key + j, h);
          v.poison(axis, e.first_key + j, h);
        }
      }
    }
  }

  Status run(Context& context) {
    const Status status = backward(context, p, tensors());
    for (CallerTensor* t : {&dq, &dk, &dv}) t->read();
    return status;
  }

  Gradients expected() const {
    Gradients g{std::vector<double>(q.values.size()), std::vector<double>(k.values.size()),
                std::vector<double>(v.values.size())};
    reference::backward(p, q.operand(), k.operand(), v.operand(), dout.operand(), g.dq.data(), g.dk.data(),
                        g.dv.data());
    return g;
  }
};

// Every byte of the gaps is as the test left it.
inline bool gaps_untouched(CallerTensor& t) {
  std::vector<bool> used(size_t(t.span() * t.element()));
  t.each([&](float&, char* at) {
    for (int64_t i = 0; i < t.element(); ++i) used[size_t(at - t.memory.data() + i)] = true;
  });
  for (size_t i = 0; i < used.size(); ++i) {
    if (!used[i] && t.memory.data()[i] != char(0xff)) return false;
  }
  return true;
}

inline double worst_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(a[i] - b[i]);
    if (!(difference <= worst)) worst = difference;
  }
  return worst;
}
inline double worst_difference(const std::vector<float>& a, const std::vector<double>& b) {
  return worst_difference(std::vector<double>(a.begin(), a.end()), b);
}

// The same rule for gradients that are there already, of kernels whose products round to `rounds_to`. The
// slack is flash-attn's: twice what a detour over x + 0.3 loses in that type.
inline void expect_gradients_of(BackwardCase& c, DType rounds_to) {
  const Gradients want = c.expected();
  Gradients plain;
  AttentionProblem rounded = c.p;
  rounded.dtype = rounds_to;
  plain_backward(rounded, c.q, c.k, c.v, c.dout, &plain);
  const auto check = [&](const char* what, CallerTensor& got, const std::vector<double>& right,
                         const std::vector<double>& naive) {
    double slack = 0;
    for (const double x : right) {
      const double there = rounded_to(rounds_to, static_cast<float>(x + 0.3));
      slack = std::max(slack, 2 * std::abs(rounded_to(rounds_to, static_cast<float>(there - 0.3)) - x));
    }
    const double error = worst_difference(got.values, right);
    const double allowed = 3 * worst_difference(naive, right) + slack;
    EXPECT_TRUE(error <= allowed) << what << ": " << error << " over " << allowed;
    EXPECT_TRUE(gaps_untouched(got)) << what;
  };
  check("dq", c.dq, want.dq, plain.dq);
  check("dk", c.dk, want.dk, plain.dk);
  check("dv", c.dv, want.dv, plain.dv);
}

// flash-attn's rule for gradients: at most three times the plain form's error. The slack is for what the
// plain form does not suffer: LSE comes rounded to f32, so where a row sees one key p is not 1 and dp - delta
// is not 0, but both only nearly. NaN stands in all that must not be read.
inline void expect_gradients(Context& context, BackwardCase& c) {
  const AttentionProblem& p = c.p;
  SCOPED_TRACE("seqlen " + std::to_string(p.seqlen_q) + " x " + std::to_string(p.seqlen_k) + ", heads " +
               std::to_string(p.heads) + "/" + std::to_string(p.kv_heads) + ", dims " +
               std::to_string(p.head_dim) + "/" + std::to_string(p.v_head_dim) + ", causal " +
               std::to_string(p.mask.causal) + ", seed " + std::to_string(kBackwardSeed));
  c.poison_unseen();
  const Status status = c.run(context);
  ASSERT_TRUE(status.ok()) << status.message();
  const Gradients want = c.expected();
  Gradients plain;
  plain_backward(p, c.q, c.k, c.v, c.dout, &plain);
  const auto check = [&](const char* name, const CallerTensor& got, const std::vector<double>& right,
                         const std::vector<double>& naive) {
    double largest = 1;
    for (const double x : right) largest = std::max(largest, std::abs(x));
    const double error = worst_difference(got.values, right);
    const double allowed = 3 * worst_difference(naive, right) + 3e-6 * largest;
    EXPECT_TRUE(error <= allowed) << name << ": " << error << " over " << allowed;
  };
  check("dq", c.dq, want.dq, plain.dq);
  check("dk", c.dk, want.dk, plain.dk);
  check("dv", c.dv, want.dv, plain.dv);
  for (CallerTensor* t : {&c.dq, &c.dk, &c.dv}) EXPECT_TRUE(gaps_untouched(*t));
}

}  // namespace tessera::attention
