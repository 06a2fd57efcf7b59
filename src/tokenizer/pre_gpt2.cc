// GPT-2's pattern, alternatives in order:
//   's | 't | 're | 've | 'm | 'll | 'd | " "?\p{L}+ | " "?\p{N}+ | " "?[^\s\p{L}\p{N}]+ | \s+(?!\S) | \s+
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/unicode.h"

namespace tessera::tokenizer {
namespace {

enum class Kind { letter, number, space, rest };

Kind kind_of(uint32_t code) {
  switch (char_class(code)) {
    case CharClass::letter:
      return Kind::letter;
    case CharClass::number:
      return Kind::number;
    case CharClass::space:
      return Kind::space;
    default:
      return Kind::rest;
  }
}

size_t contraction_end(std::string_view text, size_t begin) {
  const std::string_view rest = text.substr(begin + 1, 2);
  if (rest.starts_with('s') || rest.starts_with('t') || rest.starts_with('m') || rest.starts_with('d'))
    return begin + 2;
  if (rest == "re" || rest == "ve" || rest == "ll") return begin + 3;
  return begin;
}

size_t run_end(std::string_view text, size_t at, Kind kind) {
  while (at < text.size()) {
    const Utf8Char c = decode_utf8(text, at);
    if (kind_of(c.code) != kind) break;
    at += c.length;
  }
  return at;
}

class Gpt2 final : public PreTokenizer {
 public:
  size_t next(std::string_view text, size_t begin) const override {
    return gpt2_piece_end(text, begin, NumberIs::in_text);
  }
};

}  // namespace

size_t gpt2_piece_end(std::string_view text, size_t begin, NumberIs number) {
  if (text[begin] == '\'') {
    const size_t end = contraction_end(text, begin);
    if (end != begin) return end;
  }
  const auto ends_text = [number](Kind kind) {
    return kind == Kind::number && number == NumberIs::end_of_text;
  };
  size_t at = begin + (text[begin] == ' ' ? 1 : 0);
  if (at < text.size()) {
    const Kind kind = kind_of(decode_utf8(text, at).code);
    if (kind != Kind::space && !ends_text(kind)) return run_end(text, at, kind);
  }
  // White space: up to the last one before something else, which keeps that one for its own piece.
  size_t last = begin;
  for (at = begin; at < text.size();) {
    const Utf8Char c = decode_utf8(text, at);
    const Kind kind = kind_of(c.code);
    if (ends_text(kind)) break;
    if (kind != Kind::space) return last > begin ? last : at;
    last = at;
    at += c.length;
  }
  return at;
}

const PreTokenizer& gpt2_pre_tokenizer() {
  static const Gpt2 instance;
  return instance;
}

}  // namespace tessera::tokenizer
