#include "server/connection.h"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/post.hpp>
#include <exception>
#include <limits>

#include "core/format.h"

namespace tessera::server {
namespace {

namespace asio = boost::asio;
using ErrorCode = boost::system::error_code;

constexpr size_t kMaxPipelined = 64 * 1024;
constexpr size_t kKeptCapacity = 64 * 1024;  // buffers above it are given back after a request
constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

constexpr int64_t ms(int64_t milliseconds) {
  return milliseconds * 1'000'000;
}

}  // namespace

Connection::Connection(asio::ip::tcp::socket socket, ConnectionHost& host)
    : socket_(std::move(socket)), host_(host), timer_(host.io) {}

// An exception in a handler is this connection's end, not the server's.
template <typename F>
void Connection::guarded(F&& work) {
  try {
    work();
    if (state_ != State::closed) arm();
  } catch (const std::exception&) {
    break_off("internal error");
  }
}

void Connection::start() {
  ErrorCode ignored;
  socket_.non_blocking(true, ignored);
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  if (host_.limits.socket_buffer_bytes > 0) {
    const int bytes = static_cast<int>(host_.limits.socket_buffer_bytes);
    socket_.set_option(asio::socket_base::send_buffer_size(bytes), ignored);
  }
  since_ = now();
  guarded([this] { wait_readable(); });
}

bool Connection::busy() const {
  if (state_ == State::head) return !in_.empty();
  return state_ == State::body || state_ == State::answering;
}

// ---- reading

void Connection::wait_readable() {
  if (reading_ || end_of_input_ || state_ == State::closed) return;
  reading_ = true;
  socket_.async_wait(asio::socket_base::wait_read, [self = shared_from_this()](ErrorCode error) {
    self->reading_ = false;
    if (error || self->state_ == State::closed) return;
    self->guarded([&] { self->on_readable(); });
  });
}

void Connection::on_readable() {
  ErrorCode error;
  const size_t count = socket_.read_some(asio::buffer(host_.scratch), error);
  if (error == asio::error::would_block || error == asio::error::interrupted) {
    wait_readable();
    return;
  }
  if (error) {
    on_end_of_input();
    return;
  }
  if (state_ != State::lingering) {
    if (state_ == State::head && in_.empty()) since_ = now();
    in_.append(host_.scratch, 0, count);
    process();
  }
  wait_readable();
}

// End of file and a reset mean the same here: a client that closes its sending side no longer wants an
// answer, unless the answer is on its way already.
void Connection::on_end_of_input() {
  end_of_input_ = true;
  if (state_ == State::answering && answered_) {
    keep_alive_ = false;
    return;
  }
  break_off("client gone");
}

void Connection::process() {
  bool more = true;
  while (more) {
    switch (state_) {
      case State::head:
        more = process_head();
        break;
      case State::body:
        more = process_body();
        break;
      case State::answering:
        if (in_.size() > kMaxPipelined) break_off("too much pipelined");
        return;
      default:
        return;
    }
  }
}

bool Connection::process_head() {
  if (in_.empty()) return false;
  size_t end = 0;
  auto refusal = find_head_end(in_, host_.limits, &scanned_, &end);
  if (!refusal && end == 0) return false;
  head_ = {};
  request_begin_ = since_;
  request_id_ = host_.application.next_request_id();
  if (!refusal) refusal = parse_head(std::string_view(in_).substr(0, end), host_.limits, &head_);
  if (refusal) {
    refuse(*refusal);
    return false;
  }
  if (std::optional<HttpResponse> answer = host_.application.admit(head_)) {
    state_ = State::answering;
    answer->close = answer->close || head_.has_body();
    in_.erase(0, end);
    respond(std::move(*answer));
    return false;
  }
  if (head_.content_length.value_or(0) > host_.limits.body_bytes) {
    refuse({.status = 413,
            .param = "body",
            .message = format("body: {} bytes, but at most {} are read; send a smaller one",
                              *head_.content_length, host_.limits.body_bytes)});
    return false;
  }
  if (!head_.has_body()) {
    in_.erase(0, end);
    dispatch();
    return false;
  }
  body_ = BodyReader::create(std::string_view(in_).substr(0, end), host_.limits, &refusal);
  in_.erase(0, end);
  if (refusal) {
    refuse(*refusal);
    return false;
  }
  state_ = State::body;
  since_ = now();
  body_received_ = 0;
  if (head_.expect_continue && in_.empty()) {
    out_ += "HTTP/1.1 100 Continue\r\n\r\n";
    flush();
  }
  return true;
}

bool Connection::process_body() {
  size_t used = 0;
  const auto refusal = body_->feed(in_, &used);
  in_.erase(0, used);
  body_received_ += used;
  if (refusal) {
    refuse(*refusal);
    return false;
  }
  if (!body_->done()) return false;
  dispatch();
  return false;
}

void Connection::dispatch() {
  state_ = State::answering;
  last_event_ = now();
  std::string body = body_ ? std::move(body_->body()) : std::string();
  body_.reset();
  std::shared_ptr<Exchange> exchange =
      host_.application.handle(shared_from_this(), head_, std::move(body), request_id_);
  if (!answered_) exchange_ = std::move(exchange);
}

void Connection::refuse(const HttpRefusal& refusal) {
  state_ = State::answering;
  body_.reset();
  in_.clear();
  HttpResponse response = host_.application.refuse(refusal);
  response.close = true;
  respond(std::move(response));
}

// ---- answering

void Connection::respond(HttpResponse response) {
  if (state_ != State::answering || answered_) return;
  keep_alive_ = head_.keep_alive && !response.close && !end_of_input_ && !host_.application.draining();
  status_ = response.status;
  out_ += write_head(response, host_.clock.unix_seconds(), request_id_, keep_alive_, false, head_.http10);
  if (head_.method != "HEAD") out_ += response.body;
  answered_ = true;
  flush();
}

void Connection::begin_stream() {
  if (state_ != State::answering || answered_) return;
  // Without chunks only the connection's end can mark the answer's end.
  keep_alive_ = head_.keep_alive && !head_.http10 && !host_.application.draining();
  status_ = 200;
  HttpResponse response{.content_type = "text/event-stream; charset=utf-8"};
  response.headers.emplace_back("Cache-Control", "no-cache");
  response.headers.emplace_back("X-Accel-Buffering", "no");  // nginx would hold events back
  out_ += write_head(response, host_.clock.unix_seconds(), request_id_, keep_alive_, true, head_.http10);
}

void Connection::write_stream(std::string_view events) {
  if (state_ != State::answering || answered_) return;
  if (!head_.http10) out_ += format("{:x}\r\n", events.size());
  out_ += events;
  if (!head_.http10) out_ += "\r\n";
  last_event_ = now();
  flush();
  if (congested() && !was_congested_) {
    was_congested_ = true;
    congested_since_ = now();
  }
}

void Connection::end_stream() {
  if (state_ != State::answering || answered_) return;
  if (!head_.http10) out_ += "0\r\n\r\n";
  answered_ = true;
  flush();
}

void Connection::cut() {
  asio::post(host_.io, [self = shared_from_this()] { self->break_off("client too slow"); });
}

void Connection::flush() {
  if (writing_ || state_ == State::closed) return;
  while (out_sent_ < out_.size()) {
    ErrorCode error;
    const size_t count = socket_.write_some(asio::buffer(out_.data() + out_sent_, backlog()), error);
    if (error == asio::error::interrupted) continue;
    if (error && error != asio::error::would_block) {
      asio::post(host_.io, [self = shared_from_this()] { self->break_off("client gone"); });
      return;
    }
    if (error) {
      writing_ = true;
      if (out_sent_ == 0) write_progress_ = now();
      socket_.async_wait(asio::socket_base::wait_write, [self = shared_from_this()](ErrorCode failed) {
        self->writing_ = false;
        if (failed || self->state_ == State::closed) return;
        self->guarded([&] {
          self->write_progress_ = self->now();
          self->flush();
        });
      });
      break;
    }
    out_sent_ += count;
    sent_ += count;
    write_progress_ = now();
  }
  if (out_sent_ > kKeptCapacity || backlog() == 0) {
    out_.erase(0, out_sent_);
    out_sent_ = 0;
  }
  if (was_congested_ && backlog() <= host_.limits.stream_buffer_bytes / 2) {
    was_congested_ = false;
    asio::post(host_.io, [self = shared_from_this()] {
      if (const std::shared_ptr<Exchange> exchange = self->exchange_) exchange->on_writable();
    });
  }
  if (backlog() == 0 && answered_) asio::post(host_.io, [self = shared_from_this()] { self->on_flushed(); });
  arm();
}

void Connection::on_flushed() {
  if (state_ != State::answering || !answered_ || backlog() > 0) return;
  guarded([this] { finish_request(); });
}

void Connection::finish_request() {
  record("");
  exchange_.reset();
  head_ = {};
  first_ = false;
  answered_ = false;
  was_congested_ = false;
  scanned_ = 0;
  sent_ = 0;
  status_ = 0;
  since_ = now();
  if (out_.capacity() > kKeptCapacity) out_ = {};
  if (keep_alive_) {
    state_ = State::head;
    if (in_.capacity() > kKeptCapacity) in_.shrink_to_fit();
    host_.on_answered();
    process();
    return;
  }
  // Bytes that are still coming would turn a close into a reset, and the client would lose the answer.
  state_ = State::lingering;
  in_ = {};
  ErrorCode ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  host_.on_answered();
  if (end_of_input_) close();
}

void Connection::break_off(const char* note) {
  if (state_ == State::closed) return;
  if (busy()) record(note);
  close();
}

void Connection::close() {
  if (state_ == State::closed) return;
  const std::shared_ptr<Connection> self = shared_from_this();
  state_ = State::closed;
  ErrorCode ignored;
  timer_.cancel();
  socket_.close(ignored);
  if (const std::shared_ptr<Exchange> exchange = std::move(exchange_)) exchange->on_abort();
  body_.reset();
  host_.on_closed(this);
  host_.on_answered();
}

void Connection::record(const char* note) {
  host_.application.record({.method = head_.method,
                            .target = head_.target,
                            .request_id = request_id_,
                            .status = status_,
                            .sent_bytes = sent_,
                            .duration_ns = now() - request_begin_,
                            .note = note});
}

// ---- deadlines

int64_t Connection::due() const {
  const ServerLimits& limits = host_.limits;
  switch (state_) {
    case State::head:
      if (in_.empty() && !first_) return since_ + ms(limits.keep_alive_ms);
      return since_ + ms(limits.head_ms);
    case State::body:
      return since_ + ms(limits.body_grace_ms) +
             static_cast<int64_t>(body_received_) * 1'000'000'000 / std::max(1, limits.body_bytes_per_s);
    case State::answering: {
      int64_t first = kNever;
      if (writing_) first = write_progress_ + ms(limits.write_stall_ms);
      if (was_congested_) first = std::min(first, congested_since_ + ms(limits.write_stall_ms));
      if (exchange_ && !answered_) first = std::min(first, last_event_ + ms(limits.sse_ping_ms));
      return first;
    }
    case State::lingering:
      return since_ + ms(limits.linger_ms);
    case State::closed:
      return kNever;
  }
  return kNever;
}

// A timer that fires early only looks again, so a deadline that moves back costs nothing.
void Connection::arm() {
  const int64_t next = due();
  if (state_ == State::closed || next >= timer_due_) return;
  timer_due_ = next;
  timer_.expires_after(std::chrono::nanoseconds(std::max<int64_t>(0, next - now())));
  timer_.async_wait([self = shared_from_this()](ErrorCode error) {
    if (!error) self->on_timer();
  });
}

void Connection::on_timer() {
  timer_due_ = kNever;
  if (state_ == State::closed) return;
  guarded([this] {
    const int64_t time = now();
    if (time >= due()) on_due(time);
  });
}

void Connection::on_due(int64_t time) {
  const int64_t stall = ms(host_.limits.write_stall_ms);
  switch (state_) {
    case State::head:
      if (in_.empty()) {
        close();
      } else {
        head_ = {};
        request_begin_ = since_;
        refuse({.status = 408,
                .param = "headers",
                .message = "headers: not complete in time; send them at once"});
      }
      return;
    case State::body:
      refuse({.status = 408, .param = "body", .message = "body: too slow; send it faster"});
      return;
    case State::answering:
      if ((writing_ && time >= write_progress_ + stall) ||
          (was_congested_ && time >= congested_since_ + stall)) {
        break_off("client too slow");
        return;
      }
      last_event_ = time;
      if (const std::shared_ptr<Exchange> exchange = exchange_) exchange->on_ping();
      return;
    default:
      close();
      return;
  }
}

}  // namespace tessera::server
