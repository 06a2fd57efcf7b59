#include "core/check.h"

#include <cstdio>
#include <cstdlib>

namespace tessera {

void check_failed(const char* file, int line, const char* condition, const std::string& detail) {
  std::string text = std::string(file) + ":" + std::to_string(line) + ": CHECK failed: " + condition;
  if (!detail.empty()) text += " (" + detail + ")";
#ifdef TESSERA_DEBUG_CHECKS
  std::fprintf(stderr, "%s\n", text.c_str());
  std::abort();
#else
  throw InternalError(text);
#endif
}

}  // namespace tessera
