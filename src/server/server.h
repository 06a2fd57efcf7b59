// Server: the OpenAI HTTP API over an engine::Service.
//
// One thread, the caller of run(), owns every socket, timer and answer; a few workers parse, tokenise and
// render. Sinks of the engine only append to a mailbox, so one wake-up carries the news of a whole step.
// An idle server sleeps in epoll and uses no CPU.
//
// What each route takes and answers is in docs/server.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/log.h"
#include "engine/service.h"
#include "tessera/status.h"

namespace tessera::server {

// Every bound is checked while reading, before the bytes beyond it are kept.
struct ServerLimits {
  size_t head_bytes = 32 * 1024;            // request line and headers together: 431
  int headers = 100;                        // 431
  size_t target_bytes = 8 * 1024;           // 414
  size_t body_bytes = 16 * 1024 * 1024;     // 413
  int body_chunks = 16 * 1024;              // of a chunked body: 413
  int json_depth = 64;                      // 400
  int json_values = 1 << 20;                // values in one body: 400
  int connections = 4096;                   // more wait in the kernel's backlog
  int waiting_jobs = 1024;                  // requests not yet tokenised; more get 429
  size_t stream_buffer_bytes = 256 * 1024;  // unsent bytes of one stream before its news waits unwritten
  size_t socket_buffer_bytes = 128 * 1024;  // SO_SNDBUF; 0: the system's
  // Times in milliseconds.
  int head_ms = 10'000;        // from a request's first byte to the end of its headers
  int keep_alive_ms = 75'000;  // idle between requests
  int body_grace_ms = 10'000;  // a body must be there after grace + bytes so far / rate
  int body_bytes_per_s = 1024;
  int write_stall_ms = 30'000;  // no byte taken, or a full stream buffer, for this long: the client is cut
  int sse_ping_ms = 15'000;     // silence in a stream before a comment keeps it alive
  int linger_ms = 1'000;        // after a refusal, how long the client's own bytes are read and dropped
};

struct ServerOptions {
  // Behaviour.
  std::string host = "127.0.0.1";          // an address, or a name that resolves to one
  int port = 8080;                         // 0: any free one, see port()
  std::vector<std::string> api_keys;       // any of them opens every route; none: no key is asked for
  bool allow_open_access = false;          // listen beyond loopback without a key
  std::vector<std::string> allowed_hosts;  // further Host names on a loopback bind, without port
  std::string served_model_name;           // "": the model card's id
  int drain_ms = 30'000;                   // how long drain() lets running requests go on
  ServerLimits limits;
  // Performance.
  int workers = 2;  // threads that parse, tokenise and render
  // Seams.
  LogSink log;
  bool access_log = false;  // one info line for each answer
  Clock* clock = nullptr;   // null: the system's
};

class Server {
 public:
  // Binds and listens, so port() is known and clients may already connect. `service` must outlive the server.
  // invalid_argument: an option out of range, no usable address, or a bind beyond loopback without a key.
  static Result<std::unique_ptr<Server>> create(ServerOptions options, engine::Service& service);
  ~Server();  // REQUIRES: run() has returned or was never called
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  int port() const;
  std::string address() const;  // "http://127.0.0.1:8080"

  // Serves until drained or stopped. Call once.
  void run();

  // From any thread; neither waits. drain(): /health answers 503 and new requests are refused with 503 at
  // once; run() returns when the running ones are answered or after drain_ms, when what is left is cancelled.
  // stop(): cancels everything now.
  void drain();
  void stop();

 private:
  class Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tessera::server
