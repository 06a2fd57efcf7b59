#include "args.h"

#include <unistd.h>

#include <cstdio>
#include <map>

#include "core/format.h"

namespace tessera::cli {

std::vector<std::string> expand_short_flags(int argc, char** argv) {
  static const std::map<std::string, std::string> kLong = {
      {"-np", "--parallel"},      {"-ub", "--ubatch-size"},   {"-ctk", "--cache-type-k"},
      {"-ctv", "--cache-type-v"}, {"-tb", "--threads-batch"}, {"-ngl", "--n-gpu-layers"},
  };
  std::vector<std::string> words(argv + 1, argv + argc);
  for (std::string& word : words) {
    const auto it = kLong.find(word.substr(0, word.find('=')));
    if (it != kLong.end()) word = it->second + word.substr(it->first.size());
  }
  return words;
}

void add_service_flags(CLI::App& app, engine::ServiceOptions& options) {
  app.add_option("-m,--model", options.model_path, "GGUF file of a Llama-type model")->required();
  app.add_option("-a,--alias,--served-model-name", options.alias,
                 "name of the model in the API (default: the file's name)");
  app.add_option(
      "-c,--ctx-size,--max-model-len", options.max_model_len,
      "longest prompt plus answer of one request, in tokens; 0: the model's own. As vLLM's, and unlike "
      "llama-server's, it is per request and not divided by -np");
  app.add_option("-t,--threads", options.threads, "threads of the model; 0: one per allowed CPU");
  app.add_option("--parallel,--max-num-seqs", options.max_num_seqs, "sequences in one step; also -np");
  app.add_option("--ubatch-size,--max-num-batched-tokens", options.max_num_batched_tokens,
                 "tokens in one step: every running answer first, then pieces of prompts; also -ub");
  app.add_option("--cache-type-k,--kv-cache-dtype", options.kv_cache_dtype,
                 "how K and V are stored: auto, bf16 or f32; also -ctk")
      ->check(CLI::IsMember({"auto", "bf16", "f32"}));
  app.add_option("--kv-cache-memory-bytes", options.kv_cache_memory_bytes,
                 "bytes of the KV pool; 0: a share of the free memory, printed at start");
  app.add_flag("--enable-prefix-caching,!--no-enable-prefix-caching", options.prefix_caching,
               "keep K and V of past prompts and answers, and share them between requests (default: on)");
  app.add_flag("!--no-kv-sharing", options.kv_sharing, "share no block: every sequence holds its own copy");
  app.add_flag("!--no-two-phase", options.two_phase,
               "walk shared blocks once per sequence instead of once per step (same bits, slower)");
  app.add_option_function<std::string>(
         "--batching",
         [&options](const std::string& text) {
           options.batching = text == "static" ? engine::Batching::static_ : engine::Batching::continuous;
         },
         "continuous (default) or static: a batch is admitted only when the last one has ended")
      ->check(CLI::IsMember({"continuous", "static"}));
  app.add_option_function<std::string>(
         "--compute",
         [&options](const std::string& text) {
           options.compute = text == "f32" ? engine::Compute::f32 : engine::Compute::quantized;
         },
         "quantized (default): weights stay quantised, activations int8 per 32; f32: the exact arithmetic")
      ->check(CLI::IsMember({"quantized", "f32"}));
  app.add_option("--max-num-queued-reqs", options.max_queued_requests, "requests that may wait before a 429");
  app.add_option_function<std::string>(
      "--chat-template", [&options](const std::string& text) { options.chat_template = text; },
      "Jinja source of the chat template (default: the model's own)");
}

void add_sampling_flags(CLI::App& app, engine::SamplingParams& params) {
  app.add_option("-n,--n-predict,--max-tokens", params.max_tokens, "longest answer, in tokens")
      ->capture_default_str();
  app.add_option("--temp,--temperature", params.temperature, "0: always the likeliest token")
      ->capture_default_str();
  app.add_option("--top-k", params.top_k, "keep the k likeliest tokens; 0: all")->capture_default_str();
  app.add_option("--top-p", params.top_p, "keep the likeliest tokens that sum to p")->capture_default_str();
  app.add_option("--min-p", params.min_p, "drop tokens below this share of the likeliest")
      ->capture_default_str();
  app.add_option("--repeat-penalty,--repetition-penalty", params.repetition_penalty,
                 "divide the scores of tokens seen in prompt or answer; 1: off")
      ->capture_default_str();
  app.add_option("--presence-penalty", params.presence_penalty, "subtract once from tokens in the answer")
      ->capture_default_str();
  app.add_option("--frequency-penalty", params.frequency_penalty, "subtract per occurrence in the answer")
      ->capture_default_str();
  app.add_option_function<uint64_t>(
      "-s,--seed", [&params](const uint64_t& seed) { params.seed = seed; }, "seed of the random draws");
  app.add_option("--stop", params.stop, "text that ends the answer; may be given several times");
  app.add_option("--min-tokens", params.min_tokens, "no end before this many tokens")->capture_default_str();
  app.add_flag("--ignore-eos", params.ignore_eos, "go on after the model's end of text");
}

LogSink stderr_log(LogLevel least) {
  return [least](LogLevel level, std::string_view line) {
    if (level < least) return;
    const char* mark = level == LogLevel::error ? "error: " : level == LogLevel::warning ? "warning: " : "";
    std::fprintf(stderr, "%s%.*s\n", mark, static_cast<int>(line.size()), line.data());
  };
}

Result<std::unique_ptr<engine::Service>> load(engine::ServiceOptions options, LogLevel least) {
  const bool terminal = isatty(STDERR_FILENO) != 0 && least <= LogLevel::info;
  options.log = stderr_log(least);
  int shown = -1;
  auto service = engine::load_service(options, [&](double fraction) {
    const int percent = static_cast<int>(fraction * 100.0);
    if (!terminal || percent == shown) return;
    shown = percent;
    std::fprintf(stderr, "\rloading %3d %%", percent);
    if (percent >= 100) std::fprintf(stderr, "\r                \r");
    std::fflush(stderr);
  });
  if (terminal && shown >= 0 && shown < 100) std::fprintf(stderr, "\r                \r");
  return service;
}

void warn_left_out(size_t left_out) {
  if (left_out > 0) std::fprintf(stderr, "warning: %s\n", engine::left_out_message(left_out).c_str());
}

int fail(const Status& status) {
  // One line whatever a path or a file's name holds.
  std::string line = status.message();
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  std::fprintf(stderr, "tessera: %s\n", line.c_str());
  switch (status.code()) {
    case StatusCode::invalid_argument:
    case StatusCode::bad_file:
    case StatusCode::not_found:
    case StatusCode::unsupported:
      return kExitBadInput;
    default:
      return kExitFailure;
  }
}

}  // namespace tessera::cli
