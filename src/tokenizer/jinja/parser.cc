#include "tokenizer/jinja/parser.h"

#include <utility>

#include "tokenizer/jinja/expression_parser.h"

namespace tessera::tokenizer::jinja {
namespace {

class Parser : ExpressionParser {
 public:
  explicit Parser(std::string_view source) : ExpressionParser(source) {}

  Body template_body() { return body({}); }

 private:
  using Names = std::initializer_list<std::string_view>;

  // Up to one of `ends` (whose "{%" is consumed and whose name is current), or to the end of the template if
  // empty.
  Body body(Names ends) {
    const Level level(*this);
    Body nodes;
    for (;;) {
      const Token& token = current();
      switch (token.kind) {
        case TokenKind::eof:
          if (ends.size() > 0) fail_here(format("unexpected end of template; expected '{}'", *ends.begin()));
          return nodes;
        case TokenKind::data: {
          auto node = new_node(NodeKind::text);
          node->text = Value(take().text);
          nodes.push_back(std::move(node));
          break;
        }
        case TokenKind::variable_begin: {
          auto node = new_node(NodeKind::output);
          take();
          node->expr = tuple(false, true);
          expect(TokenKind::variable_end, "'}}'");
          nodes.push_back(std::move(node));
          break;
        }
        case TokenKind::block_begin:
          take();
          for (const std::string_view end : ends) {
            if (current().is_name(end)) return nodes;
          }
          statement(nodes);
          expect(TokenKind::block_end, "'%}'");
          break;
        default:
          fail_here(format("unexpected {}", describe(token)));
      }
    }
  }
  std::unique_ptr<Node> new_node(NodeKind kind) const {
    auto node = std::make_unique<Node>();
    node->kind = kind;
    node->line = current().line;
    return node;
  }
  // A statement's body, from the "%}" of its head to the name that ends it (which stays current).
  Body block(Names ends) {
    skip_op(":");
    expect(TokenKind::block_end, "'%}'");
    return body(ends);
  }
  Body last_block(std::string_view end) {
    Body nodes = block({end});
    take();
    return nodes;
  }

  void statement(Body& nodes) {
    if (current().kind != TokenKind::name)
      fail_here(format("expected a statement, found {}", describe(current())));
    const std::string name = current().text;
    if (name == "if") return nodes.push_back(if_());
    if (name == "for") return nodes.push_back(for_());
    if (name == "set") return nodes.push_back(set());
    if (name == "macro") return nodes.push_back(macro());
    if (name == "call") return nodes.push_back(call_block());
    if (name == "filter") return nodes.push_back(filter_block());
    if (name == "with") return nodes.push_back(with());
    if (name == "print") return print(nodes);
    if (name == "generation") return nodes.push_back(generation());
    if (name == "break" || name == "continue") {
      if (loops_ == 0) fail_here(format("'{}' outside of a loop", name));
      auto node = new_node(name == "break" ? NodeKind::break_ : NodeKind::continue_);
      take();
      return nodes.push_back(std::move(node));
    }
    for (const char* known : {"block", "extends", "include", "import", "from", "autoescape"}) {
      if (name == known) fail_here(format("the statement '{}' is not supported in chat templates", name));
    }
    fail_here(format("unknown statement {}", quoted(name)));
  }

  std::unique_ptr<Node> if_() {
    auto node = new_node(NodeKind::if_);
    ++soft_;
    do {
      take();  // if, elif
      ExprPtr test = tuple(false, false);
      Body nodes = block({"elif", "else", "endif"});
      node->branches.emplace_back(std::move(test), std::move(nodes));
    } while (current().is_name("elif"));
    if (take().text == "else") node->else_body = last_block("endif");
    --soft_;
    return node;
  }

  std::unique_ptr<Node> for_() {
    auto node = new_node(NodeKind::for_);
    take();
    node->target = target("in");
    expect_name("in");
    node->expr = tuple(false, false, "recursive");
    if (skip_name("if")) node->test = expression();
    if (current().is_name("recursive")) fail_here("recursive loops are not supported");
    ++loops_;
    node->body = block({"endfor", "else"});
    --loops_;
    if (take().text == "else") node->else_body = last_block("endfor");
    return node;
  }

  std::unique_ptr<Node> set() {
    auto node = new_node(NodeKind::set);
    take();
    node->target = target({}, true);
    if (skip_op("=")) {
      node->expr = tuple(false, true);
      return node;
    }
    node->kind = NodeKind::set_block;
    while (skip_op("|")) node->filter = filter(std::move(node->filter));
    if (node->target.is_tuple) fail_here("a set block needs one name");
    node->body = last_block("endset");
    return node;
  }

  std::unique_ptr<Node> macro() {
    auto node = new_node(NodeKind::macro);
    take();
    node->macro.name = assignable_name();
    signature(node->macro);
    macro_body(node->macro, "endmacro");
    return node;
  }
  std::unique_ptr<Node> call_block() {
    auto node = new_node(NodeKind::call_block);
    take();
    node->macro.name = "caller";
    if (current().is_op("(")) signature(node->macro);
    node->expr = expression();
    if (node->expr->kind != ExprKind::call) fail_here("expected a call");
    macro_body(node->macro, "endcall");
    return node;
  }
  void signature(MacroNode& macro) {
    expect_op("(");
    while (!current().is_op(")")) {
      if (macro.parameters.size() >= kMaxArguments)
        fail_here(format("a macro has more than {} parameters", kMaxArguments));
      if (!macro.parameters.empty()) expect_op(",");
      std::string name = assignable_name();
      for (const std::string& other : macro.parameters) {
        if (other == name) fail_here(format("parameter {} is there twice", quoted(name)));
      }
      macro.parameters.push_back(std::move(name));
      if (skip_op("=")) {
        macro.defaults.push_back(expression());
      } else if (!macro.defaults.empty()) {
        fail_here("a parameter without default follows one with a default");
      } else if (macro.parameters.back() == "caller") {
        fail_here("the parameter 'caller' needs a default");
      }
    }
    expect_op(")");
  }
  void macro_body(MacroNode& macro, std::string_view end) {
    macros_.push_back(&macro);
    const int loops = std::exchange(loops_, 0);
    macro.body = last_block(end);
    loops_ = loops;
    macros_.pop_back();
    const auto is_parameter = [&](std::string_view name) {
      return std::find(macro.parameters.begin(), macro.parameters.end(), name) != macro.parameters.end();
    };
    macro.uses_varargs &= !is_parameter("varargs");
    macro.uses_kwargs &= !is_parameter("kwargs");
    macro.uses_caller &= !is_parameter("caller");
  }
  std::unique_ptr<Node> filter_block() {
    auto node = new_node(NodeKind::filter_block);
    take();
    node->filter = filter(nullptr);
    while (skip_op("|")) node->filter = filter(std::move(node->filter));
    node->body = last_block("endfilter");
    return node;
  }
  std::unique_ptr<Node> with() {
    auto node = new_node(NodeKind::with);
    take();
    while (current().kind != TokenKind::block_end) {
      if (!node->targets.empty()) expect_op(",");
      node->targets.push_back(target({}));
      expect_op("=");
      node->exprs.push_back(expression());
    }
    node->body = last_block("endwith");
    return node;
  }
  void print(Body& nodes) {
    take();
    bool first = true;
    while (current().kind != TokenKind::block_end) {
      if (!first) expect_op(",");
      first = false;
      auto node = new_node(NodeKind::output);
      node->expr = expression();
      nodes.push_back(std::move(node));
    }
  }
  // Hugging Face's mark round what the assistant says; its body is rendered in a scope of its own.
  std::unique_ptr<Node> generation() {
    auto node = new_node(NodeKind::scope);
    take();
    const int loops = std::exchange(loops_, 0);
    node->body = last_block("endgeneration");
    loops_ = loops;
    return node;
  }

  std::string assignable_name() {
    const Token& token = current();
    for (const char* reserved : {"true", "false", "none", "True", "False", "None"}) {
      if (token.is_name(reserved)) fail_here(format("cannot assign to {}", token.text));
    }
    return expect_identifier();
  }
  Target single_target(bool with_namespace) {
    Target made;
    made.line = current().line;
    if (skip_op("(")) {
      made = target(")", with_namespace);
      expect_op(")");
      return made;
    }
    made.name = assignable_name();
    if (with_namespace && skip_op(".")) made.attribute = expect_identifier();
    return made;
  }
  Target target(std::string_view stop, bool with_namespace = false) {
    const Level level(*this);
    std::vector<Target> elements;
    bool is_tuple = false;
    for (;;) {
      const Token& token = current();
      const bool end = token.kind == TokenKind::block_end || token.is_op(")") || token.is_op("=") ||
                       (!stop.empty() && token.is_name(stop));
      if (end) break;
      elements.push_back(single_target(with_namespace));
      if (!skip_op(",")) break;
      is_tuple = true;
    }
    if (elements.empty()) fail_here(format("expected a name to assign to, found {}", describe(current())));
    if (!is_tuple) return std::move(elements[0]);
    Target made;
    made.line = elements[0].line;
    made.is_tuple = true;
    made.elements = std::move(elements);
    return made;
  }
};

}  // namespace

Body parse(std::string_view source) {
  return Parser(source).template_body();
}

}  // namespace tessera::tokenizer::jinja
