#include "tokenizer/jinja/lexer.h"

#include <charconv>

#include "core/format.h"
#include "tokenizer/jinja/value.h"
#include "tokenizer/vocab.h"

namespace tessera::tokenizer::jinja {
namespace {

// "\r\n" and "\r" become "\n"; one newline at the end is dropped.
std::string normalize(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      text += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      text += source[i];
    }
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

class Lexer {
 public:
  explicit Lexer(std::string text) : text_(std::move(text)) {}

  std::vector<Token> run() {
    while (at_ < text_.size()) root();
    add(TokenKind::eof);
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail_here(std::string message) const { throw TemplateError{std::move(message), line_}; }
  char peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }
  bool looking_at(std::string_view what) const {
    return std::string_view(text_).substr(at_).starts_with(what);
  }

  Token& add(TokenKind kind, std::string text = {}) {
    Token token;
    token.kind = kind;
    token.line = line_;
    token.text = std::move(text);
    return tokens_.emplace_back(std::move(token));
  }

  void advance(size_t to) {
    for (; at_ < to; ++at_) line_ += text_[at_] == '\n';
  }
  // The first place at or after `from` that is no white space.
  size_t skip_space(size_t from) const {
    while (from < text_.size()) {
      const Utf8Char c = decode_utf8(text_, from);
      if (!is_python_space(c.code)) break;
      from += c.length;
    }
    return from;
  }

  // If `{% raw %}` stands at `from`: the place after it; else npos. `sign` is the character after "{%".
  size_t raw_end(size_t from) const {
    size_t at = from + 2;
    if (at < text_.size() && (text_[at] == '-' || text_[at] == '+')) ++at;
    at = skip_space(at);
    if (text_.compare(at, 3, "raw") != 0) return std::string::npos;
    at = skip_space(at + 3);
    if (text_.compare(at, 3, "-%}") == 0) return skip_space(at + 3);
    return text_.compare(at, 2, "%}") == 0 ? at + 2 : std::string::npos;
  }

  // Adds the text before a tag, stripped as the tag's sign and lstrip_blocks ask.
  void add_data(std::string data, char sign, bool variable) {
    if (sign == '-') {
      size_t end = data.size();
      while (end > 0) {
        size_t before = end - 1;
        while (before > 0 && (static_cast<uint8_t>(data[before]) & 0xc0) == 0x80) --before;
        if (!is_python_space(decode_utf8(data, before).code)) break;
        end = before;
      }
      data.resize(end);
    } else if (sign != '+' && !variable) {
      const size_t newline = data.rfind('\n');
      const size_t begin = newline == std::string::npos ? 0 : newline + 1;
      if (begin > 0 || line_starting_) {
        bool blank = true;
        for (size_t at = begin; at < data.size() && blank;) {
          const Utf8Char c = decode_utf8(data, at);
          blank = is_python_space(c.code);
          at += c.length;
        }
        if (blank) data.resize(begin);
      }
    }
    if (!data.empty()) add(TokenKind::data, std::move(data));
  }

  void root() {
    size_t tag = at_;
    char kind = 0;
    for (;; ++tag) {
      tag = text_.find('{', tag);
      if (tag == std::string::npos || tag + 1 >= text_.size()) {
        add(TokenKind::data, text_.substr(at_));
        return advance(text_.size());
      }
      kind = text_[tag + 1];
      if (kind == '%' || kind == '{' || kind == '#') break;
    }
    const size_t raw = kind == '%' ? raw_end(tag) : std::string::npos;
    char sign = tag + 2 < text_.size() ? text_[tag + 2] : '\0';
    if (sign != '-' && sign != '+') sign = '\0';
    add_data(text_.substr(at_, tag - at_), sign, kind == '{');
    if (raw != std::string::npos) {
      advance(raw);
      line_starting_ = text_[raw - 1] == '\n';
      return raw_block();
    }
    advance(tag + 2 + (sign != '\0'));
    line_starting_ = false;
    if (kind == '#') return comment();
    const bool block = kind == '%';
    add(block ? TokenKind::block_begin : TokenKind::variable_begin);
    while (!tag_end(block)) inside();
    add(block ? TokenKind::block_end : TokenKind::variable_end);
  }

  // After the closing characters at `from`, of which `size` were matched: white space or one newline goes.
  void close(size_t from, size_t size, char sign) {
    size_t end = from + size;
    if (sign == '-') {
      end = skip_space(end);
    } else if (sign == '\0' && end < text_.size() && text_[end] == '\n') {
      ++end;
    }
    advance(end);
    line_starting_ = text_[end - 1] == '\n';
  }

  void comment() {
    if (at_ == text_.size()) return;  // as Jinja: nothing is left to complain about
    const size_t end = text_.find("#}", at_);
    if (end == std::string::npos) fail_here("missing end of comment tag");
    const char sign = end > at_ ? text_[end - 1] : '\0';
    close(end, 2, sign == '-' || sign == '+' ? sign : '\0');
  }

  void raw_block() {
    for (size_t tag = text_.find("{%", at_); tag != std::string::npos; tag = text_.find("{%", tag + 1)) {
      size_t at = tag + 2;
      char sign = at < text_.size() ? text_[at] : '\0';
      if (sign != '-' && sign != '+') {
        sign = '\0';
      } else {
        ++at;
      }
      at = skip_space(at);
      if (text_.compare(at, 6, "endraw") != 0) continue;
      at = skip_space(at + 6);
      char end_sign = at < text_.size() ? text_[at] : '\0';
      if (end_sign != '-' && end_sign != '+') {
        end_sign = '\0';
      } else {
        ++at;
      }
      if (text_.compare(at, 2, "%}") != 0) continue;
      add_data(text_.substr(at_, tag - at_), sign, false);
      advance(at);
      return close(at, 2, end_sign);
    }
    if (at_ < text_.size()) fail_here("missing end of raw directive");
  }

  // Consumes the tag's end if it stands here. Inside brackets "}}" and "%}" are operators.
  bool tag_end(bool block) {
    advance(skip_space(at_));
    if (at_ >= text_.size()) fail_here("unexpected end of template inside a tag");
    if (!brackets_.empty()) return false;
    const std::string_view end = block ? "%}" : "}}";
    const char sign = peek();
    if ((sign == '-' || (sign == '+' && block)) && std::string_view(text_).substr(at_ + 1).starts_with(end)) {
      close(at_ + 1, 2, sign);
      return true;
    }
    if (!looking_at(end)) return false;
    if (block) {
      close(at_, 2, '\0');
    } else {
      advance(at_ + 2);
      line_starting_ = false;
    }
    return true;
  }

  void inside() {
    const char c = peek();
    const Utf8Char code = decode_utf8(text_, at_);
    if (is_digit(c)) return number();
    if (c == '\'' || c == '"') return string(c);
    if (c == '_' || is_letter(code.code)) return name();
    op();
  }

  void name() {
    size_t end = at_;
    while (end < text_.size()) {
      const Utf8Char c = decode_utf8(text_, end);
      const CharClass kind = char_class(c.code);
      if (c.code != '_' && kind != CharClass::letter && kind != CharClass::number && kind != CharClass::mark)
        break;
      end += c.length;
    }
    add(TokenKind::name, text_.substr(at_, end - at_));
    advance(end);
  }

  // Digits with single underscores between them, from `from`.
  size_t digits_end(size_t from) const {
    size_t end = from;
    while (end < text_.size() &&
           (is_digit(text_[end]) || (text_[end] == '_' && end > from && text_[end - 1] != '_' &&
                                     end + 1 < text_.size() && is_digit(text_[end + 1])))) {
      ++end;
    }
    return end;
  }

  void number() {
    const bool after_dot = !tokens_.empty() && at_ > 0 && text_[at_ - 1] == '.';
    size_t end = digits_end(at_);
    bool real = false;
    if (!after_dot) {
      if (end + 1 < text_.size() && text_[end] == '.' && is_digit(text_[end + 1])) {
        end = digits_end(end + 1);
        real = true;
      }
      size_t exponent = end;
      if (exponent < text_.size() && (text_[exponent] == 'e' || text_[exponent] == 'E')) {
        ++exponent;
        if (exponent < text_.size() && (text_[exponent] == '+' || text_[exponent] == '-')) ++exponent;
        if (exponent < text_.size() && is_digit(text_[exponent])) {
          end = digits_end(exponent);
          real = true;
        }
      }
    }
    int base = 10;
    size_t begin = at_;
    if (!real && peek() == '0' && at_ + 2 < text_.size()) {
      const char prefix = static_cast<char>(text_[at_ + 1] | 0x20);
      base = prefix == 'x' ? 16 : prefix == 'o' ? 8 : prefix == 'b' ? 2 : 10;
      if (base != 10) {
        begin = at_ + 2;
        end = begin;
        const std::string_view allowed =
            std::string_view("0123456789abcdef").substr(0, static_cast<size_t>(base));
        while (end < text_.size() &&
               (text_[end] == '_' ||
                allowed.find(is_digit(text_[end]) ? text_[end] : static_cast<char>(text_[end] | 0x20)) !=
                    std::string_view::npos)) {
          ++end;
        }
      } else if (end - at_ > 1 && text_.find_first_not_of("0_", at_) < end) {
        end = at_ + 1;  // Python's grammar stops after a leading zero
      }
    }
    std::string digits;
    for (size_t i = begin; i < end; ++i) {
      if (text_[i] != '_') digits += text_[i];
    }
    Token& token = add(real ? TokenKind::real : TokenKind::integer);
    const char *first = digits.data(), *last = first + digits.size();
    const auto done =
        real ? std::from_chars(first, last, token.real) : std::from_chars(first, last, token.integer, base);
    if (done.ec != std::errc() || done.ptr != last)
      fail_here(format("number {} is out of range", quoted(digits)));
    advance(end);
  }

  void string(char quote) {
    std::string value;
    const int line = line_;
    size_t at = at_ + 1;
    for (;;) {
      if (at >= text_.size()) fail_here("a string has no end");
      const char c = text_[at];
      if (c == quote) break;
      if (c == '\\') {
        at = escape(at + 1, value);
      } else {
        value += c;
        ++at;
      }
    }
    advance(at + 1);
    add(TokenKind::string, std::move(value)).line = line;
  }

  // The escape whose letter stands at `at`; returns the place after it.
  size_t escape(size_t at, std::string& out) const {
    if (at >= text_.size()) fail_here("a string has no end");
    const char c = text_[at];
    static constexpr std::string_view kFrom = "abfnrtv\\'\"", kTo = "\a\b\f\n\r\t\v\\'\"";
    if (const size_t known = kFrom.find(c); known != std::string_view::npos) {
      out += kTo[known];
      return at + 1;
    }
    if (c == '\n') return at + 1;
    if (c >= '0' && c <= '7') {
      uint32_t code = 0;
      size_t end = at;
      while (end < at + 3 && end < text_.size() && text_[end] >= '0' && text_[end] <= '7') {
        code = code * 8 + static_cast<uint32_t>(text_[end++] - '0');
      }
      append_utf8(out, code);
      return end;
    }
    const size_t wanted = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (wanted == 0) {
      if (c == 'N') fail_here("escapes by name (\\N{...}) are not supported");
      out += '\\';
      return at;  // an unknown escape keeps its backslash
    }
    uint32_t code = 0;
    if (at + 1 + wanted > text_.size()) fail_here("truncated escape in a string");
    const char* first = text_.data() + at + 1;
    const auto done = std::from_chars(first, first + wanted, code, 16);
    if (done.ptr != first + wanted || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) {
      fail_here(
          format("escape {} is no code point", quoted(std::string_view(text_).substr(at - 1, wanted + 2))));
    }
    append_utf8(out, code);
    return at + 1 + wanted;
  }

  void op() {
    static constexpr std::string_view kTwo[] = {"//", "**", "==", "!=", ">=", "<="};
    static constexpr std::string_view kOne = "+-/*%~[](){}><=.:|,;";
    for (const std::string_view two : kTwo) {
      if (!looking_at(two)) continue;
      add(TokenKind::op, std::string(two));
      return advance(at_ + 2);
    }
    const char c = peek();
    if (kOne.find(c) == std::string_view::npos) {
      fail_here(format("unexpected character {}",
                       quoted(std::string_view(text_).substr(at_, decode_utf8(text_, at_).length))));
    }
    if (c == '(' || c == '[' || c == '{') {
      brackets_ += c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
      if (brackets_.empty() || brackets_.back() != c) fail_here(format("unexpected '{}'", c));
      brackets_.pop_back();
    }
    add(TokenKind::op, std::string(1, c));
    advance(at_ + 1);
  }

  std::string text_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::string brackets_;  // closing ones expected, innermost last
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> lex(std::string_view source) {
  return Lexer(normalize(source)).run();
}

}  // namespace tessera::tokenizer::jinja
