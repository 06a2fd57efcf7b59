// Generation: one /v1/completions or /v1/chat/completions from its body to its last byte.
//
// prepare() runs on a worker: it parses, tokenises and submits. All else runs on the io thread, where the
// engine's outputs arrive through the mailbox.
//
// Invariants:
//  1. No answer begins before every prompt is submitted: a later prompt that is refused still gets its
//  status.
//  2. Whichever comes last of on_abort() and submit() cancels, so no request of a client that has gone stays
//  in
//     the engine.
//  3. At most one of respond() and end_stream() is called, and nothing after it.
//  4. While the connection is congested outputs wait here unwritten, a bounded number of them.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/clock.h"
#include "engine/service.h"
#include "server/answer.h"
#include "server/call.h"
#include "server/exchange.h"
#include "server/json_value.h"
#include "server/mailbox.h"

namespace tessera::server {

// What every request shares; outlives them all.
struct Shared {
  engine::Service* service = nullptr;
  std::shared_ptr<Mailbox> mailbox;
  Clock* clock = nullptr;
  CallRules rules;
  JsonLimits json;
  std::string fingerprint;
  size_t longest_token_bytes = 1;  // no prompt of b bytes has fewer than b / this tokens
};

class Generation final : public Exchange, public std::enable_shared_from_this<Generation> {
 public:
  Generation(const Shared& shared, std::shared_ptr<Responder> responder, bool chat, std::string tenant,
             std::string request_id);

  // Called once, on the io thread, when the request is answered or its client lost.
  void on_end(std::function<void()> callback) { on_end_ = std::move(callback); }

  void prepare(const std::string& body);  // on a worker
  void shut_down();                       // the server's deadline is over: cancels, and says so to the client

  void on_abort() override;
  void on_writable() override;
  void on_ping() override;

 private:
  Fault parse(const std::string& body);
  Fault encode_prompts();
  Fault check_length(size_t prompt, const std::string& param) const;
  Fault submit();
  void cancel_all();
  std::string engine_id(size_t prompt) const;

  void start();                                                  // every prompt is in the engine
  void hear(int prompt, std::vector<engine::Output>&& outputs);  // the engine's news
  void write_held();
  void publish(const std::string& events);
  void complete(std::string events);
  void fail(const ApiError& error);
  void end();
  void begin_stream();

  const Shared& shared_;
  std::shared_ptr<Responder> responder_;  // null once answered or lost
  std::string tenant_;
  std::string request_id_;
  std::function<void()> on_end_;
  std::atomic<bool> aborted_{false};
  std::atomic<bool> submitted_{false};

  // Written by prepare() before the first submit() and only read afterwards.
  Call call_;
  std::vector<std::vector<int32_t>> prompts_;
  std::vector<std::string> echoes_;

  // On the io thread.
  std::unique_ptr<Answer> answer_;
  std::deque<std::pair<int, engine::Output>> held_;  // not yet written, with their prompt
  bool started_ = false;
  bool streaming_ = false;
};

}  // namespace tessera::server
