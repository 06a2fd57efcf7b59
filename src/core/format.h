// format("{} of {}", a, b): fmt today, std::format when both supported distributions have it.
#pragma once

#include <fmt/format.h>

namespace tessera {
template <typename... Args>
std::string format(fmt::format_string<Args...> text, Args&&... args) {
  return fmt::format(text, std::forward<Args>(args)...);
}
}  // namespace tessera
