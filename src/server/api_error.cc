#include "server/api_error.h"

#include "core/format.h"
#include "server/json_writer.h"

namespace tessera::server {

ApiError invalid_value(std::string param, std::string message) {
  return {.code = "invalid_value", .param = std::move(param), .message = std::move(message)};
}

ApiError invalid_type(std::string param, std::string_view expected, std::string_view got) {
  std::string message =
      format("{}: expected {}, got {}; send {} or leave it out", param, expected, got, expected);
  return {.code = "invalid_type", .param = std::move(param), .message = std::move(message)};
}

ApiError unsupported_field(std::string param, std::string_view remedy) {
  std::string message = format("{}: not supported by this server; {}", param, remedy);
  return {.code = "unsupported_parameter", .param = std::move(param), .message = std::move(message)};
}

ApiError unknown_field(std::string param) {
  std::string message = format("{}: unknown field; remove it, docs/server.md lists the known ones", param);
  return {.code = "unknown_parameter", .param = std::move(param), .message = std::move(message)};
}

ApiError missing_field(std::string param) {
  std::string message = format("{}: required, but absent or null; send it", param);
  return {.code = "missing_required_parameter", .param = std::move(param), .message = std::move(message)};
}

ApiError from_status(const Status& status) {
  ApiError error{.code = name(status.code()), .param = status.field(), .message = status.message()};
  switch (status.code()) {
    case StatusCode::invalid_argument:
      error.code = "invalid_value";
      break;
    case StatusCode::unsupported:
      error.code = "unsupported_value";
      break;
    case StatusCode::not_found:
      error.status = 404;
      break;
    case StatusCode::resource_exhausted:
      error.status = 429;
      error.type = "rate_limit_error";
      error.code = "queue_full";
      break;
    case StatusCode::unavailable:
      error.status = 503;
      error.type = "server_error";
      break;
    default:
      error.status = 500;
      error.type = "server_error";
      break;
  }
  return error;
}

std::string error_body(const ApiError& error) {
  const auto string_or_null = [](std::string& out, const std::string& text) {
    if (text.empty()) {
      out += "null";
    } else {
      append_json_string(out, text);
    }
  };
  std::string out = "{\"error\":{\"message\":";
  append_json_string(out, error.message);
  out += ",\"type\":";
  append_json_string(out, error.type);
  out += ",\"param\":";
  string_or_null(out, error.param);
  out += ",\"code\":";
  string_or_null(out, error.code);
  out += "}}";
  return out;
}

HttpResponse error_response(const ApiError& error) {
  HttpResponse response{.status = error.status, .body = error_body(error) + "\n"};
  if (error.status == 429 || error.status == 503) response.headers.emplace_back("Retry-After", "1");
  if (error.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

}  // namespace tessera::server
