// tessera bench perplexity: how well the model predicts a text, in one or both arithmetics.
#include <cmath>
#include <cstdio>
#include <utility>

#include "bench.h"
#include "core/clock.h"
#include "core/format.h"
#include "core/fs.h"
#include "model/cpu_executor.h"

namespace tessera::cli {
namespace {

struct PerplexityOptions {
  std::string model, file, compute = "both", kv_dtype = "auto", json;
  int context = 1024, threads = 0, tokens = 0;
};

// exp(mean negative log-likelihood). The text is cut into windows of `context` tokens; each is predicted from
// its first token on, which itself is not scored, and nothing is carried from window to window. A last window
// of less than two tokens is left out.
class Perplexity {
 public:
  Perplexity(const PerplexityOptions& options, JsonLines& lines) : options_(options), lines_(lines) {}

  Status run() {
    TESSERA_ASSIGN_OR_RETURN(const model::ModelFile file, model::open_model(options_.model));
    if (options_.context > file.config.context_length) {
      return invalid_argument(
          format("--context is {}, the model's is {}", options_.context, file.config.context_length));
    }
    TESSERA_ASSIGN_OR_RETURN(const auto text, engine::load_text(options_.model));
    TESSERA_ASSIGN_OR_RETURN(const std::string content, read_text_file(options_.file, uint64_t{64} << 20));
    TESSERA_ASSIGN_OR_RETURN(engine::EncodedText encoded, text->tokenize(content, false, false));
    warn_left_out(encoded.left_out);
    std::vector<int32_t>& tokens = encoded.tokens;
    if (options_.tokens > 0 && tokens.size() > static_cast<size_t>(options_.tokens)) {
      tokens.resize(static_cast<size_t>(options_.tokens));
    }
    if (tokens.size() < 2)
      return invalid_argument(format("{}: two tokens are needed at least", options_.file));
    // What the tokenizer puts in front of an empty text.
    TESSERA_ASSIGN_OR_RETURN(const engine::EncodedText empty, text->tokenize("", true, false));
    const std::vector<int32_t>& prefix = empty.tokens;
    bos_.assign(prefix.begin(), prefix.begin() + (prefix.empty() ? 0 : 1));
    double exact = 0;
    for (const char* compute : {"f32", "quantized"}) {
      if (options_.compute != "both" && options_.compute != compute) continue;
      TESSERA_ASSIGN_OR_RETURN(const double perplexity, measure(file, compute, tokens));
      if (std::string(compute) == "f32") exact = perplexity;
      if (options_.compute == "both" && std::string(compute) == "quantized") {
        std::printf("quantized is %+.3f %% from f32\n", (perplexity / exact - 1) * 100);
      }
    }
    return {};
  }

 private:
  Result<double> measure(const model::ModelFile& file, const std::string& compute,
                         const std::vector<int32_t>& tokens) {
    constexpr int kRows = 128;
    ThreadPool pool({.threads = options_.threads, .pin = true});
    model::CpuExecutorOptions executor_options;
    executor_options.compute = compute == "f32" ? ops::Compute::f32 : ops::Compute::quantized;
    const bool f32_kv = options_.kv_dtype == "f32" || (options_.kv_dtype == "auto" && compute == "f32");
    executor_options.kv_dtype = f32_kv ? DType::f32 : DType::bf16;
    executor_options.max_rows = kRows;
    executor_options.num_blocks = options_.context / 64 + 1;
    TESSERA_ASSIGN_OR_RETURN(auto executor, model::create_cpu_executor(file, executor_options, pool));
    std::vector<int32_t> blocks(static_cast<size_t>(executor_options.num_blocks));
    for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<int32_t>(i);
    const size_t vocab = static_cast<size_t>(executor->vocab_size());
    std::vector<float> logits(kRows * vocab);
    std::vector<double> losses(kRows);
    std::vector<int32_t> rows(kRows);
    for (int i = 0; i < kRows; ++i) rows[static_cast<size_t>(i)] = i;

    const int64_t start = system_clock().now_ns();
    double sum = 0;
    int64_t scored = 0;
    const size_t own = static_cast<size_t>(options_.context) - bos_.size();
    for (size_t from = 0; from < tokens.size(); from += own) {
      std::vector<int32_t> window = bos_;
      window.insert(window.end(), tokens.begin() + static_cast<std::ptrdiff_t>(from),
                    tokens.begin() + static_cast<std::ptrdiff_t>(std::min(from + own, tokens.size())));
      const size_t length = window.size();
      if (length < 2) break;
      for (size_t first = 0; first < length; first += kRows) {
        const size_t count = std::min<size_t>(kRows, length - first);
        const model::SequenceRows part{0, static_cast<int32_t>(count), static_cast<int32_t>(first),
                                       blocks.data()};
        executor->forward({.tokens = std::span(std::as_const(window)).subspan(first, count),
                           .sequences = {&part, 1},
                           .copies = {},
                           .logit_rows = std::span(rows).first(count)},
                          logits.data());
        // The last row of the window predicts a token of the next one, which is not scored.
        const size_t predicted = std::min(count, length - first - 1);
        pool.parallel_for(static_cast<int64_t>(predicted), 4, [&](int64_t begin, int64_t end, int) {
          for (int64_t r = begin; r < end; ++r) {
            const size_t row = static_cast<size_t>(r);
            losses[row] = loss(logits.data() + row * vocab, vocab, window[first + row + 1]);
          }
        });
        for (size_t r = 0; r < predicted; ++r) sum += losses[r];
        scored += static_cast<int64_t>(predicted);
      }
    }
    const double seconds = static_cast<double>(system_clock().now_ns() - start) * 1e-9;
    const double nll = sum / static_cast<double>(scored);
    if (!std::isfinite(nll)) return Status(StatusCode::internal, "the mean loss is not a finite number");
    std::printf("%-10s kv %-5s %lld tokens scored, nll %.6f, perplexity %.5f, %.1f s\n", compute.c_str(),
                name(executor_options.kv_dtype), static_cast<long long>(scored), nll, std::exp(nll), seconds);
    std::fflush(stdout);
    lines_.write({{"bench", "perplexity"},
                  {"compute", compute},
                  {"kv_dtype", name(executor_options.kv_dtype)},
                  {"context", options_.context},
                  {"tokens", scored},
                  {"nll", nll},
                  {"perplexity", std::exp(nll)},
                  {"seconds", seconds}});
    return std::exp(nll);
  }

  // -log softmax(logits)[target], in double.
  static double loss(const float* logits, size_t vocab, int32_t target) {
    float peak = logits[0];
    for (size_t i = 1; i < vocab; ++i) peak = std::max(peak, logits[i]);
    double sum = 0;
    for (size_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(logits[i] - peak));
    return std::log(sum) + static_cast<double>(peak) - static_cast<double>(logits[target]);
  }

  const PerplexityOptions& options_;
  JsonLines& lines_;
  std::vector<int32_t> bos_;  // one token, or none
};

int bench_perplexity(const PerplexityOptions& options) {
  auto lines = JsonLines::open(options.json);
  if (!lines.ok()) return fail(lines.status());
  const Status status = Perplexity(options, *lines).run();
  return status.ok() ? kExitOk : fail(status);
}

}  // namespace

void add_bench_perplexity(CLI::App& bench, int* code) {
  auto options = std::make_shared<PerplexityOptions>();
  CLI::App* sub = bench.add_subcommand("perplexity", "how well the model predicts a text");
  sub->add_option("-m,--model", options->model, "GGUF file")->required();
  sub->add_option("-f,--file", options->file, "UTF-8 text")->required();
  sub->add_option("--compute", options->compute, "f32, quantized or both")
      ->check(CLI::IsMember({"f32", "quantized", "both"}))
      ->capture_default_str();
  sub->add_option("--cache-type-k,--kv-cache-dtype", options->kv_dtype, "auto, bf16 or f32; also -ctk")
      ->check(CLI::IsMember({"auto", "bf16", "f32"}));
  sub->add_option("--context", options->context, "tokens of a window")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  sub->add_option("--tokens", options->tokens, "use only the text's first tokens; 0: all")
      ->check(CLI::NonNegativeNumber);
  sub->add_option("-t,--threads", options->threads, "0: one per allowed CPU")->check(CLI::NonNegativeNumber);
  sub->add_option("--json", options->json, "file for one JSON object a line");
  sub->callback([options, code] { *code = bench_perplexity(*options); });
}

}  // namespace tessera::cli
