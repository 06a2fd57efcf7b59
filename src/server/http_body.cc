#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/error.hpp>

#include "core/format.h"
#include "server/http.h"
#include "server/server.h"

namespace tessera::server {
namespace {

namespace http = boost::beast::http;
using ErrorCode = boost::beast::error_code;
using View = boost::beast::string_view;

// The longest piece of chunk framing (a size line with extensions) that may stay undecided.
constexpr size_t kMaxFraming = 4096;
// "0 CRLF CRLF": no chunked body can end in fewer bytes, and Beast 1.81 asserts as much of a last chunk that
// it meets for the second time, so fewer are kept for the next call.
constexpr size_t kLastChunk = 5;

class BeastBody final : public BodyReader, private http::basic_parser<true> {
 public:
  explicit BeastBody(const ServerLimits& limits) : limits_(limits) {
    eager(true);
    header_limit(static_cast<std::uint32_t>(limits.head_bytes));
    body_limit(limits.body_bytes);
  }

  std::optional<HttpRefusal> feed(std::string_view bytes, size_t* used) override {
    *used = 0;
    ErrorCode error;
    while (*used < bytes.size() && !is_done()) {
      if (is_header_done() && chunked() && bytes.size() - *used < kLastChunk) break;
      const size_t taken = put(boost::asio::buffer(bytes.data() + *used, bytes.size() - *used), error);
      *used += taken;
      if (error == http::error::need_more) {
        error = {};
        break;
      }
      if (error) return refusal(error);
      if (taken == 0) break;
    }
    if (!is_done() && is_header_done() && bytes.size() - *used > kMaxFraming) {
      return HttpRefusal{.param = "body",
                         .message = "body: chunk framing that is too long; send plain chunks"};
    }
    return std::nullopt;
  }

  bool done() const override { return is_done(); }
  std::string& body() override { return body_; }

 private:
  HttpRefusal refusal(const ErrorCode& error) const {
    if (too_many_chunks_) {
      return {.status = 413,
              .param = "body",
              .message = format("body: more than {} chunks; send larger ones", limits_.body_chunks)};
    }
    if (trailer_) {
      return {.param = "Transfer-Encoding",
              .message = "Transfer-Encoding: trailers are not accepted; drop them"};
    }
    if (error == http::error::body_limit) {
      return {.status = 413,
              .param = "body",
              .message = format("body: more than {} bytes; send a smaller one", limits_.body_bytes)};
    }
    return {
        .param = chunked() ? "Transfer-Encoding" : "header",
        .message = format("{}: malformed ({})", chunked() ? "Transfer-Encoding" : "header", error.message())};
  }

  void on_request_impl(http::verb, View, View, int, ErrorCode&) override {}
  void on_response_impl(int, View, int, ErrorCode&) override {}
  void on_field_impl(http::field, View, View, ErrorCode& error) override {
    if (!header_seen_) return;
    trailer_ = true;  // a field behind the body could change what was already decided
    error = http::error::bad_field;
  }
  void on_header_impl(ErrorCode&) override { header_seen_ = true; }
  void on_body_init_impl(const boost::optional<std::uint64_t>&, ErrorCode&) override {}
  std::size_t on_body_impl(View piece, ErrorCode&) override {
    body_.append(piece.data(), piece.size());
    return piece.size();
  }
  void on_chunk_header_impl(std::uint64_t, View, ErrorCode& error) override {
    if (++chunks_ <= limits_.body_chunks) return;
    too_many_chunks_ = true;
    error = http::error::body_limit;
  }
  std::size_t on_chunk_body_impl(std::uint64_t, View piece, ErrorCode&) override {
    body_.append(piece.data(), piece.size());
    return piece.size();
  }
  void on_finish_impl(ErrorCode&) override {}

  const ServerLimits& limits_;
  std::string body_;
  int chunks_ = 0;
  bool header_seen_ = false;
  bool trailer_ = false;
  bool too_many_chunks_ = false;
};

}  // namespace

std::unique_ptr<BodyReader> BodyReader::create(std::string_view head, const ServerLimits& limits,
                                               std::optional<HttpRefusal>* refusal) {
  auto reader = std::make_unique<BeastBody>(limits);
  size_t used = 0;
  *refusal = reader->feed(head, &used);
  if (!*refusal && used != head.size()) {
    *refusal = HttpRefusal{.param = "header", .message = "header: malformed"};
  }
  return reader;
}

}  // namespace tessera::server
