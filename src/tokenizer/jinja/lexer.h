// Jinja's tokens, with trim_blocks and lstrip_blocks on, as Hugging Face renders chat templates.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::tokenizer::jinja {

enum class TokenKind : uint8_t {
  data,
  variable_begin,
  variable_end,
  block_begin,
  block_end,
  name,
  string,
  integer,
  real,
  op,
  eof,
};

struct Token {
  TokenKind kind = TokenKind::eof;
  int line = 0;
  std::string text;  // of data, name, string (unescaped) and op
  int64_t integer = 0;
  double real = 0;

  bool is_op(std::string_view what) const { return kind == TokenKind::op && text == what; }
  bool is_name(std::string_view what) const { return kind == TokenKind::name && text == what; }
};

// Fails (TemplateError) with the line of the mistake. Time linear in the source.
std::vector<Token> lex(std::string_view source);

}  // namespace tessera::tokenizer::jinja
