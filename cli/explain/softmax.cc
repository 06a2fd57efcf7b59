// `tessera explain softmax`.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/format.h"
#include "explain/explain.h"
#include "explain/state_walk.h"

namespace tessera::cli {
namespace {

double rounded(DType dtype, double x) {
  const float value = static_cast<float>(x);
  if (dtype == DType::f16) return f16_to_f32(f32_to_f16(value));
  if (dtype == DType::bf16) return bf16_to_f32(f32_to_bf16(value));
  return value;
}

// The least x whose exp rounds to infinity: ln(largest + half a unit of its last place).
double overflow_of(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return std::log(65520.0);
    case DType::bf16:
      return std::log(0x1.ffp127);
    default:
      return std::log(0x1.ffffffp127);
  }
}

// exp(x) / sum, every operation rounded to the dtype.
struct Naive {
  std::vector<double> exps, weights;
  double sum = 0;
};
Naive naive(DType dtype, const std::vector<double>& scores) {
  Naive n;
  for (const double x : scores) {
    n.exps.push_back(rounded(dtype, std::exp(rounded(dtype, x))));
    n.sum = rounded(dtype, n.sum + n.exps.back());
  }
  for (const double e : n.exps) n.weights.push_back(rounded(dtype, e / n.sum));
  return n;
}

boost::json::value number(double x) {
  if (std::isfinite(x)) return x;
  return boost::json::string(std::isnan(x) ? "nan" : x < 0 ? "-inf" : "inf");
}
boost::json::array numbers(const std::vector<double>& values) {
  boost::json::array array;
  for (const double x : values) array.push_back(number(x));
  return array;
}

}  // namespace

Result<Explanation> explain_softmax(const std::vector<double>& scores) {
  if (scores.empty() || scores.size() > 256)
    return invalid_argument(format("softmax: {} scores must be from 1 to 256", scores.size()), "scores");
  std::vector<float> narrow;
  for (const double x : scores) {
    if (!(std::abs(x) <= 1e6))
      return invalid_argument(format("softmax: score {} must be a number from -1e6 to 1e6", x), "scores");
    narrow.push_back(static_cast<float>(x));
  }
  Explanation out;
  std::string& text = out.text;
  const size_t n = scores.size();

  text += "naive: exp(x) / sum(exp(x))\n";
  boost::json::object naive_json;
  for (const DType dtype : {DType::f16, DType::bf16, DType::f32}) {
    const Naive result = naive(dtype, scores);
    const double limit = overflow_of(dtype);
    text += format("  {:<4} exp overflows from x = {:.2f};", name(dtype), limit);
    for (size_t i = 0; i < n; ++i)
      text += format(" exp({:g}) = {:.6g}{}", scores[i], result.exps[i], i + 1 < n ? "," : "");
    text += format("; sum {:.6g}\n       weights", result.sum);
    bool broken = false;
    for (const double w : result.weights) {
      text += std::isnan(w) ? " nan" : format(" {:.6g}", w);  // whatever the NaN's sign
      broken |= !std::isfinite(w);
    }
    text += broken                   ? "   <- broken: inf / inf or x / inf\n"
            : result.sum == INFINITY ? "   <- wrong: the sum is inf\n"
                                     : "\n";
    naive_json[name(dtype)] = {{"overflows_from", limit},
                               {"exp", numbers(result.exps)},
                               {"sum", number(result.sum)},
                               {"weights", numbers(result.weights)},
                               {"overflowed", result.sum == INFINITY || broken}};
  }

  // Two passes, in double: what the others are judged by.
  const double top = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  std::vector<double> safe;
  for (const double x : scores) sum += std::exp(x - top);
  for (const double x : scores) safe.push_back(std::exp(x - top) / sum);
  text += format(
      "\nsafe, two passes (double): pass 1 m = max = {:g}; pass 2 sum of exp(x - m) = {:.9g}\n  weights", top,
      sum);
  for (const double w : safe) text += format(" {:.9g}", w);
  text +=
      "\n  every exponent is at most 0, so exp is at most 1 and the sum at most the count: nothing "
      "overflows\n";

  // One pass: attention of one query over keys that are the scores, with the identity for V, is the softmax.
  const int v_dim = static_cast<int>((n + 7) / 8 * 8);
  std::vector<float> q(8, 0.0f);
  q[0] = 1.0f;
  TESSERA_ASSIGN_OR_RETURN(StateWalk walk, StateWalk::create(1, 8, v_dim, q, 1.0f));
  text += format("\nonline, one pass (f32, the library's {}): each score is merged into (m, l)\n",
                 walk.kernel_name());
  text += "  m' = max(m, x)   l' = l exp(m - m') + exp(x - m')\n";
  boost::json::array steps;
  double m_before = -INFINITY;
  for (size_t i = 0; i < n; ++i) {
    std::vector<float> k(8, 0.0f), v(static_cast<size_t>(v_dim), 0.0f);
    k[0] = narrow[i];
    v[i] = 1.0f;
    const StateWalk::Row row =
        walk.take(static_cast<int64_t>(i), 1, k.data(), v.data(), {static_cast<int32_t>(n)})[0];
    text += format("  x = {:<8g} m {:>8.6g} -> {:<8.6g} exp(m - m') = {:<12.6g} l = {:.9g}\n", scores[i],
                   m_before, row.m, row.factor, row.l);
    steps.push_back({{"x", scores[i]},
                     {"m_before", number(m_before)},
                     {"m", number(row.m)},
                     {"factor", number(row.factor)},
                     {"l", number(row.l)}});
    m_before = row.m;
  }
  const std::vector<float> weights = walk.output();
  double worst = 0;
  text += "  weights";
  std::vector<double> online;
  for (size_t i = 0; i < n; ++i) {
    online.push_back(weights[i]);
    text += format(" {:.9g}", weights[i]);
    worst = std::max(worst, std::abs(weights[i] - safe[i]));
  }
  text += format("\n  largest difference from two passes in double: {:.3g}; LSE = m + ln(l) = {:.9g}\n",
                 worst, walk.lse()[0]);
  out.json = {{"scores", numbers(scores)},
              {"naive", naive_json},
              {"safe", {{"m", top}, {"l", sum}, {"weights", numbers(safe)}}},
              {"online",
               {{"kernel", walk.kernel_name()},
                {"steps", steps},
                {"weights", numbers(online)},
                {"lse", number(walk.lse()[0])}}},
              {"largest_difference", worst}};
  return out;
}

}  // namespace tessera::cli
