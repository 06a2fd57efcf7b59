// Attention as a library: forward, backward and a batch of sequences of different lengths, each checked
// against a softmax written out in double. Exits 1 if a check fails.
#include <tessera/attention.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

namespace att = tessera::attention;

namespace {

constexpr int kHeads = 4, kKvHeads = 2, kDim = 64;  // two query heads share each kv head
constexpr int kQRow = kHeads * kDim, kKvRow = kKvHeads * kDim;

std::vector<float> random_values(int64_t count, uint32_t seed) {
  std::mt19937 bits(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(bits);
  return values;
}

// One sequence of `rows` queries and `keys` keys: o, and with `dout` also dq, dk and dv, from the definition.
struct Naive {
  std::vector<double> o, dq, dk, dv;

  Naive(const float* q, const float* k, const float* v, const float* dout, int rows, int keys)
      : o(static_cast<size_t>(rows) * kQRow),
        dq(o.size()),
        dk(static_cast<size_t>(keys) * kKvRow),
        dv(dk.size()) {
    const double scale = 1.0 / std::sqrt(double{kDim});
    std::vector<double> p(static_cast<size_t>(keys)), dp(p.size());
    for (int head = 0; head < kHeads; ++head) {
      const int64_t kv = head / (kHeads / kKvHeads) * kDim;
      for (int row = 0; row < rows; ++row) {
        const int64_t at = row * kQRow + head * kDim;
        const int seen = std::min(keys, row + keys - rows + 1);  // causal, bottom right
        double largest = -INFINITY, sum = 0, delta = 0;
        for (int j = 0; j < seen; ++j) {
          p[j] = 0;
          for (int d = 0; d < kDim; ++d) p[j] += scale * q[at + d] * k[j * kKvRow + kv + d];
          largest = std::max(largest, p[j]);
        }
        for (int j = 0; j < seen; ++j) sum += p[j] = std::exp(p[j] - largest);
        for (int j = 0; j < seen; ++j) {
          p[j] /= sum;
          for (int d = 0; d < kDim; ++d) o[at + d] += p[j] * v[j * kKvRow + kv + d];
        }
        if (dout == nullptr) continue;
        for (int j = 0; j < seen; ++j) {
          dp[j] = 0;
          for (int d = 0; d < kDim; ++d) {
            dp[j] += dout[at + d] * v[j * kKvRow + kv + d];
            dv[j * kKvRow + kv + d] += p[j] * dout[at + d];
          }
          delta += p[j] * dp[j];
        }
        for (int j = 0; j < seen; ++j) {
          const double ds = scale * p[j] * (dp[j] - delta);
          for (int d = 0; d < kDim; ++d) {
            dq[at + d] += ds * k[j * kKvRow + kv + d];
            dk[j * kKvRow + kv + d] += ds * q[at + d];
          }
        }
      }
    }
  }
};

// The largest difference; NaN counts as infinite.
double difference(const float* values, const std::vector<double>& expected) {
  double largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double one = std::abs(values[i] - expected[i]);
    if (!(one <= largest)) largest = std::isnan(one) ? INFINITY : one;
  }
  return largest;
}

bool report(const char* what, double largest) {
  const bool good = largest <= 1e-5;
  std::printf("%-28s largest difference from the definition %.1e  %s\n", what, largest,
              good ? "ok" : "WRONG");
  return good;
}

bool refused(const tessera::Status& status) {
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return !status.ok();
}

att::AttentionProblem causal_problem(int rows, int keys) {
  att::AttentionProblem problem;
  problem.seqlen_q = rows;
  problem.seqlen_k = keys;
  problem.heads = kHeads;
  problem.kv_heads = kKvHeads;
  problem.head_dim = problem.v_head_dim = kDim;
  problem.scale = 1.0f / std::sqrt(static_cast<float>(kDim));
  return problem;
}

bool forward_and_backward(tessera::Context& context) {
  constexpr int kRows = 100, kKeys = 130;
  const auto q = random_values(kRows * kQRow, 1), dout = random_values(kRows * kQRow, 2);
  const auto k = random_values(kKeys * kKvRow, 3), v = random_values(kKeys * kKvRow, 4);
  std::vector<float> o(q.size()), dq(q.size()), dk(k.size()), dv(v.size()), lse(kHeads * kRows);
  const att::AttentionProblem problem = causal_problem(kRows, kKeys);
  const auto rows = [](auto* data) { return att::contiguous(data, kRows, kHeads, kDim); };
  const auto keys = [](auto* data) { return att::contiguous(data, kKeys, kKvHeads, kDim); };

  att::ForwardTensors f;
  f.q = rows(static_cast<const void*>(q.data()));
  f.k = keys(static_cast<const void*>(k.data()));
  f.v = keys(static_cast<const void*>(v.data()));
  f.o = rows(static_cast<void*>(o.data()));
  f.lse = lse.data();
  if (refused(att::forward(context, problem, f))) return false;

  att::BackwardTensors b;
  b.q = f.q, b.k = f.k, b.v = f.v;
  b.o = rows(static_cast<const void*>(o.data()));
  b.dout = rows(static_cast<const void*>(dout.data()));
  b.lse = lse.data();
  b.dq = rows(static_cast<void*>(dq.data()));
  b.dk = keys(static_cast<void*>(dk.data()));
  b.dv = keys(static_cast<void*>(dv.data()));
  if (refused(att::backward(context, problem, b))) return false;

  const Naive naive(q.data(), k.data(), v.data(), dout.data(), kRows, kKeys);
  bool good = report("forward, o", difference(o.data(), naive.o));
  good &= report("backward, dq", difference(dq.data(), naive.dq));
  good &= report("backward, dk", difference(dk.data(), naive.dk));
  good &= report("backward, dv", difference(dv.data(), naive.dv));
  return good;
}

// Three sequences of 5, 0 and 70 tokens, one behind the other, nothing padded.
bool different_lengths(tessera::Context& context) {
  const std::vector<int32_t> starts = {0, 5, 5, 75};
  const auto q = random_values(75 * kQRow, 5), k = random_values(75 * kKvRow, 6);
  const auto v = random_values(75 * kKvRow, 7);
  std::vector<float> o(q.size());
  att::AttentionProblem problem = causal_problem(70, 70);
  problem.batch = 3;
  problem.cu_seqlens_q = problem.cu_seqlens_k = starts.data();

  att::ForwardTensors f;
  f.q = att::contiguous<const void*>(q.data(), 75, kHeads, kDim);
  f.k = att::contiguous<const void*>(k.data(), 75, kKvHeads, kDim);
  f.v = att::contiguous<const void*>(v.data(), 75, kKvHeads, kDim);
  f.o = att::contiguous<void*>(o.data(), 75, kHeads, kDim);
  if (refused(att::forward(context, problem, f))) return false;

  bool good = true;
  for (int batch = 0; batch < 3; ++batch) {
    const int first = starts[batch], rows = starts[batch + 1] - first;
    const Naive naive(q.data() + first * kQRow, k.data() + first * kKvRow, v.data() + first * kKvRow, nullptr,
                      rows, rows);
    char what[40];
    std::snprintf(what, sizeof what, "varlen, sequence of %d", rows);
    good &= report(what, difference(o.data() + first * kQRow, naive.o));
  }
  return good;
}

}  // namespace

int main() {
  tessera::Result<tessera::CpuContext> context = tessera::CpuContext::create();
  if (refused(context.status())) return 1;
  std::printf("%d threads\n", context->threads());
  const bool dense = forward_and_backward(*context);
  const bool varlen = different_lengths(*context);
  return dense && varlen ? 0 : 1;
}
