// format("{} of {}", a, b): fmt today, std::format when both supported distributions have it.
#pragma once

#include <fmt/core.h>

#include <string>

namespace tessera {

// Compiled once, with fmt's code inside, so that the attention library links no library of fmt's.
std::string format_arguments(fmt::string_view text, fmt::format_args args);

template <typename... Args>
std::string format(fmt::format_string<Args...> text, Args&&... args) {
  return format_arguments(text, fmt::make_format_args(args...));
}

}  // namespace tessera
