#include <algorithm>
#include <array>

#include "core/format.h"
#include "server/http.h"
#include "server/server.h"

namespace tessera::server {
namespace {

bool is_token(char c) {
  if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9')) return true;
  return c != 0 && std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
}

char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

std::string lowered(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), lower);
  return out;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

HttpRefusal refuse(const char* param, std::string reason, int status = 400) {
  return {.status = status, .param = param, .message = format("{}: {}", param, reason)};
}

std::optional<HttpRefusal> parse_request_line(std::string_view line, const ServerLimits& limits,
                                              RequestHead* out) {
  const size_t first = line.find(' ');
  const size_t second = first == std::string_view::npos ? first : line.find(' ', first + 1);
  if (second == std::string_view::npos || line.find(' ', second + 1) != std::string_view::npos) {
    return refuse("request line", "must be METHOD TARGET VERSION with single spaces");
  }
  const std::string_view method = line.substr(0, first);
  const std::string_view target = line.substr(first + 1, second - first - 1);
  const std::string_view version = line.substr(second + 1);
  if (method.empty() || method.size() > 32 || !std::all_of(method.begin(), method.end(), is_token)) {
    return refuse("method", "must be a token of 1 to 32 characters");
  }
  if (target.size() > limits.target_bytes) {
    return refuse("target", format("{} bytes, but at most {} are read", target.size(), limits.target_bytes),
                  414);
  }
  const auto visible = [](char c) { return c > 0x20 && c < 0x7F && c != '#'; };
  if (target.empty() || target[0] != '/' || !std::all_of(target.begin(), target.end(), visible)) {
    return refuse("target", "must be a path that starts with / and holds printable ASCII only");
  }
  if (version != "HTTP/1.1" && version != "HTTP/1.0") {
    const bool other = version.size() == 8 && version.starts_with("HTTP/") && version[6] == '.';
    return refuse("version", "HTTP/1.1 and HTTP/1.0 are spoken here", other ? 505 : 400);
  }
  out->method = method;
  out->target = target;
  const size_t question = target.find('?');
  out->path = target.substr(0, question);
  if (question != std::string_view::npos) out->query = target.substr(question + 1);
  out->http10 = version == "HTTP/1.0";
  return std::nullopt;
}

std::optional<HttpRefusal> parse_field(std::string_view line, RequestHead* out) {
  if (line[0] == ' ' || line[0] == '\t') return refuse("header", "folded lines are not accepted");
  const size_t colon = line.find(':');
  if (colon == std::string_view::npos) return refuse("header", "a line without a colon");
  const std::string_view name = line.substr(0, colon);
  if (name.empty() || !std::all_of(name.begin(), name.end(), is_token)) {
    return refuse("header", "a name must be a token that the colon follows at once");
  }
  const std::string_view value = trimmed(line.substr(colon + 1));
  const auto allowed = [](char c) {
    return c == '\t' || (static_cast<unsigned char>(c) >= 0x20 && c != 0x7F);
  };
  if (!std::all_of(value.begin(), value.end(), allowed)) {
    return refuse("header", "a value holds a control character");
  }
  out->headers.emplace_back(lowered(name), std::string(value));
  return std::nullopt;
}

std::optional<HttpRefusal> check_framing(RequestHead* out) {
  const int lengths = out->count("content-length");
  const int encodings = out->count("transfer-encoding");
  if (lengths > 0 && encodings > 0) {
    return refuse("Transfer-Encoding", "sent beside Content-Length; send one of them");
  }
  if (lengths > 1) return refuse("Content-Length", "sent more than once");
  if (encodings > 1) return refuse("Transfer-Encoding", "sent more than once");
  if (lengths == 1) {
    const std::string& text = *out->find("content-length");
    const auto digit = [](char c) { return c >= '0' && c <= '9'; };
    if (text.empty() || !std::all_of(text.begin(), text.end(), digit)) {
      return refuse("Content-Length", "must be decimal digits only");
    }
    if (text.size() > 18) return refuse("Content-Length", "more than 18 digits", 413);
    out->content_length = std::stoull(text);
  }
  if (encodings == 1) {
    if (out->http10) return refuse("Transfer-Encoding", "not part of HTTP/1.0");
    if (lowered(*out->find("transfer-encoding")) != "chunked") {
      return refuse("Transfer-Encoding", "only the single coding \"chunked\" is accepted");
    }
    out->chunked = true;
  }
  return std::nullopt;
}

std::optional<HttpRefusal> check_host(RequestHead* out) {
  const int hosts = out->count("host");
  if (hosts > 1) return refuse("Host", "sent more than once");
  if (hosts == 0) {
    if (out->http10) return std::nullopt;
    return refuse("Host", "missing; HTTP/1.1 requires it");
  }
  out->host = lowered(*out->find("host"));
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
           (c != 0 && std::string_view("-._~:[]%!$&'()*+,;=").find(c) != std::string_view::npos);
  };
  if (out->host.empty() || out->host.size() > 261 ||
      !std::all_of(out->host.begin(), out->host.end(), allowed)) {
    return refuse("Host", "must be one host name or address with an optional port");
  }
  return std::nullopt;
}

std::optional<HttpRefusal> check_connection(RequestHead* out) {
  out->keep_alive = !out->http10;
  for (const auto& [name, value] : out->headers) {
    if (name != "connection") continue;
    const std::string text = lowered(value);
    if (text.find("close") != std::string::npos) {
      out->keep_alive = false;
      break;
    }
    if (out->http10 && text.find("keep-alive") != std::string::npos) out->keep_alive = true;
  }
  if (const int expects = out->count("expect"); expects > 0) {
    if (expects > 1 || lowered(*out->find("expect")) != "100-continue") {
      return refuse("Expect", "only 100-continue is known", 417);
    }
    out->expect_continue = !out->http10;
  }
  return std::nullopt;
}

}  // namespace

const std::string* RequestHead::find(std::string_view name) const {
  for (const auto& header : headers) {
    if (header.first == name) return &header.second;
  }
  return nullptr;
}

int RequestHead::count(std::string_view name) const {
  return static_cast<int>(std::count_if(headers.begin(), headers.end(),
                                        [&](const auto& header) { return header.first == name; }));
}

std::optional<HttpRefusal> find_head_end(std::string_view bytes, const ServerLimits& limits, size_t* scanned,
                                         size_t* end) {
  *end = 0;
  for (; *scanned < bytes.size(); ++*scanned) {
    const size_t at = *scanned;
    if (at >= limits.head_bytes) {
      const size_t line = bytes.find("\r\n");
      if (line == std::string_view::npos || line > limits.target_bytes + 64) {
        return refuse("target", format("the request line is longer than {} bytes", limits.target_bytes), 414);
      }
      return refuse("headers", format("more than {} bytes; send fewer or shorter ones", limits.head_bytes),
                    431);
    }
    const char c = bytes[at];
    if (c == 0) return refuse("header", "holds a NUL byte");
    if (c == '\r' && at + 1 == bytes.size()) return std::nullopt;  // look again with the next byte
    if (c == '\r' && bytes[at + 1] != '\n') return refuse("header", "a CR that no LF follows");
    if (c != '\n') continue;
    if (at == 0 || bytes[at - 1] != '\r') return refuse("header", "a line ends with a bare LF");
    if (at >= 3 && bytes[at - 2] == '\n') {
      *end = at + 1;
      return std::nullopt;
    }
  }
  return std::nullopt;
}

std::optional<HttpRefusal> parse_head(std::string_view head, const ServerLimits& limits, RequestHead* out) {
  const size_t line_end = head.find("\r\n");
  if (auto refusal = parse_request_line(head.substr(0, line_end), limits, out)) return refusal;
  for (size_t at = line_end + 2; at + 2 < head.size();) {
    const size_t next = head.find("\r\n", at);
    if (static_cast<int>(out->headers.size()) == limits.headers) {
      return refuse("headers", format("more than {}; send fewer", limits.headers), 431);
    }
    if (auto refusal = parse_field(head.substr(at, next - at), out)) return refusal;
    at = next + 2;
  }
  if (auto refusal = check_host(out)) return refusal;
  if (auto refusal = check_framing(out)) return refusal;
  if (out->count("authorization") > 1) return refuse("Authorization", "sent more than once");
  return check_connection(out);
}

const char* reason_phrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 411:
      return "Length Required";
    case 413:
      return "Content Too Large";
    case 414:
      return "URI Too Long";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 503:
      return "Service Unavailable";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return "Internal Server Error";
  }
}

namespace {

// IMF-fixdate of RFC 9110 5.6.7, without the locale that strftime would ask.
std::string http_date(int64_t unix_seconds) {
  static constexpr std::array kDays = {"Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"};
  static constexpr std::array kMonths = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                         "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  const int64_t days = unix_seconds / 86400, seconds = unix_seconds % 86400;
  // Days to a civil date, counted in eras of 400 years from 0000-03-01.
  const int64_t shifted = days + 719468, era = shifted / 146097, day_of_era = shifted % 146097;
  const int64_t year_of_era =
      (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
  const int64_t day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
  const int64_t month_from_march = (5 * day_of_year + 2) / 153;
  const int64_t day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
  const int64_t month = month_from_march < 10 ? month_from_march + 3 : month_from_march - 9;
  const int64_t year = year_of_era + era * 400 + (month <= 2 ? 1 : 0);
  return format("{}, {:02} {} {} {:02}:{:02}:{:02} GMT", kDays[days % 7], day, kMonths[month - 1], year,
                seconds / 3600, seconds / 60 % 60, seconds % 60);
}

}  // namespace

std::string write_head(const HttpResponse& response, int64_t unix_seconds, std::string_view request_id,
                       bool keep_alive, bool stream, bool http10) {
  std::string out =
      format("HTTP/1.1 {} {}\r\nDate: {}\r\nContent-Type: {}\r\nX-Content-Type-Options: nosniff\r\n",
             response.status, reason_phrase(response.status), http_date(unix_seconds), response.content_type);
  if (!request_id.empty()) out += format("X-Request-Id: {}\r\n", request_id);
  for (const auto& [name, value] : response.headers) out += format("{}: {}\r\n", name, value);
  if (!stream) out += format("Content-Length: {}\r\n", response.body.size());
  if (stream && !http10) out += "Transfer-Encoding: chunked\r\n";
  out += keep_alive ? (http10 ? "Connection: keep-alive\r\n" : "") : "Connection: close\r\n";
  out += "\r\n";
  return out;
}

}  // namespace tessera::server
