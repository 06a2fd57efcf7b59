// `tessera explain attention`.
#include <algorithm>
#include <cmath>
#include <sstream>

#include "attention/reference/reference.h"
#include "core/format.h"
#include "core/philox.h"
#include "explain/explain.h"
#include "explain/state_walk.h"

namespace tessera::cli {
namespace {

constexpr int kDim = 8;
constexpr size_t kMostWords = 512;

uint64_t hash(const std::string& word) {
  uint64_t h = 0xcbf29ce484222325u;  // FNV-1a
  for (const char c : word) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return h;
}

// A word's vector: Philox keyed by the hash of its letters, `stream` 0 for q, 1 for k, 2 for v; uniform in
// [-2, 2) with 24 bits.
std::vector<float> vectors(const std::vector<std::string>& words, uint32_t stream) {
  std::vector<float> values;
  for (const std::string& word : words) {
    const uint64_t h = hash(word);
    for (uint32_t i = 0; i < kDim; ++i) {
      const auto random =
          philox4x32({i / 4, stream, 0, 0}, {static_cast<uint32_t>(h), static_cast<uint32_t>(h >> 32)});
      values.push_back(4.0f * philox_uniform(random[i % 4]) - 2.0f);
    }
  }
  return values;
}

// Control characters and the rest of a terminal's language do not reach it.
std::string shown(const std::string& word) {
  std::string text;
  for (const char c : word) text += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  return text;
}

boost::json::value number(double x) {
  if (std::isfinite(x)) return x;
  return boost::json::string(std::isnan(x) ? "nan" : x < 0 ? "-inf" : "inf");
}

}  // namespace

Result<Explanation> explain_attention(const AttentionWalk& options) {
  std::vector<std::string> words;
  std::istringstream stream(options.text);
  for (std::string word; stream >> word;) words.push_back(word);
  const int n = static_cast<int>(words.size());
  if (words.empty() || words.size() > kMostWords)
    return invalid_argument(format("attention: {} words must be from 1 to {}", words.size(), kMostWords),
                            "text");
  if (options.block < 1 || options.block > 64)
    return invalid_argument(format("attention: block={} must be from 1 to 64", options.block), "block");
  if (options.row < -1 || options.row >= n)
    return invalid_argument(
        format("attention: row={} must be from 0 to {} (the words' last)", options.row, n - 1), "row");

  const std::vector<float> q = vectors(words, 0), k = vectors(words, 1), v = vectors(words, 2);
  const float scale = 1.0f / std::sqrt(static_cast<float>(kDim));
  TESSERA_ASSIGN_OR_RETURN(StateWalk walk, StateWalk::create(n, kDim, kDim, q, scale));
  std::vector<int32_t> end;
  for (int r = 0; r < n; ++r) end.push_back(options.causal ? r + 1 : n);

  Explanation out;
  std::string& text = out.text;
  text +=
      format("{} words, head_dim {}, scale 1 / sqrt({}), {}, tiles of {} keys, kernel {}\n", n, kDim, kDim,
             options.causal ? "causal" : "every word sees every word", options.block, walk.kernel_name());
  text +=
      "q, k and v of a word: Philox4x32-10 keyed by the FNV-1a hash of its letters, uniform in [-2, 2); the "
      "same\n"
      "word has the same vectors everywhere. Scores are q.k * scale; m and l are of the row so far.\n";
  boost::json::array tiles;
  for (int first = 0; first < n; first += options.block) {
    const int count = std::min(options.block, n - first);
    const std::vector<StateWalk::Row> rows =
        walk.take(first, count, k.data() + first * kDim, v.data() + first * kDim, end);
    text += format("\ntile {}: keys {} to {}:", first / options.block, first, first + count - 1);
    for (int j = first; j < first + count; ++j) text += " " + shown(words[static_cast<size_t>(j)]);
    text += "\n  row  word          tile's max   m after    rescaled by exp(m - m')   l after\n";
    boost::json::array row_json;
    for (int r = 0; r < n; ++r) {
      if (options.row >= 0 && r != options.row) continue;
      const StateWalk::Row& row = rows[static_cast<size_t>(r)];
      text += format("  {:>3}  {:<12}  {:>10.5f}  {:>8.5f}    {:>21.6g}   {:.6f}{}\n", r,
                     shown(words[static_cast<size_t>(r)]), row.block_m, row.m, row.factor, row.l,
                     row.block_m == -INFINITY ? "   sees none of it" : "");
      row_json.push_back({{"row", r},
                          {"block_m", number(row.block_m)},
                          {"block_l", number(row.block_l)},
                          {"m", number(row.m)},
                          {"factor", number(row.factor)},
                          {"l", number(row.l)}});
    }
    tiles.push_back({{"first", first}, {"keys", count}, {"rows", row_json}});
  }

  const std::vector<float> o = walk.output();
  attention::AttentionProblem problem;
  problem.seqlen_q = problem.seqlen_k = n;
  problem.heads = problem.kv_heads = 1;
  problem.head_dim = problem.v_head_dim = kDim;
  problem.scale = scale;
  problem.mask.causal = options.causal;
  std::vector<double> want(o.size());
  attention::reference::attention(problem, {q.data(), 0, kDim, kDim}, {k.data(), 0, kDim, kDim},
                                  {v.data(), 0, kDim, kDim}, want.data(), nullptr);
  double worst = 0;
  boost::json::array o_json;
  for (size_t i = 0; i < o.size(); ++i) {
    const double difference = std::abs(o[i] - want[i]);
    if (!(difference <= worst)) worst = difference;
    o_json.push_back(number(o[i]));
  }
  text += "\no = (sum of exp(score - m) v) / l\n";
  for (int r = 0; r < n; ++r) {
    if (options.row >= 0 && r != options.row) continue;
    text += format("  {:>3}  {:<12} ", r, shown(words[static_cast<size_t>(r)]));
    for (int d = 0; d < kDim; ++d) text += format(" {:>8.5f}", o[static_cast<size_t>(r * kDim + d)]);
    text += "\n";
  }
  text += format("\nlargest difference from the full {} x {} matrix in double: {:.3g}\n", n, n, worst);
  text += format("held at once: a tile of {} scores a row, not {}\n", std::min(options.block, n), n);
  boost::json::array word_json;
  for (const std::string& word : words) word_json.push_back(boost::json::string(shown(word)));
  out.json = {{"words", word_json},
              {"kernel", walk.kernel_name()},
              {"head_dim", kDim},
              {"causal", options.causal},
              {"block", options.block},
              {"tiles", tiles},
              {"o", o_json},
              {"largest_difference", number(worst)}};
  return out;
}

}  // namespace tessera::cli
