// Routes: what each path answers. The Application behind every connection; io thread only.
//
// A request is judged in this order, so that nothing is told to somebody without a key: HTTP, Host, key,
// route, method, query, draining, body type and length; then the body.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "server/auth.h"
#include "server/exchange.h"
#include "server/generation.h"
#include "server/metrics_text.h"
#include "server/server.h"
#include "server/worker_pool.h"

namespace tessera::server {

class Routes final : public Application {
 public:
  // `loopback`: bound to a loopback address, so Host must name one. `host`: as given by the user.
  Routes(const ServerOptions& options, engine::Service& service, std::shared_ptr<Mailbox> mailbox,
         bool loopback);
  ~Routes() override;

  std::optional<HttpResponse> admit(const RequestHead& head) override;
  std::shared_ptr<Exchange> handle(std::shared_ptr<Responder> responder, const RequestHead& head,
                                   std::string body, const std::string& request_id) override;
  HttpResponse refuse(const HttpRefusal& refusal) override;
  std::string next_request_id() override;
  void record(const AccessRecord& record) override;
  bool draining() const override { return draining_; }

  void start_draining() { draining_ = true; }
  void shut_down();  // ends every generation with an error to its client
  HttpCounters& counters() { return counters_; }

 private:
  enum class Route { none, health, metrics, models, model, completions, chat, tokenize, detokenize };
  static Route route_of(std::string_view path);
  static bool is_post(Route route);

  Fault check_host(const RequestHead& head) const;
  Fault check_body(const RequestHead& head) const;
  HttpResponse health() const;
  HttpResponse models() const;
  HttpResponse model(const std::string& path) const;
  HttpResponse metrics() const;
  std::string model_object() const;
  // On a worker.
  HttpResponse tokenize(const std::string& body) const;
  HttpResponse detokenize(const std::string& body) const;

  const ServerOptions& options_;
  engine::Service& service_;
  Clock& clock_;
  const bool loopback_;
  const KeyRing keys_;
  Shared shared_;
  HttpCounters counters_;
  std::unordered_set<std::shared_ptr<Generation>> generations_;
  const std::string id_prefix_;  // of this process, so that ids differ between restarts
  uint64_t next_id_ = 0;
  bool draining_ = false;
  WorkerPool workers_;  // last: its threads use all of the above
};

// One line for the access log; control characters of the client are escaped, keys and bodies never in it.
std::string access_line(const AccessRecord& record);

}  // namespace tessera::server
