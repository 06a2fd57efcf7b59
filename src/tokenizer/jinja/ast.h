// The syntax tree of a template. Built by the parser, immutable afterwards, and at most kMaxSyntaxDepth deep,
// so that recursion over it (also its destruction) is bounded.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/jinja/value.h"

namespace tessera::tokenizer::jinja {

constexpr int kMaxSyntaxDepth = 200;

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct CallArgs {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> named;
  ExprPtr star, star_star;  // *list, **dict; may be null
};

enum class ExprKind : uint8_t {
  constant,   // constant
  name,       // text
  tuple,      // children
  list,       // children
  dict,       // children: key, value, key, value
  attribute,  // children[0] . text
  subscript,  // children[0] [ children[1] ]
  slice,      // children[0] [ children[1] : children[2] : children[3] ], the last three may be null
  call,       // children[0] ( args )
  filter,     // children[0] | text ( args ); children[0] is null at the head of a filter block
  test,       // children[0] is text ( args )
  unary,      // text ("-", "+", "not") children[0]
  binary,     // children[0] text children[1]
  logic,      // children[0] text ("and", "or") children[1]
  compare,    // children[0] ops[0] children[1] ops[1] ...
  concat,     // children
  condition,  // children[0] if children[1] else children[2]; the last may be null
};

struct Expr {
  ExprKind kind = ExprKind::constant;
  int line = 0;
  int depth = 1;
  std::string text;
  Value constant;
  std::vector<ExprPtr> children;
  std::vector<std::string> ops;
  CallArgs args;
};

// What an assignment writes to: a name, namespace.attribute, or a tuple of targets.
struct Target {
  std::string name;
  std::string attribute;         // of namespace `name`; "" for a plain name
  std::vector<Target> elements;  // of a tuple; then `name` is ""
  bool is_tuple = false;
  int line = 0;
};

struct Node;
using Body = std::vector<std::unique_ptr<Node>>;

enum class NodeKind : uint8_t {
  text,          // text
  output,        // expr
  if_,           // branches, else_body
  for_,          // target, expr, test, body, else_body
  set,           // target, expr
  set_block,     // target, filter (may be null), body
  macro,         // macro
  call_block,    // macro (the body as `caller`), expr (the call)
  filter_block,  // filter, body
  with,          // targets, exprs, body
  scope,         // body in a scope of its own
  break_,
  continue_,
};

struct MacroNode {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<ExprPtr> defaults;  // of the last parameters
  bool uses_varargs = false, uses_kwargs = false, uses_caller = false;
  Body body;
};

struct Node {
  NodeKind kind = NodeKind::text;
  int line = 0;
  Value text;  // a string
  ExprPtr expr, test, filter;
  std::vector<std::pair<ExprPtr, Body>> branches;
  Body body, else_body;
  Target target;
  std::vector<Target> targets;
  std::vector<ExprPtr> exprs;
  MacroNode macro;
};

}  // namespace tessera::tokenizer::jinja
