// `tessera explain rope`.
#include <cmath>

#include "core/context.h"
#include "core/format.h"
#include "explain/explain.h"
#include "tessera/rope.h"

namespace tessera::cli {
namespace {

using attention::RopeConfig;
using attention::RopeScaling;

constexpr std::pair<RopeScaling, const char*> kScalings[] = {
    {RopeScaling::none, "none"},           {RopeScaling::linear, "linear"}, {RopeScaling::ntk, "ntk"},
    {RopeScaling::dynamic_ntk, "dynamic"}, {RopeScaling::yarn, "yarn"},     {RopeScaling::llama3, "llama3"}};

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

}  // namespace

Result<Explanation> explain_rope(const RopeDrawing& o) {
  const RopeConfig& config = o.config;
  if (config.rotary_dim > 256)
    return invalid_argument(format("rotary_dim={} must be at most 256 to be shown", config.rotary_dim),
                            "rotary_dim");
  if (o.position < 0 || o.position > 1'000'000)
    return invalid_argument(format("position={} must be from 0 to 1000000", o.position), "position");
  Explanation out;
  std::string& text = out.text;
  const int pairs = config.rotary_dim / 2;
  std::vector<attention::RopeFrequencies> all;
  boost::json::object frequency_json;
  for (const auto& [scaling, title] : kScalings) {
    RopeConfig one = config;
    one.scaling = scaling;
    TESSERA_ASSIGN_OR_RETURN(attention::RopeFrequencies made, attention::rope_frequencies(one));
    boost::json::array values;
    for (const float f : made.frequency) values.push_back(f);
    frequency_json[title] = {{"frequency", values}, {"attention_scaling", made.attention_scaling}};
    all.push_back(std::move(made));
  }
  text += format(
      "frequency of pair i in radians a position: base^(-2i / dim), base {:g}, dim {}; scaling by factor "
      "{:g}\n"
      "(original length {}, now {})\n",
      config.base, config.rotary_dim, config.factor, config.original_max_positions, config.seqlen);
  text += "\n  pair";
  for (const auto& [scaling, title] : kScalings) text += format(" {:>12}", title);
  text += "   positions a turn (none)\n";
  for (int i = 0; i < pairs; ++i) {
    text += format("  {:>4}", i);
    for (const auto& f : all) text += format(" {:>12.6g}", f.frequency[static_cast<size_t>(i)]);
    text += format("   {:.6g}\n", 2 * 3.141592653589793 / all[0].frequency[static_cast<size_t>(i)]);
  }
  text += format("  yarn multiplies cos and sin by {:.6g}\n", all[4].attention_scaling);

  // One rotation, and why it is done: q.k depends on the distance alone.
  RopeConfig shown = config;
  TESSERA_ASSIGN_OR_RETURN(const attention::RopeTable table,
                           attention::RopeTable::create(shown, o.position + 8));
  ThreadPool pool({.threads = 1});
  Context context(pool);
  const auto turned = [&](std::vector<float> x, int64_t position) -> Result<std::vector<float>> {
    attention::RopeProblem problem;
    problem.seqlen = problem.heads = 1;
    problem.head_dim = config.rotary_dim;
    problem.rotary = attention::rotary(table);
    problem.offset = position;
    const auto in = attention::contiguous<const void*>(x.data(), 1, 1, config.rotary_dim);
    const auto same = attention::contiguous<void*>(x.data(), 1, 1, config.rotary_dim);
    TESSERA_RETURN_IF_ERROR(attention::rope_forward(context, problem, in, same));
    return x;
  };
  std::vector<float> q, k;
  for (int d = 0; d < config.rotary_dim; ++d) {
    q.push_back(1.0f / static_cast<float>(1 + d));
    k.push_back(d % 3 == 0 ? 1.0f : -0.5f);
  }
  TESSERA_ASSIGN_OR_RETURN(const std::vector<float> at, turned(q, o.position));
  const bool half = config.style == attention::RopeStyle::half;
  text += format("\nq = 1, 1/2, 1/3... turned to position {}, pairs {}:\n", o.position,
                 half ? "(i, i + dim / 2)" : "(2i, 2i + 1)");
  boost::json::array rotated;
  for (int i = 0; i < pairs; ++i) {
    const size_t a = static_cast<size_t>(half ? i : 2 * i),
                 b = static_cast<size_t>(half ? i + pairs : 2 * i + 1);
    const double angle = static_cast<double>(o.position) *
                         all[static_cast<size_t>(config.scaling)].frequency[static_cast<size_t>(i)];
    text += format("  ({:>2}, {:>2})  angle {:>10.5f}  ({:>9.6f}, {:>9.6f}) -> ({:>9.6f}, {:>9.6f})\n", a, b,
                   angle, q[a], q[b], at[a], at[b]);
    rotated.push_back({{"a", a}, {"b", b}, {"angle", angle}, {"from", {q[a], q[b]}}, {"to", {at[a], at[b]}}});
  }
  text += "\nq.k after both are turned (q at p, k at p - 3): it depends on the distance only\n";
  boost::json::array distances;
  for (const int64_t shift : {0, 1, 4}) {
    TESSERA_ASSIGN_OR_RETURN(const std::vector<float> q_at, turned(q, shift + 3));
    TESSERA_ASSIGN_OR_RETURN(const std::vector<float> k_at, turned(k, shift));
    text += format("  q at {}, k at {}: {:.7g}\n", shift + 3, shift, dot(q_at, k_at));
    distances.push_back({{"q", shift + 3}, {"k", shift}, {"score", dot(q_at, k_at)}});
  }
  out.json = {{"rotary_dim", config.rotary_dim},
              {"base", config.base},
              {"factor", config.factor},
              {"scalings", frequency_json},
              {"position", o.position},
              {"rotation", rotated},
              {"relative", distances}};
  return out;
}

}  // namespace tessera::cli
