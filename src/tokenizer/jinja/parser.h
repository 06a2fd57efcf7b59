// Tokens to a syntax tree, by Jinja's grammar.
#pragma once

#include <string_view>

#include "tokenizer/jinja/ast.h"

namespace tessera::tokenizer::jinja {

// Fails (TemplateError) with the line of the mistake: syntax, a filter or test that does not exist (outside
// of `if`, as in Jinja), a statement that is not supported, or more than kMaxSyntaxDepth levels.
Body parse(std::string_view source);

}  // namespace tessera::tokenizer::jinja
