// Connection: one client's socket, from its bytes to requests and from answers to bytes.
//
// Invariants:
//  1. Lives on the io thread alone; every handler holds a reference, so it ends when its socket does.
//  2. One request at a time. What a client pipelines waits, at most kMaxPipelined bytes of it.
//  3. After an answer to anything malformed the connection closes: there is never a second answer.
//  4. While an answer is due the socket is watched for reading, so a client that hangs up is noticed at once.
//  5. Every state has a deadline, except an unfinished answer of which every byte so far was taken.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/clock.h"
#include "server/exchange.h"
#include "server/http.h"
#include "server/server.h"

namespace tessera::server {

class Connection;

// What all connections share.
struct ConnectionHost {
  boost::asio::io_context& io;
  Application& application;
  const ServerLimits& limits;
  Clock& clock;
  std::string scratch;                         // read buffer, so that an idle connection owns none
  std::function<void(Connection*)> on_closed;  // the last call of a connection
  std::function<void()> on_answered;           // a request has ended, one way or the other
};

class Connection final : public Responder, public std::enable_shared_from_this<Connection> {
 public:
  Connection(boost::asio::ip::tcp::socket socket, ConnectionHost& host);

  void start();
  void close();       // now, without another byte; an exchange in the works is aborted
  bool busy() const;  // a request is being read, worked on or answered

  void respond(HttpResponse response) override;
  void begin_stream() override;
  void write_stream(std::string_view events) override;
  void end_stream() override;
  void cut() override;
  bool congested() const override { return backlog() > host_.limits.stream_buffer_bytes; }

 private:
  enum class State { head, body, answering, lingering, closed };

  void wait_readable();
  void on_readable();
  void on_end_of_input();
  void process();
  bool process_head();  // false: needs more bytes or has been answered
  bool process_body();
  void dispatch();
  void refuse(const HttpRefusal& refusal);

  void flush();
  void on_flushed();
  void finish_request();
  void break_off(const char* note);  // from the event loop, never from inside a call of the application
  void record(const char* note);

  int64_t due() const;  // of the state's deadline, in the clock's ns; INT64_MAX: none
  void arm();
  void on_timer();
  void on_due(int64_t now);

  size_t backlog() const { return out_.size() - out_sent_; }
  int64_t now() const { return host_.clock.now_ns(); }
  template <typename F>
  void guarded(F&& work);

  boost::asio::ip::tcp::socket socket_;
  ConnectionHost& host_;
  boost::asio::steady_timer timer_;
  State state_ = State::head;

  std::string in_;      // bytes read and not yet used
  size_t scanned_ = 0;  // of in_, by find_head_end
  RequestHead head_;
  std::unique_ptr<BodyReader> body_;
  std::shared_ptr<Exchange> exchange_;
  std::string request_id_;

  std::string out_;  // bytes to send; the first out_sent_ are sent
  size_t out_sent_ = 0;
  uint64_t sent_ = 0;  // of this answer
  int status_ = 0;
  bool answered_ = false;   // the answer's last byte is in out_
  bool keep_alive_ = true;  // after this answer
  bool first_ = true;       // no request has been answered on this connection
  bool end_of_input_ = false;
  bool reading_ = false, writing_ = false, was_congested_ = false;

  int64_t since_ = 0;  // the state's own start, or the first byte of a head
  int64_t request_begin_ = 0;
  int64_t write_progress_ = 0;  // when bytes were last taken, or out_ stopped being empty
  int64_t congested_since_ = 0;
  int64_t last_event_ = 0;  // when something was last written to the stream
  uint64_t body_received_ = 0;
  int64_t timer_due_ = INT64_MAX;
};

}  // namespace tessera::server
