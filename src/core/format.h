// format("{} of {}", a, b): fmt today, std::format when both supported distributions have it.
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>

namespace tessera {

// An object and not a function: a call with a std::string would else find std::format too, by its argument,
// wherever a standard header brings that in (libstdc++ 13's <chrono> does), and be ambiguous.
struct Format {
  template <typename... Args>
  std::string operator()(fmt::format_string<Args...> text, Args&&... args) const {
    return fmt::format(text, std::forward<Args>(args)...);
  }
};
inline constexpr Format format{};

}  // namespace tessera
