// tessera bench serving: one trace of requests, answered with static and with continuous batching.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <map>
#include <mutex>
#include <thread>

#include "bench.h"
#include "core/clock.h"
#include "core/format.h"
#include "core/philox.h"

namespace tessera::cli {
namespace {

struct ServingOptions {
  engine::ServiceOptions service;
  std::string trace = "poisson";
  std::string policies = "static,continuous";
  int requests = 48;
  double rate = 16.0;      // requests a second
  int input_tokens = 128;  // mean; lengths vary between half and one and a half
  int output_tokens = 64;
  int shared_tokens = 0;  // common prefix of every prompt
  uint64_t seed = 1;
  LongPromptOptions long_prompt;
  std::string json;
};

struct TraceItem {
  double arrival = 0;  // seconds from the start
  std::vector<int32_t> prompt;
  int output = 0;
};

// The trace is a function of the options alone, so every policy sees the same one.
std::vector<TraceItem> make_trace(const ServingOptions& options, int vocab) {
  uint32_t counter = 0;
  const auto uniform = [&] {
    const auto words = philox4x32({counter++, 0, 0, 0}, {static_cast<uint32_t>(options.seed), 0x74726163u});
    return static_cast<double>(philox_uniform(words[0]));
  };
  const auto token = [&] { return static_cast<int32_t>(uniform() * (vocab - 256)) + 200; };
  std::vector<int32_t> shared(static_cast<size_t>(options.shared_tokens));
  for (int32_t& id : shared) id = token();
  std::vector<TraceItem> trace(static_cast<size_t>(options.requests));
  double now = 0;
  for (TraceItem& item : trace) {
    if (options.trace == "poisson") now += -std::log(1.0 - uniform()) / options.rate;
    item.arrival = now;
    item.prompt = shared;
    const int own = std::max(1, static_cast<int>(options.input_tokens * (0.5 + uniform())));
    for (int i = 0; i < own; ++i) item.prompt.push_back(token());
    item.output = std::max(1, static_cast<int>(options.output_tokens * (0.5 + uniform())));
  }
  return trace;
}

struct ServingResult {
  double seconds = 0;
  int64_t generated = 0;
  int failed = 0;
  std::vector<double> first_token, gap, end_to_end;
  double bytes_held = 0, bytes_used = 0;  // means over the samples taken while requests ran
  double rows_per_step = 0;
};

ServingResult play(engine::Service& service, const std::vector<TraceItem>& trace) {
  Clock& clock = system_clock();
  const engine::MetricsSnapshot before = service.metrics();
  ServingResult result;
  std::mutex mutex;
  std::atomic<int> open{static_cast<int>(trace.size())};
  std::atomic<int64_t> live_tokens{0};  // prompt and answer tokens of requests that run
  const int64_t start = clock.now_ns();
  const auto seconds_since = [&](int64_t from) { return static_cast<double>(clock.now_ns() - from) * 1e-9; };

  // Samples the pool while the trace plays: what is held (referenced blocks) and what of it tokens fill.
  std::vector<double> held, used;
  std::thread sampler([&] {
    while (open.load() > 0) {
      const engine::MetricsSnapshot now = service.metrics();
      if (now.requests_running > 0) {
        held.push_back(static_cast<double>(now.kv_blocks_referenced * now.kv_block_bytes));
        used.push_back(static_cast<double>(live_tokens.load()) * static_cast<double>(now.kv_block_bytes) /
                       now.block_tokens);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  });

  for (size_t i = 0; i < trace.size(); ++i) {
    const TraceItem& item = trace[i];
    const double wait = item.arrival - seconds_since(start);
    if (wait > 0) std::this_thread::sleep_for(std::chrono::duration<double>(wait));
    engine::Request request;
    request.id = format("trace-{}", i);
    request.prompt = item.prompt;
    request.sampling.max_tokens = item.output;
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = true;
    const int64_t sent = clock.now_ns();
    auto last_token = std::make_shared<int64_t>(0);
    auto counted = std::make_shared<int64_t>(0);
    const Status status = service.submit(std::move(request), [&, sent, last_token, counted](auto&& outputs) {
      const std::lock_guard lock(mutex);
      for (engine::Output& output : outputs) {
        const int64_t now = clock.now_ns();
        if (!output.tokens.empty()) {
          if (*last_token == 0) {
            result.first_token.push_back(static_cast<double>(now - sent) * 1e-9);
            *counted = output.prompt_tokens;
            live_tokens += *counted;
          } else {
            result.gap.push_back(static_cast<double>(now - *last_token) * 1e-9);
          }
          *last_token = now;
          result.generated += static_cast<int64_t>(output.tokens.size());
          *counted += static_cast<int64_t>(output.tokens.size());
          live_tokens += static_cast<int64_t>(output.tokens.size());
        }
        if (output.last) {
          if (output.finish == engine::FinishReason::error) ++result.failed;
          result.end_to_end.push_back(static_cast<double>(now - sent) * 1e-9);
          live_tokens -= *counted;
          --open;
        }
      }
    });
    if (!status.ok()) {
      std::fprintf(stderr, "tessera: request %zu: %s\n", i, status.message().c_str());
      const std::lock_guard lock(mutex);
      ++result.failed;
      --open;
    }
  }
  while (open.load() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  result.seconds = seconds_since(start);
  sampler.join();
  const auto mean = [](const std::vector<double>& values) {
    double sum = 0;
    for (double value : values) sum += value;
    return values.empty() ? 0.0 : sum / static_cast<double>(values.size());
  };
  result.bytes_held = mean(held);
  result.bytes_used = mean(used);
  const engine::MetricsSnapshot after = service.metrics();
  const double steps = static_cast<double>(after.steps - before.steps);
  const double rows = static_cast<double>(after.prompt_tokens_computed - before.prompt_tokens_computed +
                                          after.generation_tokens - before.generation_tokens);
  result.rows_per_step = steps > 0 ? rows / steps : 0;
  return result;
}

int bench_serving(const ServingOptions& options) {
  auto lines = JsonLines::open(options.json);
  if (!lines.ok()) return fail(lines.status());
  std::printf("%-12s %9s %10s %9s %9s %9s %9s %10s %10s %12s %6s\n", "batching", "seconds", "tokens/s",
              "ttft p50", "ttft p99", "gap p50", "gap p99", "MB used", "MB held", "MB reserving", "rows");
  for (const char* policy : {"static", "continuous"}) {
    if (options.policies.find(policy) == std::string::npos) continue;
    engine::ServiceOptions service_options = options.service;
    service_options.batching =
        std::string(policy) == "static" ? engine::Batching::static_ : engine::Batching::continuous;
    auto service = load(service_options, LogLevel::warning);
    if (!service.ok()) return fail(service.status());
    const std::vector<TraceItem> trace = make_trace(options, (*service)->limits().vocab_size);
    const ServingResult result = play(**service, trace);
    const engine::MetricsSnapshot metrics = (*service)->metrics();
    // A server that reserves the longest request for each of its slots.
    const double reserving = static_cast<double>(service_options.max_num_seqs) *
                             (*service)->limits().max_model_len / metrics.block_tokens *
                             static_cast<double>(metrics.kv_block_bytes);
    const double rate = static_cast<double>(result.generated) / result.seconds;
    std::printf("%-12s %9.2f %10.1f %8.0fms %8.0fms %8.1fms %8.1fms %10.1f %10.1f %12.1f %6.1f\n", policy,
                result.seconds, rate, percentile(result.first_token, 0.5) * 1e3,
                percentile(result.first_token, 0.99) * 1e3, percentile(result.gap, 0.5) * 1e3,
                percentile(result.gap, 0.99) * 1e3, result.bytes_used / 1e6, result.bytes_held / 1e6,
                reserving / 1e6, result.rows_per_step);
    lines->write({{"bench", "serving"},
                  {"batching", policy},
                  {"trace", options.trace},
                  {"requests", options.requests},
                  {"failed", result.failed},
                  {"seconds", result.seconds},
                  {"generated_tokens", result.generated},
                  {"tokens_per_second", rate},
                  {"ttft_p50", percentile(result.first_token, 0.5)},
                  {"ttft_p99", percentile(result.first_token, 0.99)},
                  {"gap_p50", percentile(result.gap, 0.5)},
                  {"gap_p99", percentile(result.gap, 0.99)},
                  {"e2e_p50", percentile(result.end_to_end, 0.5)},
                  {"bytes_used_mean", result.bytes_used},
                  {"bytes_held_mean", result.bytes_held},
                  {"bytes_reserving_max_length", reserving},
                  {"rows_per_step", result.rows_per_step}});
    if (result.failed > 0) {
      std::fprintf(stderr, "tessera: %d of %d requests failed\n", result.failed, options.requests);
      return kExitFailure;
    }
  }
  if (options.long_prompt.prompt == 0 || options.policies.find("continuous") == std::string::npos)
    return kExitOk;
  const Status status = bench_long_prompt(options.service, options.long_prompt, *lines);
  return status.ok() ? kExitOk : fail(status);
}

}  // namespace

void add_bench_serving(CLI::App& bench, int* code) {
  auto options = std::make_shared<ServingOptions>();
  options->service.max_num_seqs = 16;
  CLI::App* sub =
      bench.add_subcommand("serving", "one trace of requests with static and with continuous batching");
  add_service_flags(*sub, options->service);
  sub->remove_option(sub->get_option("--batching"));
  sub->add_option("--trace", options->trace, "poisson arrivals, or burst: all at once")
      ->check(CLI::IsMember({"poisson", "burst"}))
      ->capture_default_str();
  sub->add_option("--batching", options->policies, "static, continuous or static,continuous")
      ->capture_default_str();
  sub->add_option("--requests,--num-prompts", options->requests, "requests in the trace")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  sub->add_option("--rate,--request-rate", options->rate, "requests a second (poisson)")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  sub->add_option("--input-tokens", options->input_tokens, "mean prompt length")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  sub->add_option("--output-tokens", options->output_tokens, "mean answer length")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  sub->add_option("--shared", options->shared_tokens, "tokens of a prefix that every prompt begins with")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  sub->add_option("--long-prompt", options->long_prompt.prompt,
                  "tokens of a prompt sent beside running streams after the trace; 0: leave that part out")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
  sub->add_option("--streams", options->long_prompt.streams, "streams that run beside the long prompt")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  sub->add_option("--seed", options->seed, "of the trace")->capture_default_str();
  sub->add_option("--json", options->json, "file for one JSON object a line");
  sub->callback([options, code] { *code = bench_serving(*options); });
}

}  // namespace tessera::cli
