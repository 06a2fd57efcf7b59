// `tessera explain`: flags of the explanations in explain/.
#include "explain/explain.h"

#include <cmath>
#include <cstdio>
#include <memory>

#include "args.h"
#include "core/context.h"
#include "tessera/cuda.h"

namespace tessera::cli {
namespace {

int print(const Result<Explanation>& made, bool json) {
  if (!made.ok()) return fail(made.status());
  const std::string text = json ? boost::json::serialize(made->json) + "\n" : made->text;
  std::fwrite(text.data(), 1, text.size(), stdout);
  return kExitOk;
}

// A subcommand whose options live as long as the app.
template <typename Options>
struct Sub {
  CLI::App* app;
  std::shared_ptr<Options> options = std::make_shared<Options>();
  std::shared_ptr<bool> json = std::make_shared<bool>(false);

  Sub(CLI::App& parent, const char* name, const char* help) : app(parent.add_subcommand(name, help)) {
    app->add_flag("--json", *json, "one JSON object instead of text");
  }
  template <typename Explain>
  void run(int* code, Explain&& explain) {
    app->callback(
        [options = options, json = json, code, explain] { *code = print(explain(*options), *json); });
  }
};

void add_dtype(CLI::App& app, DType& dtype) {
  app.add_option_function<std::string>(
         "--dtype", [&dtype](const std::string& text) { dtype = parse_dtype(text.c_str()).value(); },
         "f32, f16 or bf16")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}));
}

struct Scores {
  std::vector<double> values;
};

// The parts of an AttentionProblem that flags name.
struct KernelFlags {
  attention::AttentionProblem problem;
  bool causal = false, alibi = false;
  float dropout = 0;
  std::string device = "cpu";
};

void add_kernel(CLI::App& parent, int* code) {
  Sub<KernelFlags> kernel(parent, "kernel",
                          "which kernel a problem gets on this machine, and why not the others");
  attention::AttentionProblem& p = kernel.options->problem;
  p.seqlen_q = p.seqlen_k = 1024;
  p.heads = p.kv_heads = 8;
  p.head_dim = 64;
  CLI::App& app = *kernel.app;
  app.add_option("--batch", p.batch)->capture_default_str();
  app.add_option("--seqlen-q", p.seqlen_q)->capture_default_str();
  app.add_option("--seqlen-k", p.seqlen_k)->capture_default_str();
  app.add_option("--heads", p.heads)->capture_default_str();
  app.add_option("--kv-heads", p.kv_heads)->capture_default_str();
  app.add_option("--head-dim", p.head_dim)->capture_default_str();
  app.add_option("--v-head-dim", p.v_head_dim, "default: --head-dim");
  add_dtype(app, p.dtype);
  app.add_flag("--causal", kernel.options->causal);
  app.add_option("--window-left", p.mask.window_left)->capture_default_str();
  app.add_option("--window-right", p.mask.window_right)->capture_default_str();
  app.add_option("--softcap", p.softcap)->capture_default_str();
  app.add_option("--dropout", p.dropout.p)->capture_default_str();
  app.add_flag("--alibi", kernel.options->alibi);
  app.add_option("--device", kernel.options->device, "cpu, or cuda: the first GPU")
      ->capture_default_str()
      ->check(CLI::IsMember({"cpu", "cuda"}));
  kernel.run(code, [](KernelFlags& flags) -> Result<Explanation> {
    attention::AttentionProblem problem = flags.problem;
    if (problem.v_head_dim == 0) problem.v_head_dim = problem.head_dim;
    problem.scale = problem.head_dim > 0 ? 1.0f / std::sqrt(static_cast<float>(problem.head_dim)) : 1.0f;
    problem.mask.causal = flags.causal;
    TESSERA_RETURN_IF_ERROR(attention::validate(problem));
    const std::vector<float> slopes(static_cast<size_t>(problem.heads), 0.5f);
    if (flags.alibi) problem.alibi_slopes = slopes.data();
    if (flags.device == "cpu") return explain_kernel(problem);
    TESSERA_ASSIGN_OR_RETURN(const CudaContext context, CudaContext::create());
    return explain_kernel(problem, &static_cast<Context&>(context));
  });
}

void add_rope(CLI::App& parent, int* code) {
  Sub<RopeDrawing> rope(parent, "rope", "rotary frequencies with each scaling, and a rotation");
  attention::RopeConfig& c = rope.options->config;
  c.rotary_dim = 16;
  c.factor = 4;
  c.original_max_positions = 2048;
  c.seqlen = 8192;
  CLI::App& app = *rope.app;
  app.add_option("--rotary-dim", c.rotary_dim)->capture_default_str();
  app.add_option("--base,--rope-freq-base", c.base)->capture_default_str();
  app.add_option("--factor", c.factor)->capture_default_str();
  app.add_option("--original", c.original_max_positions, "positions that the model was trained for")
      ->capture_default_str();
  app.add_option("--seqlen", c.seqlen, "of the longest sequence now, for dynamic NTK")->capture_default_str();
  app.add_option("--position", rope.options->position, "where the example is turned to")
      ->capture_default_str();
  app.add_option_function<std::string>(
         "--rope-scaling",
         [&c](const std::string& text) {
           using attention::RopeScaling;
           c.scaling = text == "linear"    ? RopeScaling::linear
                       : text == "ntk"     ? RopeScaling::ntk
                       : text == "dynamic" ? RopeScaling::dynamic_ntk
                       : text == "yarn"    ? RopeScaling::yarn
                       : text == "llama3"  ? RopeScaling::llama3
                                           : RopeScaling::none;
         },
         "of the example: none, linear, ntk, dynamic, yarn or llama3")
      ->check(CLI::IsMember({"none", "linear", "ntk", "dynamic", "yarn", "llama3"}));
  app.add_flag_callback(
      "--interleaved", [&c] { c.style = attention::RopeStyle::interleaved; }, "pairs (2i, 2i + 1)");
  rope.run(code, [](RopeDrawing& options) { return explain_rope(options); });
}

}  // namespace

void add_explain(CLI::App& app, int* code) {
  CLI::App* explain =
      app.add_subcommand("explain", "the algorithms at work, step by step, from the library's own code");
  explain->require_subcommand(1);

  Sub<Scores> softmax(*explain, "softmax",
                      "naive, two-pass and online softmax, and where the naive one overflows");
  softmax.app->add_option("SCORES", softmax.options->values, "numbers")->required();
  softmax.run(code, [](Scores& scores) { return explain_softmax(scores.values); });

  Sub<AttentionWalk> attention(*explain, "attention", "attention of a sentence over itself, tile by tile");
  attention.app->add_option("TEXT", attention.options->text, "words apart by spaces")->required();
  attention.app->add_option("--block", attention.options->block, "keys a tile")->capture_default_str();
  attention.app->add_option("--row", attention.options->row, "the only row to show; -1: all")
      ->capture_default_str();
  attention.app->add_flag("--causal", attention.options->causal, "a word sees itself and those before it");
  attention.run(code, [](AttentionWalk& options) { return explain_attention(options); });

  Sub<HeadsDrawing> heads(*explain, "heads", "MHA, GQA and MQA: who reads which K and V, and their bytes");
  heads.app->add_option("--heads", heads.options->heads)->capture_default_str();
  heads.app->add_option("--kv-heads", heads.options->kv_heads)->capture_default_str();
  heads.app->add_option("--head-dim", heads.options->head_dim)->capture_default_str();
  heads.app->add_option("--layers", heads.options->layers)->capture_default_str();
  heads.app->add_option("--seqlen", heads.options->seqlen)->capture_default_str();
  add_dtype(*heads.app, heads.options->dtype);
  heads.run(code, [](HeadsDrawing& options) { return explain_heads(options); });

  Sub<AlibiDrawing> alibi(*explain, "alibi", "ALiBi's slopes for any number of heads, and the bias matrix");
  alibi.app->add_option("--heads", alibi.options->heads)->capture_default_str();
  alibi.app->add_option("--head", alibi.options->head, "whose matrix is drawn")->capture_default_str();
  alibi.app->add_option("--positions", alibi.options->positions)->capture_default_str();
  alibi.run(code, [](AlibiDrawing& options) { return explain_alibi(options); });

  add_rope(*explain, code);
  add_kernel(*explain, code);
}

}  // namespace tessera::cli
