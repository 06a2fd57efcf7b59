// fake_server [PORT [API_KEY]]: serves the fake model until SIGTERM or SIGINT; prints its address.
#include <signal.h>

#include <cstdio>
#include <cstdlib>
#include <thread>

#include "server/server.h"
#include "tests/server/fake_service.h"

int main(int argc, char** argv) {
  using tessera::server::Server;
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  tessera::server::FakeService service({.step_us = 2000});
  tessera::server::ServerOptions options;
  options.port = argc > 1 ? std::atoi(argv[1]) : 0;
  if (argc > 2) options.api_keys = {argv[2]};
  options.log = [](tessera::LogLevel, std::string_view line) {
    std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
  };
  auto server = Server::create(options, service);
  if (!server.ok()) {
    std::fprintf(stderr, "%s\n", server.status().message().c_str());
    return 2;
  }
  std::printf("%s\n", (*server)->address().c_str());
  std::fflush(stdout);
  std::thread waiter([&] {
    int signal = 0;
    sigwait(&signals, &signal);
    (*server)->drain();
  });
  (*server)->run();
  waiter.join();
  return 0;
}
