// Single rows of the gradients of dense attention in double precision, in time seqlen x head_dim: to look at
// a few rows of a result that is too large for the whole reference.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace tessera::bench {

// One query head and its kv head: rows of `dim` values; lse of each query row, as the forward gave it.
// REQUIRES: as many queries as keys, each row sees a key.
struct HeadRows {
  const float *q, *k, *v, *o, *dout, *lse;
  int64_t seqlen;
  int dim;
  double scale;
  bool causal;

  double dot(const float* x, int64_t i, const float* y, int64_t j) const {
    double sum = 0;
    for (int d = 0; d < dim; ++d) sum += double{x[i * dim + d]} * y[j * dim + d];
    return sum;
  }
  double weight(int64_t i, int64_t j) const { return std::exp(scale * dot(q, i, k, j) - lse[i]); }
  // The gradient of the score of (i, j).
  double score_gradient(int64_t i, int64_t j, double p) const {
    return p * (dot(dout, i, v, j) - dot(dout, i, o, i));
  }
};

// dq[0, dim) of query row i.
inline void dq_row(const HeadRows& h, int64_t i, double* dq) {
  std::fill(dq, dq + h.dim, 0.0);
  for (int64_t j = 0; j < (h.causal ? i + 1 : h.seqlen); ++j) {
    const double ds = h.scale * h.score_gradient(i, j, h.weight(i, j));
    for (int d = 0; d < h.dim; ++d) dq[d] += ds * h.k[j * h.dim + d];
  }
}

// Adds this query head's part of row j of its kv head to dk and dv.
inline void add_dkv_row(const HeadRows& h, int64_t j, double* dk, double* dv) {
  for (int64_t i = h.causal ? j : 0; i < h.seqlen; ++i) {
    const double p = h.weight(i, j), ds = h.scale * h.score_gradient(i, j, p);
    for (int d = 0; d < h.dim; ++d) {
      dk[d] += ds * h.q[i * h.dim + d];
      dv[d] += p * h.dout[i * h.dim + d];
    }
  }
}

}  // namespace tessera::bench
