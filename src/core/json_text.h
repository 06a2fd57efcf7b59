// Strings as JSON text, for writers that build no tree.
#pragma once

#include <string>
#include <string_view>

namespace tessera {

// Appends a quoted JSON string. Always valid JSON: bytes that are no UTF-8 become U+FFFD.
void append_json_string(std::string& out, std::string_view text);
// Appends what stands for the ASCII character `c` inside a JSON string when it cannot stand for itself: a
// backslash and one of "\bfnrt, or \u00XX.
void append_json_escape(std::string& out, char c);

}  // namespace tessera
