// CHECK: a condition that only a bug in Tessera can break.
//
// With TESSERA_DEBUG_CHECKS (presets dev, asan) a failure aborts with its place; otherwise it throws
// InternalError, which the engine's step boundary catches: the requests of that step end with an error and
// the process goes on.
#pragma once

#include <stdexcept>
#include <string>

namespace tessera {

class InternalError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& detail);

}  // namespace tessera

#define TESSERA_CHECK(condition)                                                                        \
  do {                                                                                                  \
    if (__builtin_expect(!(condition), 0)) ::tessera::check_failed(__FILE__, __LINE__, #condition, {}); \
  } while (false)
#define TESSERA_CHECK_MSG(condition, detail)                             \
  do {                                                                   \
    if (__builtin_expect(!(condition), 0))                               \
      ::tessera::check_failed(__FILE__, __LINE__, #condition, (detail)); \
  } while (false)
