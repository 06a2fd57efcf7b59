#include "attention/reference/reference.h"

#include <cmath>
#include <limits>
#include <vector>

#include "attention/reference/score.h"

namespace tessera::attention::reference {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

struct Inputs {
  const AttentionProblem& p;
  const Operand &q, &k, &v;
};

// One row: o [v_head_dim]; returns LSE.
double attend(const Inputs& in, const Extent& e, int64_t batch, int64_t head, int64_t row, double* o) {
  const AttentionProblem& p = in.p;
  const int64_t kv_head = head / (p.heads / p.kv_heads);
  const int64_t axis = p.cu_seqlens_q != nullptr ? 0 : batch;
  std::vector<double> scores(static_cast<size_t>(e.keys), kMinusInfinity);
  double maximum = kMinusInfinity;
  const Operand::Row q = in.q.row(axis, e.first_row + row, head);
  for (int64_t key = 0; key < e.keys; ++key) {
    if (!visible(p, batch, head, row, key)) continue;
    const Operand::Row k = in.k.row(axis, e.first_key + key, kv_head);
    double dot = 0;
    for (int d = 0; d < p.head_dim; ++d) dot += q[d] * k[d];
    const double value = score(p, batch, head, row, key, dot).value;
    scores[static_cast<size_t>(key)] = value;
    maximum = std::max(maximum, value);
  }
  for (int d = 0; d < p.v_head_dim; ++d) o[d] = 0;
  if (maximum == kMinusInfinity) return maximum;
  double sum = 0;
  for (int64_t key = 0; key < e.keys; ++key) {
    const double weight = std::exp(scores[static_cast<size_t>(key)] - maximum);
    if (weight == 0) continue;  // also keeps what is masked, NaN or not, out
    sum += weight;
    const double kept = weight * keep(p, batch, head, row, key);
    const Operand::Row v = in.v.row(axis, e.first_key + key, kv_head);
    for (int d = 0; d < p.v_head_dim; ++d) o[d] += kept * v[d];
  }
  for (int d = 0; d < p.v_head_dim; ++d) o[d] /= sum;
  return maximum + std::log(sum);
}

}  // namespace

void attention(const AttentionProblem& p, const Operand& q, const Operand& k, const Operand& v, double* o,
               double* lse) {
  const Inputs in{p, q, k, v};
  const int64_t all_rows = p.cu_seqlens_q != nullptr ? p.cu_seqlens_q[p.batch] : p.seqlen_q;
  for (int64_t batch = 0; batch < p.batch; ++batch) {
    const Extent e = extent(p, batch);
    const int64_t axis = p.cu_seqlens_q != nullptr ? 0 : batch;
    for (int64_t row = 0; row < e.rows; ++row) {
      for (int64_t head = 0; head < p.heads; ++head) {
        const int64_t at = axis * all_rows + e.first_row + row;
        const double result = attend(in, e, batch, head, row, o + (at * p.heads + head) * p.v_head_dim);
        if (lse != nullptr) lse[(axis * p.heads + head) * all_rows + e.first_row + row] = result;
      }
    }
  }
}

}  // namespace tessera::attention::reference
