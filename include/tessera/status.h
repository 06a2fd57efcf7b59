// How every Tessera function reports a caller's mistake, a bad file or a lack of resources.
//
// A Status is a code and one line of text that names the field, the value, the limit and the remedy. The
// library never prints, exits or throws across its public boundary; bugs in Tessera itself are CHECKs
// (core/check.h).
#pragma once

#include <cstdlib>
#include <optional>
#include <string>
#include <utility>

namespace tessera {

enum class StatusCode {
  ok,
  invalid_argument,    // the caller's value is wrong; the message names it
  not_found,           // a file, model, key or id that does not exist
  unsupported,         // well-formed, but this build or machine cannot do it
  bad_file,            // a model, tokenizer or template file that breaks its format
  resource_exhausted,  // memory, KV blocks, queue places
  cancelled,           // by the caller
  unavailable,         // shutting down or not ready; try again
  internal,            // a bug, contained at a step's boundary
};

// The code's name, e.g. "invalid_argument". Never null.
const char* name(StatusCode code);

class [[nodiscard]] Status {
 public:
  Status() = default;  // ok
  // REQUIRES: code != ok. `field` is the request or option field at fault, or empty.
  Status(StatusCode code, std::string message, std::string field = {})
      : code_(code), message_(std::move(message)), field_(std::move(field)) {}

  bool ok() const { return code_ == StatusCode::ok; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }
  const std::string& field() const { return field_; }

 private:
  StatusCode code_ = StatusCode::ok;
  std::string message_;
  std::string field_;
};

inline Status invalid_argument(std::string message, std::string field = {}) {
  return Status(StatusCode::invalid_argument, std::move(message), std::move(field));
}
inline Status bad_file(std::string message) {
  return Status(StatusCode::bad_file, std::move(message));
}
inline Status unsupported(std::string message, std::string field = {}) {
  return Status(StatusCode::unsupported, std::move(message), std::move(field));
}
inline Status not_found(std::string message) {
  return Status(StatusCode::not_found, std::move(message));
}
inline Status resource_exhausted(std::string message) {
  return Status(StatusCode::resource_exhausted, std::move(message));
}

// A value or the Status that says why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}         // NOLINT: implicit on purpose
  Result(Status status) : status_(std::move(status)) {  // NOLINT: implicit on purpose
    if (status_.ok()) std::abort();                     // an ok Result needs a value
  }

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }

  // REQUIRES: ok(); aborts otherwise.
  T& value() & { return check(), *value_; }
  const T& value() const& { return check(), *value_; }
  T&& value() && { return check(), std::move(*value_); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  void check() const {
    if (!value_) std::abort();
  }
  std::optional<T> value_;
  Status status_;
};

}  // namespace tessera

// Returns the Status of `expr` from the enclosing function if it is not ok.
#define TESSERA_RETURN_IF_ERROR(expr)                  \
  do {                                                 \
    ::tessera::Status tessera_status_ = (expr);        \
    if (!tessera_status_.ok()) return tessera_status_; \
  } while (false)

#define TESSERA_CONCAT_INNER_(a, b) a##b
#define TESSERA_CONCAT_(a, b) TESSERA_CONCAT_INNER_(a, b)
// TESSERA_ASSIGN_OR_RETURN(auto x, f()) binds f()'s value or returns its Status.
#define TESSERA_ASSIGN_OR_RETURN(lhs, expr) \
  TESSERA_ASSIGN_OR_RETURN_IMPL_(TESSERA_CONCAT_(tessera_result_, __LINE__), lhs, expr)
#define TESSERA_ASSIGN_OR_RETURN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                                   \
  if (!tmp.ok()) return tmp.status();                  \
  lhs = std::move(tmp).value()
