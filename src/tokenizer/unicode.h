// The few Unicode properties that pre-tokenizers and templates ask for; UTF-8 itself is in core/utf8.h.
// Thread-safe: constant data only.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/utf8.h"

namespace tessera::tokenizer {

// General categories, folded to what patterns distinguish. `space` is the property White_Space; `hidden` are
// controls, formats, surrogates, private use and unassigned code points that are no white space (not
// printable).
enum class CharClass : uint8_t { other, letter, number, space, mark, hidden };
CharClass char_class(uint32_t code);

inline bool is_letter(uint32_t code) {
  return char_class(code) == CharClass::letter;
}
inline bool is_number(uint32_t code) {
  return char_class(code) == CharClass::number;
}
inline bool is_space(uint32_t code) {
  return char_class(code) == CharClass::space;
}
// Python's str.isspace(): White_Space and the four information separators.
inline bool is_python_space(uint32_t code) {
  return is_space(code) || (code >= 0x1c && code <= 0x1f);
}
// Python's str.isprintable() for one code point.
bool is_printable(uint32_t code);

// Python's str.upper, str.lower, str.title and str.capitalize, special casings and final sigma included.
std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);
std::string capitalize(std::string_view text);
std::string title_case(std::string_view text);

}  // namespace tessera::tokenizer
