// ApiError: an answer in OpenAI's error form, {"error": {message, type, param, code}}.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "server/http.h"
#include "tessera/status.h"

namespace tessera::server {

struct ApiError {
  int status = 400;
  std::string type = "invalid_request_error";
  std::string code;     // e.g. "invalid_value"; "" prints as null
  std::string param;    // the field at fault; "" prints as null
  std::string message;  // one line: field, value, limit, remedy
};
// What parsers return: nothing, or the first fault.
using Fault = std::optional<ApiError>;

// The common faults of a field.
ApiError invalid_value(std::string param, std::string message);
ApiError invalid_type(std::string param, std::string_view expected, std::string_view got);
ApiError unsupported_field(std::string param, std::string_view remedy);
ApiError unknown_field(std::string param);
ApiError missing_field(std::string param);

// What the engine said, as an answer: invalid_argument 400, not_found 404, resource_exhausted 429,
// unavailable 503, else 500.
ApiError from_status(const Status& status);

// {"error":{...}}, without a line end.
std::string error_body(const ApiError& error);
// The whole answer; 429 and 503 carry Retry-After.
HttpResponse error_response(const ApiError& error);

}  // namespace tessera::server

#define TESSERA_RETURN_IF_FAULT(expr)                      \
  do {                                                     \
    ::tessera::server::Fault tessera_fault_ = (expr);      \
    if (tessera_fault_.has_value()) return tessera_fault_; \
  } while (false)
