// HTTP/1.1 messages: the strict reader of a request's head, the body decoder, and the writer of answers.
//
// A head is read by our own code, which refuses every form that two programs could read differently (RFC
// 9112: both lengths, two lengths, folded lines, a space before a colon, a bare LF...). Bodies are decoded by
// Beast's parser, which is fed the head again; what either refuses is refused.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tessera::server {

struct ServerLimits;

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
  bool close = false;  // end the connection after this answer
};

struct RequestHead {
  std::string method;
  std::string target;  // as sent: the only form that routes and keys are judged by
  std::string path;    // target up to '?'
  std::string query;   // after '?'
  bool http10 = false;
  bool keep_alive = true;
  bool chunked = false;
  bool expect_continue = false;
  std::optional<uint64_t> content_length;
  std::string host;
  std::vector<std::pair<std::string, std::string>> headers;  // names in lower case, values trimmed

  bool has_body() const { return chunked || content_length.value_or(0) > 0; }
  // The value of the only header of that (lower case) name; nullptr when there is none.
  const std::string* find(std::string_view name) const;
  int count(std::string_view name) const;
};

// Why a request is refused before any route sees it. The connection is closed after it.
struct HttpRefusal {
  int status = 400;
  std::string param;    // the part at fault, e.g. "Content-Length" or "request line"
  std::string message;  // one line
};

// Finds the end of the head in `bytes`, looking only at what lies behind *scanned (which it moves on).
// Refuses a bare LF or CR, a NUL, and a head beyond the limits, as soon as it is seen.
// *end: one past the empty line; 0 while more bytes are needed.
std::optional<HttpRefusal> find_head_end(std::string_view bytes, const ServerLimits& limits, size_t* scanned,
                                         size_t* end);
// Parses a whole head, the empty line included.
std::optional<HttpRefusal> parse_head(std::string_view head, const ServerLimits& limits, RequestHead* out);

// Decodes one body of known length or in chunks.
class BodyReader {
 public:
  // `head`: the bytes that parse_head() accepted. The reason of a refusal, if Beast has one.
  static std::unique_ptr<BodyReader> create(std::string_view head, const ServerLimits& limits,
                                            std::optional<HttpRefusal>* refusal);
  virtual ~BodyReader() = default;
  // Takes what it can of `bytes`; *used: how many belong to this body.
  virtual std::optional<HttpRefusal> feed(std::string_view bytes, size_t* used) = 0;
  virtual bool done() const = 0;
  virtual std::string& body() = 0;
};

const char* reason_phrase(int status);
// Status line and headers; Content-Length (or chunked, when `stream`) and Connection are set here.
std::string write_head(const HttpResponse& response, int64_t unix_seconds, std::string_view request_id,
                       bool keep_alive, bool stream, bool http10);

}  // namespace tessera::server
