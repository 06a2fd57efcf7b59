// Evaluates a syntax tree. One object for one render; not thread-safe.
//
// 1. Fuel: every statement, expression node, list item and 32 bytes of text made costs one step, and a render
// that has
//    used Limits::steps fails. So time and memory are bounded by the limit, for any template and input, the
//    same on every machine.
// 2. Depth: nested evaluations are at most kMaxEvalDepth, macro calls Limits::recursion.
// 3. Scopes live in the interpreter; one that a macro was defined in stays until the end of the render.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/jinja/ast.h"
#include "tokenizer/jinja/builtins.h"

namespace tessera::tokenizer::jinja {

struct Limits {
  int64_t steps = 5'000'000;
  int64_t range = 100'000;
  int recursion = 100;
  size_t output_bytes = size_t{16} << 20;
};
constexpr int kMaxEvalDepth = 1200;

struct Scope {
  Scope* parent = nullptr;
  bool captured = false;                                  // a macro may refer to it
  std::vector<std::pair<std::string_view, Value>> names;  // the text lives in the syntax tree
};

// The `loop` of a for statement. Items pass the loop's `if` lazily, as the body may change what it tests.
struct LoopState {
  std::vector<Value> source;
  size_t next = 0;            // of source
  std::vector<Value> passed;  // so far, index0 of them done
  int64_t index0 = -1;
  int depth0 = 0;
  int depth = 0;               // of values, for Value::depth()
  const Node* node = nullptr;  // its test; null after the loop
  Scope* scope = nullptr;      // outside of the loop
  std::vector<Value> changed;  // arguments of the last loop.changed()
  bool changed_called = false;
};

class Interpreter {
 public:
  // `context` is what the template sees besides the built-in functions; `now` is in Unix seconds.
  Interpreter(const Limits& limits, const Dict& context, int64_t now);

  // The text; fails with the line of the statement at fault.
  Str render(const Body& body);

  // --- For built-ins ---
  Meter& meter() { return meter_; }
  void charge(size_t steps) { meter_.charge(steps); }
  void charge_text(size_t bytes) { meter_.charge_text(bytes); }
  const Limits& limits() const { return limits_; }
  int64_t now() const { return now_; }
  Value attribute(const Value& object, const std::string& name);
  Value item(const Value& object, const Value& key);
  Value call(const Value& callee, const Args& args);
  Value binary(std::string_view op, const Value& left, const Value& right);
  bool contains(const Value& container, const Value& item);
  // A new string is paid for and held to the output's limit.
  Value text(Str value);
  Namespace* new_namespace() { return &namespaces_.emplace_back(); }

 private:
  enum class Flow { normal, break_, continue_ };
  class Enter;

  Flow run(const Body& body, Scope* scope);
  Flow run(const Node& node, Scope* scope);
  Flow run_for(const Node& node, Scope* scope);
  bool next_item(LoopState& loop);
  bool fetch_ahead(LoopState& loop);
  Value loop_attribute(LoopState& loop, const std::string& name);
  Value call_loop(LoopState& loop, std::string_view method, const Args& args);
  void run_call_block(const Node& node, Scope* scope);
  void assign(const Target& target, Value value, Scope* scope);
  // REQUIRES: `name` lives in the syntax tree.
  void define(const std::string& name, Value value, Scope* scope);
  Str capture(const Body& body, Scope* scope);
  void write(const Str& text);
  Value filter_captured(const Expr* filter, Str text, Scope* scope);

  Value eval(const Expr& expr, Scope* scope);
  Value eval_dispatch(const Expr& expr, Scope* scope);
  Value eval_list(const Expr& expr, Scope* scope);
  Value eval_dict(const Expr& expr, Scope* scope);
  Value eval_slice(const Expr& expr, Scope* scope);
  Value eval_unary(const Expr& expr, Scope* scope);
  Value eval_compare(const Expr& expr, Scope* scope);
  Value eval_concat(const Expr& expr, Scope* scope);
  Value eval_call(const Expr& expr, Scope* scope);
  Args eval_args(const CallArgs& args, Scope* scope);
  Value lookup(const std::string& name, Scope* scope);
  Value call_macro(const Callable& macro, const Args& args);
  Value make_macro(const MacroNode& node, Scope* scope);
  Value arithmetic(std::string_view op, const Value& left, const Value& right);
  Value repeat(const Value& sequence, int64_t count);
  Value add(const Value& left, const Value& right);

  Scope* enter(Scope* parent);
  void leave(Scope* scope);

  const Limits limits_;
  const Dict& context_;
  const int64_t now_;
  Meter meter_;
  int depth_ = 0, macro_depth_ = 0, loop_depth_ = 0;
  Str* out_ = nullptr;
  std::deque<Scope> scopes_;
  std::vector<Scope*> free_scopes_;
  std::deque<Namespace> namespaces_;
};

}  // namespace tessera::tokenizer::jinja
