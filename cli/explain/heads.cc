// `tessera explain heads`, `explain alibi` and `explain kernel`.
#include <algorithm>
#include <sstream>

#include "attention/kv_storage.h"
#include "core/format.h"
#include "explain/explain.h"
#include "tessera/alibi.h"

namespace tessera::cli {
namespace {

Status refuse(const char* field, int64_t value, const char* limit) {
  return invalid_argument(format("{}={} must be {}", field, value, limit), field);
}

// One row of boxes for the query heads and one for the K/V heads below those that read them.
std::string draw(int heads, int kv_heads) {
  constexpr int kMostDrawn = 32;
  if (heads > kMostDrawn) return format("  (more than {} heads are not drawn)\n", kMostDrawn);
  const int group = heads / kv_heads;
  std::string q = "  Q    ", bars = "       ", kv = "  K/V  ";
  for (int h = 0; h < heads; ++h) {
    q += format("{:<4}", h);
    const bool first = h % group == 0, last = h % group == group - 1;
    bars += first && last ? "|   " : first ? "\\---" : last ? "/   " : "+---";
    const std::string name = first ? std::to_string(h / group) : "";
    kv += format("{:<4}", name);
  }
  for (std::string* line : {&q, &bars, &kv}) line->erase(line->find_last_not_of(' ') + 1);
  return q + "\n" + bars + "\n" + kv + "\n";
}

}  // namespace

Result<Explanation> explain_heads(const HeadsDrawing& o) {
  if (o.seqlen < 1 || o.seqlen > (int64_t{1} << 30)) return refuse("seqlen", o.seqlen, "from 1 to 2^30");
  if (o.layers < 1 || o.layers > 4096) return refuse("layers", o.layers, "from 1 to 4096");
  if (o.heads > 4096) return refuse("heads", o.heads, "at most 4096");
  attention::AttentionProblem problem;
  problem.heads = o.heads;
  problem.kv_heads = o.kv_heads;
  problem.head_dim = problem.v_head_dim = o.head_dim;
  problem.dtype = o.dtype == DType::f16 ? DType::bf16 : o.dtype;  // as large
  TESSERA_RETURN_IF_ERROR(attention::validate(problem));

  Explanation out;
  out.text = format(
      "query head h reads K/V head h / (heads / kv_heads); K and V are never copied\n"
      "{} query heads, head_dim {}, {} layers, {} tokens, {}\n",
      o.heads, o.head_dim, o.layers, o.seqlen, name(o.dtype));
  boost::json::array kinds;
  int64_t most = 0;
  for (const auto& [kind, kv_heads] : {std::pair{"MHA", o.heads}, {"GQA", o.kv_heads}, {"MQA", 1}}) {
    const attention::KvFormat form{problem.dtype, kv_heads, o.head_dim, o.head_dim, attention::kKeyTile};
    const int64_t a_token = form.bytes_per_block(o.layers) / form.block_tokens;
    const int64_t bytes = a_token * o.seqlen;
    if (most == 0) most = bytes;
    out.text += format("\n{}: {} K/V head{}, each for {} query head{}\n", kind, kv_heads,
                       kv_heads == 1 ? "" : "s", o.heads / kv_heads, o.heads == kv_heads ? "" : "s");
    out.text += draw(o.heads, kv_heads);
    out.text += format("  K and V: {} bytes a token, {:.2f} MiB for {} tokens ({:.3g} x MHA)\n", a_token,
                       static_cast<double>(bytes) / (1 << 20), o.seqlen,
                       static_cast<double>(bytes) / static_cast<double>(most));
    kinds.push_back({{"kind", kind}, {"kv_heads", kv_heads}, {"bytes_per_token", a_token}, {"bytes", bytes}});
  }
  out.json = {{"heads", o.heads},   {"head_dim", o.head_dim}, {"layers", o.layers},
              {"seqlen", o.seqlen}, {"dtype", name(o.dtype)}, {"kinds", kinds}};
  return out;
}

Result<Explanation> explain_alibi(const AlibiDrawing& o) {
  TESSERA_ASSIGN_OR_RETURN(const std::vector<float> slopes, attention::alibi_slopes(o.heads));
  if (o.head < 0 || o.head >= o.heads) return refuse("head", o.head, "one of the heads");
  if (o.positions < 1 || o.positions > 64) return refuse("positions", o.positions, "from 1 to 64");
  Explanation out;
  out.text = format(
      "slopes of {} heads: 2^(-8 (h + 1) / n) for a power of two n; the rest from 2n, every other one\n",
      o.heads);
  boost::json::array slope_json, matrix;
  for (size_t h = 0; h < slopes.size(); ++h) {
    if (h < 64) out.text += format("  head {:>3}  {:.9g}\n", h, slopes[h]);
    slope_json.push_back(slopes[h]);
  }
  if (slopes.size() > 64) out.text += format("  and {} more (--json has all)\n", slopes.size() - 64);
  const float slope = slopes[static_cast<size_t>(o.head)];
  out.text += format(
      "\nbias of head {}: -slope * (i - j), added to the score of query i and key j <= i\n  i \\ j", o.head);
  for (int j = 0; j < o.positions; ++j) out.text += format(" {:>9}", j);
  out.text += "\n";
  for (int i = 0; i < o.positions; ++i) {
    out.text += format("  {:>5}", i);
    boost::json::array row;
    for (int j = 0; j <= i; ++j) {
      const float bias = attention::alibi_bias(slope, i, j);
      out.text += format(" {:>9.5g}", bias + 0.0f);  // -0 prints as 0
      row.push_back(bias);
    }
    out.text += "\n";
    matrix.push_back(row);
  }
  out.json = {{"heads", o.heads}, {"slopes", slope_json}, {"head", o.head}, {"bias", matrix}};
  return out;
}

Explanation explain_kernel(const attention::AttentionProblem& problem, Context* context) {
  Explanation out;
  for (const auto& [pass, title] :
       {std::pair{attention::Pass::forward, "forward"}, {attention::Pass::backward, "backward"}}) {
    const std::string lines =
        context != nullptr ? attention::explain(*context, problem, pass) : attention::explain(problem, pass);
    out.text += format("{}:\n{}", title, lines);
    boost::json::array candidates;
    boost::json::array notes;
    std::istringstream stream(lines);
    for (std::string line; std::getline(stream, line);) {
      const size_t colon = line.find(": ");
      if (line.size() < 3 || colon == std::string::npos || (line[0] != '>' && line[0] != ' ')) {
        notes.push_back(boost::json::string(line));
        continue;
      }
      candidates.push_back({{"kernel", line.substr(2, colon - 2)},
                            {"taken", line[0] == '>'},
                            {"why", line.substr(colon + 2)}});
    }
    out.json[title] = {{"candidates", candidates}, {"notes", notes}};
  }
  return out;
}

}  // namespace tessera::cli
