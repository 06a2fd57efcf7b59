// The half of the parser that knows expressions; parser.cc derives the half that knows statements.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/format.h"
#include "tokenizer/jinja/ast.h"
#include "tokenizer/jinja/builtins.h"
#include "tokenizer/jinja/lexer.h"
#include "tokenizer/vocab.h"

namespace tessera::tokenizer::jinja {

constexpr size_t kMaxArguments = 255;

class ExpressionParser {
 protected:
  explicit ExpressionParser(std::string_view source) : tokens_(lex(source)) {}

  // --- Tokens ---
  const Token& current() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  const Token& take() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool skip_op(std::string_view op) { return current().is_op(op) ? (take(), true) : false; }
  bool skip_name(std::string_view name) { return current().is_name(name) ? (take(), true) : false; }
  [[noreturn]] void fail_here(std::string message) const {
    throw TemplateError{std::move(message), current().line};
  }

  static std::string describe(const Token& token) {
    switch (token.kind) {
      case TokenKind::eof:
        return "end of template";
      case TokenKind::data:
        return "text";
      case TokenKind::variable_begin:
        return "'{{'";
      case TokenKind::variable_end:
        return "'}}'";
      case TokenKind::block_begin:
        return "'{%'";
      case TokenKind::block_end:
        return "'%}'";
      case TokenKind::integer:
        return "an integer";
      case TokenKind::real:
        return "a float";
      case TokenKind::string:
        return "string " + quoted(token.text);
      default:
        return quoted(token.text);
    }
  }
  void expect(TokenKind kind, const char* what) {
    if (current().kind != kind) fail_here(format("expected {}, found {}", what, describe(current())));
    take();
  }
  void expect_op(std::string_view op) {
    if (!skip_op(op)) fail_here(format("expected '{}', found {}", op, describe(current())));
  }
  void expect_name(std::string_view name) {
    if (!skip_name(name)) fail_here(format("expected '{}', found {}", name, describe(current())));
  }
  std::string expect_identifier() {
    if (current().kind != TokenKind::name)
      fail_here(format("expected a name, found {}", describe(current())));
    return take().text;
  }

  // --- Depth ---
  class Level {
   public:
    explicit Level(ExpressionParser& parser) : parser_(parser) {
      if (++parser_.depth_ > kMaxSyntaxDepth) {
        parser_.fail_here(format("nested deeper than the limit of {} levels", kMaxSyntaxDepth));
      }
    }
    ~Level() { --parser_.depth_; }

   private:
    ExpressionParser& parser_;
  };

  // Sets the expression's depth from its children and keeps chains (a + b + ..., a | f | ...) within the
  // limit too.
  ExprPtr finish(ExprPtr expr) const {
    const auto take_depth = [&](const ExprPtr& child) {
      if (child) expr->depth = std::max(expr->depth, child->depth + 1);
    };
    for (const ExprPtr& child : expr->children) take_depth(child);
    for (const ExprPtr& child : expr->args.positional) take_depth(child);
    for (const auto& [name, child] : expr->args.named) take_depth(child);
    take_depth(expr->args.star);
    take_depth(expr->args.star_star);
    if (expr->depth > kMaxSyntaxDepth) {
      throw TemplateError{
          format("an expression is nested deeper than the limit of {} levels", kMaxSyntaxDepth), expr->line};
    }
    return expr;
  }
  ExprPtr make(ExprKind kind, int line, std::string text = {}) const {
    auto expr = std::make_unique<Expr>();
    expr->kind = kind;
    expr->line = line;
    expr->text = std::move(text);
    return expr;
  }
  template <typename... Children>
  ExprPtr make_with(ExprKind kind, int line, std::string text, Children... children) const {
    ExprPtr expr = make(kind, line, std::move(text));
    (expr->children.push_back(std::move(children)), ...);
    return finish(std::move(expr));
  }
  ExprPtr constant(int line, Value value) const {
    ExprPtr expr = make(ExprKind::constant, line);
    expr->constant = std::move(value);
    return expr;
  }

  // --- Expressions, weakest binding first ---
  ExprPtr expression(bool with_condition = true) {
    const Level level(*this);
    return with_condition ? condition() : or_();
  }
  ExprPtr condition() {
    int line = current().line;
    ExprPtr expr = or_();
    while (skip_name("if")) {
      ++soft_;
      ExprPtr test = or_();
      ExprPtr otherwise;
      if (skip_name("else")) {
        const Level level(*this);
        otherwise = condition();
      }
      --soft_;
      expr = make_with(ExprKind::condition, line, "", std::move(expr), std::move(test), std::move(otherwise));
      line = current().line;
    }
    return expr;
  }
  ExprPtr or_() {
    ExprPtr left = and_();
    while (current().is_name("or")) {
      const int line = take().line;
      left = make_with(ExprKind::logic, line, "or", std::move(left), and_());
    }
    return left;
  }
  ExprPtr and_() {
    ExprPtr left = not_();
    while (current().is_name("and")) {
      const int line = take().line;
      left = make_with(ExprKind::logic, line, "and", std::move(left), not_());
    }
    return left;
  }
  ExprPtr not_() {
    if (!current().is_name("not")) return comparison();
    const Level level(*this);
    const int line = take().line;
    return make_with(ExprKind::unary, line, "not", not_());
  }
  ExprPtr comparison() {
    ExprPtr first = sum();
    ExprPtr expr;
    for (;;) {
      std::string op;
      if (current().kind == TokenKind::op &&
          (current().text == "==" || current().text == "!=" || current().text == "<" ||
           current().text == "<=" || current().text == ">" || current().text == ">=")) {
        op = take().text;
      } else if (skip_name("in")) {
        op = "in";
      } else if (current().is_name("not") && ahead().is_name("in")) {
        take();
        take();
        op = "not in";
      } else {
        break;
      }
      if (!expr) {
        expr = make(ExprKind::compare, current().line);
        expr->children.push_back(std::move(first));
      }
      expr->ops.push_back(std::move(op));
      expr->children.push_back(sum());
    }
    return expr ? finish(std::move(expr)) : std::move(first);
  }
  bool at_any_op(std::initializer_list<std::string_view> ops) const {
    return current().kind == TokenKind::op && std::find(ops.begin(), ops.end(), current().text) != ops.end();
  }
  ExprPtr sum() {
    ExprPtr left = concat();
    while (at_any_op({"+", "-"})) {
      const Token& op = take();
      left = make_with(ExprKind::binary, op.line, op.text, std::move(left), concat());
    }
    return left;
  }
  ExprPtr concat() {
    ExprPtr first = product();
    if (!current().is_op("~")) return first;
    ExprPtr expr = make(ExprKind::concat, current().line);
    expr->children.push_back(std::move(first));
    while (skip_op("~")) expr->children.push_back(product());
    return finish(std::move(expr));
  }
  ExprPtr product() {
    ExprPtr left = power();
    while (at_any_op({"*", "/", "//", "%"})) {
      const Token& op = take();
      left = make_with(ExprKind::binary, op.line, op.text, std::move(left), power());
    }
    return left;
  }
  ExprPtr power() {
    ExprPtr left = unary();
    while (current().is_op("**")) {
      const Token& op = take();
      left = make_with(ExprKind::binary, op.line, op.text, std::move(left), unary());
    }
    return left;
  }
  ExprPtr unary(bool with_filter = true) {
    ExprPtr expr;
    if (at_any_op({"-", "+"})) {
      const Level level(*this);
      const Token& op = take();
      expr = make_with(ExprKind::unary, op.line, op.text, unary(false));
    } else {
      expr = primary();
    }
    expr = postfix(std::move(expr));
    return with_filter ? filters(std::move(expr)) : std::move(expr);
  }
  ExprPtr primary() {
    const Token& token = current();
    switch (token.kind) {
      case TokenKind::name:
        take();
        if (token.text == "true" || token.text == "True") return constant(token.line, true);
        if (token.text == "false" || token.text == "False") return constant(token.line, false);
        if (token.text == "none" || token.text == "None") return constant(token.line, Value());
        note_name(token.text);
        return make(ExprKind::name, token.line, token.text);
      case TokenKind::string: {
        std::string text;
        while (current().kind == TokenKind::string) text += take().text;
        return constant(token.line, Value(std::move(text)));
      }
      case TokenKind::integer:
        take();
        return constant(token.line, token.integer);
      case TokenKind::real:
        take();
        return constant(token.line, token.real);
      default:
        break;
    }
    if (skip_op("(")) {
      ExprPtr expr = tuple(true, true);
      expect_op(")");
      return expr;
    }
    if (token.is_op("[")) return list();
    if (token.is_op("{")) return dict();
    fail_here(format("unexpected {}", describe(token)));
  }
  // One expression, or a tuple when commas follow. A tuple ends before %}, }}, ")" and `stop`.
  ExprPtr tuple(bool in_parentheses, bool with_condition, std::string_view stop = {}) {
    const int line = current().line;
    std::vector<ExprPtr> items;
    bool is_tuple = false;
    for (;;) {
      const Token& token = current();
      const bool end = token.kind == TokenKind::variable_end || token.kind == TokenKind::block_end ||
                       token.is_op(")") || (!stop.empty() && token.is_name(stop));
      if (end) break;
      items.push_back(expression(with_condition));
      if (!skip_op(",")) break;
      is_tuple = true;
    }
    if (!is_tuple && !items.empty()) return std::move(items[0]);
    if (!is_tuple && !in_parentheses)
      fail_here(format("expected an expression, found {}", describe(current())));
    ExprPtr expr = make(ExprKind::tuple, line);
    expr->children = std::move(items);
    return finish(std::move(expr));
  }
  ExprPtr list() {
    ExprPtr expr = make(ExprKind::list, take().line);
    while (!current().is_op("]")) {
      if (!expr->children.empty()) expect_op(",");
      if (current().is_op("]")) break;
      expr->children.push_back(expression());
    }
    expect_op("]");
    return finish(std::move(expr));
  }
  ExprPtr dict() {
    ExprPtr expr = make(ExprKind::dict, take().line);
    while (!current().is_op("}")) {
      if (!expr->children.empty()) expect_op(",");
      if (current().is_op("}")) break;
      expr->children.push_back(expression());
      expect_op(":");
      expr->children.push_back(expression());
    }
    expect_op("}");
    return finish(std::move(expr));
  }
  ExprPtr postfix(ExprPtr expr) {
    for (;;) {
      if (current().is_op(".")) {
        expr = attribute(std::move(expr));
      } else if (current().is_op("[")) {
        expr = subscript(std::move(expr));
      } else if (current().is_op("(")) {
        expr = call(std::move(expr));
      } else {
        return expr;
      }
    }
  }
  ExprPtr attribute(ExprPtr object) {
    const int line = take().line;
    if (current().kind == TokenKind::name)
      return make_with(ExprKind::attribute, line, take().text, std::move(object));
    if (current().kind != TokenKind::integer) fail_here("expected a name or number after '.'");
    ExprPtr index = constant(line, take().integer);
    return make_with(ExprKind::subscript, line, "", std::move(object), std::move(index));
  }
  ExprPtr subscript(ExprPtr object) {
    const int line = take().line;
    std::vector<ExprPtr> parts;
    bool sliced = false;
    if (!current().is_op(":")) {
      parts.push_back(expression());
    } else {
      parts.push_back(nullptr);
    }
    while (parts.size() < 3 && skip_op(":")) {
      sliced = true;
      parts.push_back(current().is_op(":") || current().is_op("]") ? nullptr : expression());
    }
    if (!sliced && current().is_op(",")) {
      ExprPtr key = make(ExprKind::tuple, line);
      key->children = std::move(parts);
      while (skip_op(",")) {
        if (current().is_op("]")) break;
        key->children.push_back(expression());
      }
      expect_op("]");
      return make_with(ExprKind::subscript, line, "", std::move(object), finish(std::move(key)));
    }
    expect_op("]");
    if (!sliced) return make_with(ExprKind::subscript, line, "", std::move(object), std::move(parts[0]));
    parts.resize(3);
    return make_with(ExprKind::slice, line, "", std::move(object), std::move(parts[0]), std::move(parts[1]),
                     std::move(parts[2]));
  }
  CallArgs arguments() {
    CallArgs args;
    expect_op("(");
    while (!current().is_op(")")) {
      const bool any = !args.positional.empty() || !args.named.empty() || args.star || args.star_star;
      if (any) {
        expect_op(",");
        if (current().is_op(")")) break;
      }
      if (current().is_op("**")) {
        take();
        if (args.star_star) fail_here("only one **argument is allowed");
        args.star_star = expression();
      } else if (current().is_op("*")) {
        take();
        if (args.star || args.star_star) fail_here("only one *argument is allowed, before **");
        args.star = expression();
      } else if (current().kind == TokenKind::name && ahead().is_op("=")) {
        if (args.star_star) fail_here("a named argument cannot follow **");
        std::string name = take().text;
        take();
        args.named.emplace_back(std::move(name), expression());
      } else {
        if (args.star || args.star_star || !args.named.empty())
          fail_here("a positional argument must come first");
        args.positional.push_back(expression());
      }
    }
    expect_op(")");
    if (args.positional.size() + args.named.size() > kMaxArguments) {
      fail_here(format("a call has more than {} arguments, the limit", kMaxArguments));
    }
    return args;
  }
  ExprPtr call(ExprPtr callee) {
    ExprPtr expr = make(ExprKind::call, current().line);
    expr->children.push_back(std::move(callee));
    expr->args = arguments();
    return finish(std::move(expr));
  }
  ExprPtr filters(ExprPtr expr) {
    for (;;) {
      if (current().is_op("|")) {
        take();
        expr = filter(std::move(expr));
      } else if (current().is_name("is")) {
        expr = test(std::move(expr));
      } else if (current().is_op("(")) {
        expr = call(std::move(expr));
      } else {
        return expr;
      }
    }
  }
  // The name that stands here, and its arguments. `input` is null at the head of a filter or set block.
  ExprPtr filter(ExprPtr input) {
    ExprPtr expr = make(ExprKind::filter, current().line, dotted_name());
    if (soft_ == 0 && !has_filter(expr->text)) fail_here(format("no filter named {}", quoted(expr->text)));
    expr->children.push_back(std::move(input));
    if (current().is_op("(")) expr->args = arguments();
    return finish(std::move(expr));
  }
  std::string dotted_name() {
    std::string name = expect_identifier();
    while (skip_op(".")) name += "." + expect_identifier();
    return name;
  }
  ExprPtr test(ExprPtr input) {
    const int line = take().line;
    const bool negated = skip_name("not");
    ExprPtr expr = make(ExprKind::test, line, dotted_name());
    if (soft_ == 0 && !has_test(expr->text)) fail_here(format("no test named {}", quoted(expr->text)));
    expr->children.push_back(std::move(input));
    const Token& token = current();
    const bool word =
        token.kind == TokenKind::name && token.text != "else" && token.text != "or" && token.text != "and";
    if (token.is_op("(")) {
      expr->args = arguments();
    } else if (word || token.kind == TokenKind::string || token.kind == TokenKind::integer ||
               token.kind == TokenKind::real || token.is_op("[") || token.is_op("{")) {
      if (token.is_name("is")) fail_here("tests with 'is' cannot be chained");
      const Level level(*this);
      expr->args.positional.push_back(postfix(primary()));
    }
    expr = finish(std::move(expr));
    return negated ? make_with(ExprKind::unary, line, "not", std::move(expr)) : std::move(expr);
  }

  // The special names make the innermost macro accept what they hold.
  void note_name(std::string_view name) {
    if (macros_.empty()) return;
    macros_.back()->uses_varargs |= name == "varargs";
    macros_.back()->uses_kwargs |= name == "kwargs";
    macros_.back()->uses_caller |= name == "caller";
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int soft_ = 0;   // inside `if`: unknown filters and tests are an error only when they are reached
  int loops_ = 0;  // enclosing loops of this macro
  std::vector<MacroNode*> macros_;
};

}  // namespace tessera::tokenizer::jinja
