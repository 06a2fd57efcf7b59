// The seam between a connection (bytes, deadlines) and the application (routes, answers).
//
// Everything here runs on the io thread. A request is answered exactly once: by respond(), or by
// begin_stream(), any number of write_stream() and end_stream(). None of these calls back into the Exchange:
// on_abort() and on_writable() always come from the event loop.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "server/http.h"

namespace tessera::server {

// The connection as the application sees it. Calls after the client has gone have no effect.
class Responder {
 public:
  virtual ~Responder() = default;
  virtual void respond(HttpResponse response) = 0;
  virtual void begin_stream() = 0;
  virtual void write_stream(std::string_view events) = 0;
  virtual void end_stream() = 0;
  virtual void cut() = 0;              // the client is hopelessly behind: end the connection
  virtual bool congested() const = 0;  // unsent bytes exceed the stream buffer: hold further news back
};

// A request in the works, as the connection sees it.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual void on_abort() = 0;     // the client has gone or was cut; nothing can be answered any more
  virtual void on_writable() = 0;  // no longer congested
  virtual void on_ping() = 0;      // a streamed answer has been silent for sse_ping_ms
};

struct AccessRecord {
  std::string_view method, target;
  std::string_view request_id;
  int status = 0;  // 0: cut before an answer
  uint64_t sent_bytes = 0;
  int64_t duration_ns = 0;
  const char* note = "";  // e.g. "client gone"
};

class Application {
 public:
  virtual ~Application() = default;
  // Judges a head before its body is read; an answer here ends the request.
  virtual std::optional<HttpResponse> admit(const RequestHead& head) = 0;
  // Answers, now or later. nullptr when it is answered already.
  virtual std::shared_ptr<Exchange> handle(std::shared_ptr<Responder> responder, const RequestHead& head,
                                           std::string body, const std::string& request_id) = 0;
  // The answer to a head or body that breaks HTTP.
  virtual HttpResponse refuse(const HttpRefusal& refusal) = 0;
  virtual std::string next_request_id() = 0;
  virtual void record(const AccessRecord& record) = 0;
  virtual bool draining() const = 0;
};

}  // namespace tessera::server
