#include "attention/reference/backward.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention/reference/score.h"

namespace tessera::attention::reference {
namespace {

// A contiguous gradient: element [batch, row, head, d].
struct Gradient {
  double* data;
  int64_t rows, heads, dim;  // rows: of a batch; 0 without a batch axis

  double& at(int64_t batch, int64_t row, int64_t head, int64_t d) const {
    return data[((batch * rows + row) * heads + head) * dim + d];
  }
};

double dot(const Operand& a, int64_t row_a, int64_t head_a, const Operand& b, int64_t row_b, int64_t head_b,
           int64_t batch, int dim) {
  double sum = 0;
  for (int d = 0; d < dim; ++d) sum += a.at(batch, row_a, head_a, d) * b.at(batch, row_b, head_b, d);
  return sum;
}

struct Seen {
  int64_t key;
  double p, slope, factor, t;
};

}  // namespace

void backward(const AttentionProblem& p, const Operand& q, const Operand& k, const Operand& v,
              const Operand& dout, double* dq, double* dk, double* dv) {
  const bool varlen = p.cu_seqlens_q != nullptr;
  const Gradient grad_q{dq, varlen ? 0 : p.seqlen_q, p.heads, p.head_dim};
  const Gradient grad_k{dk, varlen ? 0 : p.seqlen_k, p.kv_heads, p.head_dim};
  const Gradient grad_v{dv, varlen ? 0 : p.seqlen_k, p.kv_heads, p.v_head_dim};
  const int64_t all_rows = varlen ? p.cu_seqlens_q[p.batch] : p.batch * p.seqlen_q;
  const int64_t all_keys = varlen ? p.cu_seqlens_k[p.batch] : p.batch * p.seqlen_k;
  std::fill_n(dq, all_rows * p.heads * p.head_dim, 0.0);
  std::fill_n(dk, all_keys * p.kv_heads * p.head_dim, 0.0);
  std::fill_n(dv, all_keys * p.kv_heads * p.v_head_dim, 0.0);
  std::vector<Seen> seen;
  for (int64_t batch = 0; batch < p.batch; ++batch) {
    const Extent e = extent(p, batch);
    const int64_t stride_batch = varlen ? 0 : batch;
    for (int64_t row = 0; row < e.rows; ++row) {
      for (int64_t head = 0; head < p.heads; ++head) {
        const int64_t kv_head = head / (p.heads / p.kv_heads), at = e.first_row + row;
        seen.clear();
        double maximum = -INFINITY, sum = 0, delta = 0;
        for (int64_t key = 0; key < e.keys; ++key) {
          if (!visible(p, batch, head, row, key)) continue;
          const double product = dot(q, at, head, k, e.first_key + key, kv_head, stride_batch, p.head_dim);
          const Score s = score(p, batch, head, row, key, product);
          seen.push_back({key, s.value, s.slope, keep(p, batch, head, row, key), 0});
          maximum = std::max(maximum, s.value);
        }
        for (Seen& j : seen) sum += j.p = std::exp(j.p - maximum);
        for (Seen& j : seen) {
          j.p /= sum;
          j.t = j.factor * dot(dout, at, head, v, e.first_key + j.key, kv_head, stride_batch, p.v_head_dim);
          delta += j.p * j.t;
        }
        for (const Seen& j : seen) {
          const int64_t key = e.first_key + j.key;
          const double ds = j.p * (j.t - delta) * j.slope;
          for (int d = 0; d < p.v_head_dim; ++d) {
            grad_v.at(stride_batch, key, kv_head, d) += j.p * j.factor * dout.at(stride_batch, at, head, d);
          }
          for (int d = 0; d < p.head_dim; ++d) {
            grad_q.at(stride_batch, at, head, d) += ds * k.at(stride_batch, key, kv_head, d);
            grad_k.at(stride_batch, key, kv_head, d) += ds * q.at(stride_batch, at, head, d);
          }
        }
      }
    }
  }
}

}  // namespace tessera::attention::reference
