// format("{} of {}", a, b): fmt today, std::format when both supported distributions have it.
#pragma once

#include <fmt/core.h>

#include <string>

namespace tessera {

// Compiled once, with fmt's code inside, so that the attention library links no library of fmt's.
std::string format_arguments(fmt::string_view text, fmt::format_args args);

// An object and not a function: a call with a std::string would else find std::format too, by its argument,
// wherever a standard header brings that in (libstdc++ 13's <chrono> does), and be ambiguous.
struct Format {
  template <typename... Args>
  std::string operator()(fmt::format_string<Args...> text, Args&&... args) const {
    return format_arguments(text, fmt::make_format_args(args...));
  }
};
inline constexpr Format format{};

}  // namespace tessera
