// UTF-8 and the few Unicode properties that pre-tokenizers and templates ask for. Thread-safe: constant data
// only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

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

// What a byte that is no part of well-formed UTF-8 decodes to: outside Unicode, class `hidden`.
constexpr uint32_t kInvalidByte = 0x110000;
constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

struct Utf8Char {
  uint32_t code;    // kInvalidByte when text[at] does not begin a well-formed sequence
  uint32_t length;  // in bytes; 1 for kInvalidByte
};
// REQUIRES: at < text.size().
Utf8Char decode_utf8(std::string_view text, size_t at);
void append_utf8(std::string& out, uint32_t code);
bool is_utf8(std::string_view text);
size_t count_code_points(std::string_view text);  // an invalid byte counts as one

// Replaces each maximal ill-formed part by U+FFFD, as Python's errors="replace" does, across any cut of the
// input.
class Utf8Repairer {
 public:
  // Appends to `out` what is certain after `bytes`; an incomplete sequence at the end is held (at most 3
  // bytes).
  void push(std::string_view bytes, std::string& out);
  // The end of the input: a held part becomes one U+FFFD.
  void finish(std::string& out);

 private:
  char held_[4] = {};
  uint32_t held_size_ = 0;
};

// Python's str.upper, str.lower, str.title and str.capitalize, special casings and final sigma included.
std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);
std::string capitalize(std::string_view text);
std::string title_case(std::string_view text);

}  // namespace tessera::tokenizer
