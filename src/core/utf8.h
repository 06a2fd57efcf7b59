// UTF-8: reading, writing and mending it. Well-formed is what Unicode says: no overlong form, no surrogate,
// nothing beyond U+10FFFF. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace tessera {

// What a byte that is no part of well-formed UTF-8 decodes to: outside Unicode.
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

}  // namespace tessera
