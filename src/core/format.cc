#define FMT_HEADER_ONLY
#include "core/format.h"

#include <fmt/format.h>

namespace tessera {

std::string format_arguments(fmt::string_view text, fmt::format_args args) {
  return fmt::vformat(text, args);
}

}  // namespace tessera
