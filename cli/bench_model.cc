// tessera bench model: prefill, decode and batched decode, without the engine around them.
#include <cmath>
#include <cstdio>

#include "bench.h"
#include "core/clock.h"
#include "core/format.h"
#include "core/philox.h"
#include "model/cpu_executor.h"

namespace tessera::cli {
namespace {

struct ModelBenchOptions {
  std::string model;
  int prompt = 512, generate = 128, ubatch = 512, shared = 1024, repeats = 3;
  std::vector<int> depths = {0}, threads = {0}, batches = {1};
  std::string compute = "quantized", kv_dtype = "auto";
  bool no_two_phase = false;
  std::string json;
};

// Sequences over one executor, each with a block table of its own.
class Bench {
 public:
  Bench(model::Executor& executor, int max_rows)
      : executor_(executor), max_rows_(max_rows), logits_(static_cast<size_t>(executor.vocab_size()) * 64) {}

  struct Sequence {
    std::vector<int32_t> blocks;
    int length = 0;
  };

  void reset() { next_block_ = 0; }

  // Appends `count` tokens of one sequence in steps of at most max_rows; the last row's logits are computed.
  void prefill(Sequence& sequence, int count) {
    while (count > 0) {
      const int rows = std::min(count, max_rows_);
      grow(sequence, sequence.length + rows);
      tokens_.resize(static_cast<size_t>(rows));
      for (int r = 0; r < rows; ++r) tokens_[static_cast<size_t>(r)] = token(sequence.length + r);
      const model::SequenceRows part{0, rows, sequence.length, sequence.blocks.data()};
      count -= rows;
      const int32_t last = rows - 1;
      executor_.forward({.tokens = tokens_,
                         .sequences = {&part, 1},
                         .copies = {},
                         .logit_rows = {&last, count == 0 ? size_t{1} : size_t{0}}},
                        logits_.data());
      sequence.length += rows;
    }
  }
  // One token of each sequence, with its logits.
  void decode(std::vector<Sequence>& sequences) {
    parts_.clear();
    tokens_.clear();
    rows_.clear();
    for (Sequence& sequence : sequences) {
      grow(sequence, sequence.length + 1);
      const int32_t row = static_cast<int32_t>(parts_.size());
      parts_.push_back({row, 1, sequence.length, sequence.blocks.data()});
      tokens_.push_back(token(sequence.length + 7 * row));
      rows_.push_back(row);
    }
    logits_.resize(std::max(logits_.size(), sequences.size() * static_cast<size_t>(executor_.vocab_size())));
    executor_.forward({.tokens = tokens_, .sequences = parts_, .copies = {}, .logit_rows = rows_},
                      logits_.data());
    for (Sequence& sequence : sequences) ++sequence.length;
    TESSERA_CHECK(std::isfinite(logits_[0]));
  }

 private:
  void grow(Sequence& sequence, int length) {
    const size_t blocks =
        static_cast<size_t>((length + executor_.block_tokens() - 1) / executor_.block_tokens());
    while (sequence.blocks.size() < blocks) {
      TESSERA_CHECK(next_block_ < executor_.num_blocks());
      sequence.blocks.push_back(next_block_++);
    }
  }
  int32_t token(int i) const {
    const auto words = philox4x32({static_cast<uint32_t>(i), 0, 0, 0}, {3, 5});
    return static_cast<int32_t>(words[0] % static_cast<uint32_t>(executor_.vocab_size()));
  }

  model::Executor& executor_;
  int max_rows_;
  int next_block_ = 0;
  std::vector<float> logits_;
  std::vector<int32_t> tokens_, rows_;
  std::vector<model::SequenceRows> parts_;
};

class ModelBench {
 public:
  ModelBench(const ModelBenchOptions& options, JsonLines& lines) : options_(options), lines_(lines) {}

  Status run() {
    TESSERA_ASSIGN_OR_RETURN(const model::ModelFile file, model::open_model(options_.model));
    std::printf("%-22s %8s %12s %12s %12s\n", "test", "threads", "best t/s", "median t/s", "spread");
    for (const int wanted : options_.threads) {
      ThreadPool pool({.threads = wanted, .pin = true});
      model::CpuExecutorOptions executor_options;
      executor_options.compute = options_.compute == "f32" ? ops::Compute::f32 : ops::Compute::quantized;
      const bool f32_kv =
          options_.kv_dtype == "f32" || (options_.kv_dtype == "auto" && options_.compute == "f32");
      executor_options.kv_dtype = f32_kv ? DType::f32 : DType::bf16;
      executor_options.two_phase = !options_.no_two_phase;
      executor_options.max_rows = options_.ubatch;
      const int block = 64;
      const int depth = *std::max_element(options_.depths.begin(), options_.depths.end());
      const int batch = *std::max_element(options_.batches.begin(), options_.batches.end());
      const int longest =
          std::max({options_.prompt, depth + options_.generate, options_.shared + options_.generate});
      if (longest > file.config.context_length) {
        return invalid_argument(format("-p/-n/-d need {} tokens, the model's context is {}", longest,
                                       file.config.context_length));
      }
      const int own = (options_.generate + 2 * block) / block;
      executor_options.num_blocks = (longest + block) / block + own * batch + 2;
      TESSERA_ASSIGN_OR_RETURN(auto executor, model::create_cpu_executor(file, executor_options, pool));
      Bench bench(*executor, options_.ubatch);
      measure(bench, pool.size(), depth);
    }
    return {};
  }

 private:
  void measure(Bench& bench, int threads, int) {
    using Sequence = Bench::Sequence;
    if (options_.prompt > 0) {
      report(format("pp{}", options_.prompt), threads, options_.prompt, [&](bool) {
        bench.reset();
        Sequence sequence;
        return timed([&] { bench.prefill(sequence, options_.prompt); });
      });
    }
    for (const int depth : options_.depths) {
      if (options_.generate == 0) break;
      const std::string name =
          depth == 0 ? format("tg{}", options_.generate) : format("tg{}@{}", options_.generate, depth);
      report(name, threads, options_.generate, [&](bool) {
        bench.reset();
        std::vector<Sequence> one(1);
        bench.prefill(one[0], depth);
        return timed([&] {
          for (int i = 0; i < options_.generate; ++i) bench.decode(one);
        });
      });
    }
    for (const int batch : options_.batches) {
      if (batch <= 1 || options_.generate == 0) continue;
      const int tokens = std::min(options_.generate, 32);
      report(format("batch{}@shared{}", batch, options_.shared), threads, batch * tokens, [&](bool) {
        bench.reset();
        Sequence prompt;
        bench.prefill(prompt, options_.shared);
        // Whole blocks are shared; a prompt that ends inside a block is computed again there by each
        // sequence.
        std::vector<Sequence> sequences(static_cast<size_t>(batch));
        const int whole = options_.shared / 64 * 64;
        for (Sequence& sequence : sequences) {
          sequence.blocks.assign(prompt.blocks.begin(), prompt.blocks.begin() + whole / 64);
          sequence.length = whole;
          bench.prefill(sequence, options_.shared - whole);
        }
        return timed([&] {
          for (int i = 0; i < tokens; ++i) bench.decode(sequences);
        });
      });
    }
  }

  template <typename F>
  static double timed(F&& f) {
    const int64_t start = system_clock().now_ns();
    f();
    return static_cast<double>(system_clock().now_ns() - start) * 1e-9;
  }

  // One run that is not counted, then options.repeats.
  template <typename F>
  void report(const std::string& test, int threads, int tokens, F&& run) {
    run(true);
    std::vector<double> rates;
    for (int i = 0; i < options_.repeats; ++i) rates.push_back(tokens / run(false));
    const double best = *std::max_element(rates.begin(), rates.end());
    const double least = *std::min_element(rates.begin(), rates.end());
    std::printf("%-22s %8d %12.1f %12.1f %11.1f%%\n", test.c_str(), threads, best, median(rates),
                (best - least) / best * 100);
    std::fflush(stdout);
    lines_.write({{"bench", "model"},
                  {"test", test},
                  {"threads", threads},
                  {"tokens_per_second", median(rates)},
                  {"best", best},
                  {"repeats", boost::json::array(rates.begin(), rates.end())},
                  {"compute", options_.compute}});
  }

  const ModelBenchOptions& options_;
  JsonLines& lines_;
};

int bench_model(const ModelBenchOptions& options) {
  auto lines = JsonLines::open(options.json);
  if (!lines.ok()) return fail(lines.status());
  const Status status = ModelBench(options, *lines).run();
  return status.ok() ? kExitOk : fail(status);
}

}  // namespace

void add_bench_model(CLI::App& bench, int* code) {
  auto options = std::make_shared<ModelBenchOptions>();
  CLI::App* sub = bench.add_subcommand("model", "prefill and decode, in the manner of llama-bench");
  sub->add_option("-m,--model", options->model, "GGUF file")->required();
  sub->add_option("-p,--n-prompt", options->prompt, "tokens of the prefill test; 0: none")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  sub->add_option("-n,--n-gen", options->generate, "tokens of the decode tests; 0: none")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  sub->add_option("-d,--n-depth", options->depths, "context before the decode test, e.g. 0,1024")
      ->delimiter(',')
      ->check(CLI::NonNegativeNumber);
  sub->add_option("-t,--threads", options->threads, "threads, e.g. 1,2; 0: one per allowed CPU")
      ->delimiter(',')
      ->check(CLI::NonNegativeNumber);
  sub->add_option("-b,--batch", options->batches, "sequences of the batched decode test, e.g. 1,16")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  sub->add_option("--shared-prompt", options->shared, "prompt tokens that the sequences of a batch share")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  sub->add_option("--ubatch-size", options->ubatch, "rows of one step of the prefill; also -ub")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  sub->add_option("-r,--repetitions", options->repeats, "counted runs of each test")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  sub->add_option("--compute", options->compute, "quantized or f32")
      ->check(CLI::IsMember({"quantized", "f32"}));
  sub->add_option("--cache-type-k,--kv-cache-dtype", options->kv_dtype, "auto, bf16 or f32; also -ctk")
      ->check(CLI::IsMember({"auto", "bf16", "f32"}));
  sub->add_flag("--no-two-phase", options->no_two_phase, "walk shared blocks once per sequence");
  sub->add_option("--json", options->json, "file for one JSON object a line");
  sub->callback([options, code] { *code = bench_model(*options); });
}

}  // namespace tessera::cli
