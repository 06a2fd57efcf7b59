// tessera run: one prompt, or a chat at the terminal.
#include <unistd.h>

#include <atomic>
#include <boost/json.hpp>
#include <csignal>
#include <cstdio>
#include <iostream>

#include "args.h"
#include "core/clock.h"
#include "core/format.h"
#include "line_reader.h"
#include "stream.h"

namespace tessera::cli {
namespace {

std::atomic<int> interrupts{0};
void on_interrupt(int) {
  interrupts.fetch_add(1);
}

struct RunOptions {
  engine::ServiceOptions service;
  engine::SamplingParams sampling;
  std::string prompt;
  std::string system;
  bool has_prompt = false;
  bool chat = false;
  bool json = false;
  bool verbose = false;
};

struct Answer {
  std::string text;
  std::vector<int32_t> tokens;
  engine::FinishReason finish = engine::FinishReason::none;
  Status error;
  uint64_t seed = 0;
  int prompt_tokens = 0, cached_tokens = 0;
  double first_token_seconds = 0, seconds = 0;
};

// Runs one request to its end; prints the text as it comes unless `silent`. Ctrl-C cancels the answer.
Result<Answer> generate(engine::Service& service, const RunOptions& options, std::vector<int32_t> prompt,
                        bool silent) {
  static int counter = 0;
  engine::Request request;
  request.id = format("run-{}", ++counter);
  request.prompt = std::move(prompt);
  request.sampling = options.sampling;
  const std::string id = request.id;
  auto stream = Stream::create();
  Clock& clock = system_clock();
  const int64_t started = clock.now_ns();
  interrupts = 0;
  TESSERA_RETURN_IF_ERROR(service.submit(std::move(request), stream->sink()));

  Answer answer;
  bool cancelled = false;
  for (bool last = false; !last;) {
    if (interrupts.load() > 0 && !cancelled) {
      cancelled = true;
      service.cancel(id);
    }
    for (engine::Output& output : stream->take(std::chrono::milliseconds(100))) {
      if (!output.tokens.empty() && answer.tokens.empty()) {
        answer.first_token_seconds = static_cast<double>(clock.now_ns() - started) * 1e-9;
      }
      answer.tokens.insert(answer.tokens.end(), output.tokens.begin(), output.tokens.end());
      answer.text += output.text;
      answer.seed = output.seed;
      answer.prompt_tokens = output.prompt_tokens;
      answer.cached_tokens = output.cached_tokens;
      if (output.finish != engine::FinishReason::none) {
        answer.finish = output.finish;
        answer.error = output.error;
      }
      last = output.last;
      if (!silent) {
        std::fwrite(output.text.data(), 1, output.text.size(), stdout);
        std::fflush(stdout);
      }
    }
  }
  answer.seconds = static_cast<double>(clock.now_ns() - started) * 1e-9;
  return answer;
}

void print_statistics(const Answer& answer) {
  const double decode = answer.seconds - answer.first_token_seconds;
  const double computed = answer.prompt_tokens - answer.cached_tokens;
  const double later = static_cast<double>(answer.tokens.size()) - 1.0;
  std::fprintf(stderr,
               "[prompt %d tokens, %d cached, %.1f tokens/s; answer %zu tokens, %.1f tokens/s; first token "
               "%.0f ms%s]\n",
               answer.prompt_tokens, answer.cached_tokens,
               answer.first_token_seconds > 0 ? computed / answer.first_token_seconds : 0.0,
               answer.tokens.size(), decode > 0 && later > 0 ? later / decode : 0.0,
               answer.first_token_seconds * 1e3,
               answer.finish == engine::FinishReason::cancelled ? "; stopped" : "");
}

void print_json(const Answer& answer, const std::vector<int32_t>& prompt) {
  boost::json::object object;
  object["text"] = answer.text;
  object["finish_reason"] = engine::name(answer.finish);
  object["prompt_token_ids"] = boost::json::array(prompt.begin(), prompt.end());
  object["token_ids"] = boost::json::array(answer.tokens.begin(), answer.tokens.end());
  object["seed"] = answer.seed;
  object["prompt_tokens"] = answer.prompt_tokens;
  object["cached_tokens"] = answer.cached_tokens;
  object["completion_tokens"] = answer.tokens.size();
  object["first_token_seconds"] = answer.first_token_seconds;
  object["seconds"] = answer.seconds;
  std::cout << boost::json::serialize(object) << "\n" << std::flush;
}

int one_prompt(engine::Service& service, const RunOptions& options) {
  Result<engine::EncodedText> prompt = Status(StatusCode::internal, "no prompt");
  if (options.chat) {
    std::vector<engine::ChatMessage> messages;
    if (!options.system.empty()) messages.push_back({"system", options.system, ""});
    messages.push_back({"user", options.prompt, ""});
    prompt = service.render_chat(messages, true);
  } else {
    prompt = service.tokenize(options.prompt, true, false);
  }
  if (!prompt.ok()) return fail(prompt.status());
  const std::vector<int32_t>& tokens = prompt->tokens;
  auto answer = generate(service, options, tokens, options.json);
  if (!answer.ok()) return fail(answer.status());
  if (options.json) {
    print_json(*answer, tokens);
  } else {
    std::printf("\n");
    std::fflush(stdout);
    print_statistics(*answer);
  }
  if (answer->finish == engine::FinishReason::error) return fail(answer->error);
  return kExitOk;
}

int chat(engine::Service& service, const RunOptions& options) {
  std::vector<engine::ChatMessage> messages;
  if (!options.system.empty()) messages.push_back({"system", options.system, ""});
  const size_t fixed = messages.size();
  const bool terminal = isatty(STDIN_FILENO) != 0;
  if (terminal && !options.json) {
    std::fprintf(
        stderr, "%s, %d tokens of context. Ctrl-C stops an answer; /clear forgets; /exit or Ctrl-D leaves.\n",
        service.card().id.c_str(), service.limits().max_model_len);
  }
  LineReader reader;
  std::string line;
  while (reader.read(terminal ? "> " : "", &line)) {
    if (line.empty()) continue;
    if (line == "/exit" || line == "/quit") break;
    if (line == "/clear") {
      messages.resize(fixed);
      continue;
    }
    messages.push_back({"user", line, ""});
    auto prompt = service.render_chat(messages, true);
    auto answer = prompt.ok() ? generate(service, options, prompt->tokens, options.json)
                              : Result<Answer>(prompt.status());
    if (!answer.ok()) {
      std::fprintf(stderr, "tessera: %s\n", answer.status().message().c_str());
      messages.pop_back();
      if (!terminal) return fail(answer.status());
      continue;
    }
    if (options.json) {
      print_json(*answer, prompt->tokens);
    } else {
      std::printf("\n");
      std::fflush(stdout);
      print_statistics(*answer);
    }
    messages.push_back({"assistant", answer->text, ""});
  }
  return kExitOk;
}

}  // namespace

void add_run(CLI::App& app, int* code) {
  auto options = std::make_shared<RunOptions>();
  options->service.max_num_seqs = 4;
  options->sampling.max_tokens = 512;
  options->sampling.temperature = 0.8f;
  options->sampling.top_k = 40;
  options->sampling.top_p = 0.95f;
  options->sampling.min_p = 0.05f;
  CLI::App* run = app.add_subcommand("run", "answer one prompt, or chat at the terminal when there is none");
  add_service_flags(*run, options->service);
  add_sampling_flags(*run, options->sampling);
  run->add_option_function<std::string>(
      "-p,--prompt",
      [options](const std::string& text) {
        options->prompt = text;
        options->has_prompt = true;
      },
      "text to continue; with --chat, one user message");
  run->add_option("--system", options->system, "system message of the chat");
  run->add_flag("--chat", options->chat, "put -p through the chat template");
  run->add_flag("--json", options->json, "one JSON object per answer, with token ids");
  run->add_flag("-v,--verbose", options->verbose,
                "say what the engine chose (default: warnings and errors alone)");
  run->callback([options, code] {
    struct sigaction action {};
    action.sa_handler = on_interrupt;  // without SA_RESTART: reading a line must return
    sigaction(SIGINT, &action, nullptr);
    auto service = load(options->service, options->verbose ? LogLevel::debug : LogLevel::warning);
    if (!service.ok()) {
      *code = fail(service.status());
      return;
    }
    *code = options->has_prompt ? one_prompt(**service, *options) : chat(**service, *options);
  });
}

}  // namespace tessera::cli
