#include "attention/reference/reference.h"

#include <cmath>
#include <limits>
#include <vector>

namespace tessera::attention::reference {
namespace {

bool visible(const Mask& mask, int64_t query, int64_t key) {
  return (!mask.causal || key <= query) && (mask.window_left < 0 || key >= query - mask.window_left) &&
         (mask.window_right < 0 || key <= query + mask.window_right);
}

// One row: o [v_head_dim]; returns LSE.
double attend(const AttentionProblem& p, const float* q, const float* k, int64_t k_stride, const float* v,
              int64_t v_stride, int64_t position, double slope, double* o) {
  std::vector<double> scores(static_cast<size_t>(p.seqlen_k));
  double maximum = -std::numeric_limits<double>::infinity();
  for (int64_t key = 0; key < p.seqlen_k; ++key) {
    double& score = scores[static_cast<size_t>(key)];
    if (!visible(p.mask, position, key)) {
      score = -std::numeric_limits<double>::infinity();
      continue;
    }
    score = 0;
    for (int d = 0; d < p.head_dim; ++d) score += double{q[d]} * k[key * k_stride + d];
    score *= double{p.scale};
    if (p.softcap > 0) score = p.softcap * std::tanh(score / p.softcap);
    score -= slope * std::abs(static_cast<double>(position - key));
    maximum = std::max(maximum, score);
  }
  for (int d = 0; d < p.v_head_dim; ++d) o[d] = 0;
  if (maximum == -std::numeric_limits<double>::infinity()) return maximum;
  double sum = 0;
  for (int64_t key = 0; key < p.seqlen_k; ++key) {
    const double weight = std::exp(scores[static_cast<size_t>(key)] - maximum);
    if (weight == 0) continue;  // also keeps what is masked, NaN or not, out
    sum += weight;
    for (int d = 0; d < p.v_head_dim; ++d) o[d] += weight * v[key * v_stride + d];
  }
  for (int d = 0; d < p.v_head_dim; ++d) o[d] /= sum;
  return maximum + std::log(sum);
}

}  // namespace

void attention(const AttentionProblem& p, const Operand& q, const Operand& k, const Operand& v, double* o,
               double* lse) {
  const int group = p.heads / p.kv_heads;
  for (int64_t batch = 0; batch < p.batch; ++batch) {
    for (int64_t row = 0; row < p.seqlen_q; ++row) {
      for (int head = 0; head < p.heads; ++head) {
        const int64_t kv_head = head / group;
        const double result = attend(
            p, q.data + batch * q.batch_stride + row * q.row_stride + head * q.head_stride,
            k.data + batch * k.batch_stride + kv_head * k.head_stride, k.row_stride,
            v.data + batch * v.batch_stride + kv_head * v.head_stride, v.row_stride,
            row + p.seqlen_k - p.seqlen_q, p.alibi_slopes != nullptr ? double{p.alibi_slopes[head]} : 0.0,
            o + ((batch * p.seqlen_q + row) * p.heads + head) * p.v_head_dim);
        if (lse != nullptr) lse[(batch * p.heads + head) * p.seqlen_q + row] = result;
      }
    }
  }
}

}  // namespace tessera::attention::reference
