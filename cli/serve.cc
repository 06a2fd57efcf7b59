// tessera serve: the OpenAI API over one model.
#include <pthread.h>

#include <csignal>
#include <cstdio>
#include <thread>

#include "args.h"
#include "core/clock.h"
#include "core/format.h"
#include "server/server.h"

namespace tessera::cli {
namespace {

struct ServeOptions {
  engine::ServiceOptions service;
  server::ServerOptions server;
  bool verbose = false;
};

// One line, however the client spelt the model's path or name. Greedy: a small model's samples ramble.
std::string curl_line(const std::string& address, const std::string& model, bool key) {
  return format(
      "curl {}/v1/chat/completions{} -H 'Content-Type: application/json' -d '{{\"model\": \"{}\", "
      "\"temperature\": 0, \"messages\": "
      "[{{\"role\": \"user\", \"content\": \"What is the capital of France?\"}}]}}'",
      address, key ? " -H \"Authorization: Bearer $TESSERA_API_KEY\"" : "", model);
}

int serve(ServeOptions options) {
  // SIGTERM and SIGINT are taken by one thread of ours; every other thread inherits the mask.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGHUP, SIG_IGN);

  const int64_t started = system_clock().now_ns();
  const LogLevel least = options.verbose ? LogLevel::debug : LogLevel::info;
  auto service = load(options.service, least);
  if (!service.ok()) return fail(service.status());
  options.server.log = stderr_log(least);
  auto server = server::Server::create(options.server, **service);
  if (!server.ok()) return fail(server.status());
  const std::string& model = (*service)->card().id;
  std::printf("%s is ready at %s after %.2f s\ntry: %s\n", model.c_str(), (*server)->address().c_str(),
              static_cast<double>(system_clock().now_ns() - started) * 1e-9,
              curl_line((*server)->address(), model, !options.server.api_keys.empty()).c_str());
  std::fflush(stdout);

  std::jthread watcher([&](std::stop_token stop) {
    int seen = 0;
    while (!stop.stop_requested()) {
      const timespec half_second{0, 500'000'000};
      if (sigtimedwait(&signals, nullptr, &half_second) < 0) continue;
      if (++seen == 1) {
        std::fprintf(stderr, "send the signal once more to stop now\n");
        (*server)->drain();
      } else {
        (*server)->stop();
      }
    }
  });
  (*server)->run();
  return kExitOk;
}

}  // namespace

void add_serve(CLI::App& app, int* code) {
  auto options = std::make_shared<ServeOptions>();
  CLI::App* sub = app.add_subcommand("serve", "answer the OpenAI HTTP API");
  add_service_flags(*sub, options->service);
  sub->add_option_function<uint64_t>(
      "-s,--seed", [options](const uint64_t& seed) { options->service.seed = seed; },
      "seed of requests that give none (default: drawn at start)");
  sub->add_option("--host", options->server.host, "address to listen on")->capture_default_str();
  sub->add_option("--port", options->server.port, "port to listen on; 0: any free one")
      ->capture_default_str();
  sub->add_option("--api-key", options->server.api_keys,
                  "key that clients must send; may be given several times, each is a tenant of its own")
      ->envname("TESSERA_API_KEY");
  sub->add_flag("--allow-open-access", options->server.allow_open_access,
                "listen beyond this machine without an API key");
  sub->add_option("--allowed-host", options->server.allowed_hosts,
                  "further Host name that a server on a loopback address answers to");
  sub->add_option_function<int>(
         "--shutdown-timeout", [options](const int& seconds) { options->server.drain_ms = seconds * 1000; },
         "seconds that running requests get after SIGTERM (default: 30)")
      ->check(CLI::Range(0, 86400));
  sub->add_flag("--access-log", options->server.access_log, "one line per request on standard error");
  sub->add_flag("-v,--verbose", options->verbose,
                "debug lines too (default: information, warnings and errors)");
  sub->callback([options, code] { *code = serve(*options); });
}

}  // namespace tessera::cli
