#include "tokenizer/jinja/interpreter.h"

#include <algorithm>

#include "core/format.h"
#include "tokenizer/vocab.h"

namespace tessera::tokenizer::jinja {

// One level of evaluation; counts a step and names the line of what fails inside.
class Interpreter::Enter {
 public:
  explicit Enter(Interpreter& in) : in_(in) {
    in_.charge(1);
    if (++in_.depth_ > kMaxEvalDepth) {
      --in_.depth_;
      fail(format("evaluation is nested deeper than the limit of {} levels", kMaxEvalDepth));
    }
  }
  ~Enter() { --in_.depth_; }

 private:
  Interpreter& in_;
};

Interpreter::Interpreter(const Limits& limits, const Dict& context, int64_t now)
    : limits_(limits), context_(context), now_(now), meter_(limits.steps) {}

Value Interpreter::text(Str value) {
  charge_text(value.text.size());
  if (value.text.size() > limits_.output_bytes) {
    fail(format("a text of {} bytes is over the limit of {} bytes", value.text.size(), limits_.output_bytes));
  }
  return Value(std::move(value));
}

Scope* Interpreter::enter(Scope* parent) {
  Scope* scope = nullptr;
  if (free_scopes_.empty()) {
    scope = &scopes_.emplace_back();
  } else {
    scope = free_scopes_.back();
    free_scopes_.pop_back();
  }
  scope->parent = parent;
  return scope;
}

void Interpreter::leave(Scope* scope) {
  if (scope->captured) return;
  scope->names.clear();
  free_scopes_.push_back(scope);
}

Str Interpreter::render(const Body& body) {
  Str out;
  out_ = &out;
  run(body, enter(nullptr));
  return out;
}

void Interpreter::write(const Str& text) {
  charge_text(text.text.size());
  if (out_->text.size() + text.text.size() > limits_.output_bytes) {
    fail(format("the output is over the limit of {} bytes", limits_.output_bytes));
  }
  out_->append(text);
}

Str Interpreter::capture(const Body& body, Scope* scope) {
  Str captured;
  Str* const outer = std::exchange(out_, &captured);
  Scope* const inner = enter(scope);
  run(body, inner);
  leave(inner);
  out_ = outer;
  return captured;
}

Interpreter::Flow Interpreter::run(const Body& body, Scope* scope) {
  for (const auto& node : body) {
    try {
      const Flow flow = run(*node, scope);
      if (flow != Flow::normal) return flow;
    } catch (TemplateError& error) {
      if (error.line == 0) error.line = node->line;
      throw;
    }
  }
  return Flow::normal;
}

Interpreter::Flow Interpreter::run(const Node& node, Scope* scope) {
  const Enter level(*this);
  switch (node.kind) {
    case NodeKind::text:
      write(node.text.str());
      break;
    case NodeKind::output: {
      const Value value = eval(*node.expr, scope);
      if (value.is_string()) {
        write(value.str());
      } else {
        write(to_str(meter_, value));
      }
      break;
    }
    case NodeKind::if_:
      for (const auto& [test, body] : node.branches) {
        if (eval(*test, scope).truthy()) return run(body, scope);
      }
      return run(node.else_body, scope);
    case NodeKind::for_:
      return run_for(node, scope);
    case NodeKind::set:
      assign(node.target, eval(*node.expr, scope), scope);
      break;
    case NodeKind::set_block:
      assign(node.target, filter_captured(node.filter.get(), capture(node.body, scope), scope), scope);
      break;
    case NodeKind::macro:
      define(node.macro.name, make_macro(node.macro, scope), scope);
      break;
    case NodeKind::call_block:
      run_call_block(node, scope);
      break;
    case NodeKind::filter_block:
      write(to_str(meter_, filter_captured(node.filter.get(), capture(node.body, scope), scope)));
      break;
    case NodeKind::with: {
      std::vector<Value> values;
      for (const ExprPtr& expr : node.exprs) values.push_back(eval(*expr, scope));
      Scope* const inner = enter(scope);
      for (size_t i = 0; i < values.size(); ++i) assign(node.targets[i], std::move(values[i]), inner);
      const Flow flow = run(node.body, inner);
      leave(inner);
      return flow;
    }
    case NodeKind::scope: {
      Scope* const inner = enter(scope);
      run(node.body, inner);
      leave(inner);
      break;
    }
    case NodeKind::break_:
      return Flow::break_;
    case NodeKind::continue_:
      return Flow::continue_;
  }
  return Flow::normal;
}

Value Interpreter::filter_captured(const Expr* filter, Str text, Scope* scope) {
  Value value = this->text(std::move(text));
  std::vector<const Expr*> chain;
  for (const Expr* at = filter; at != nullptr; at = at->children[0].get()) chain.push_back(at);
  for (auto at = chain.rbegin(); at != chain.rend(); ++at) {
    value = apply_filter(*this, (*at)->text, value, eval_args((*at)->args, scope));
  }
  return value;
}

void Interpreter::assign(const Target& target, Value value, Scope* scope) {
  if (target.is_tuple) {
    const std::vector<Value> items = iterate(meter_, value);
    if (items.size() != target.elements.size()) {
      fail(format("cannot unpack {} values into {} names", items.size(), target.elements.size()));
    }
    for (size_t i = 0; i < items.size(); ++i) assign(target.elements[i], items[i], scope);
    return;
  }
  if (!target.attribute.empty()) {
    const Value owner = lookup(target.name, scope);
    if (!owner.is_namespace()) fail("cannot assign to an attribute of what is no namespace");
    if (target.attribute.starts_with('_'))
      fail("an attribute of a namespace cannot start with an underscore");
    owner.ns().attributes.set(target.attribute, std::move(value));
    return;
  }
  define(target.name, std::move(value), scope);
}

void Interpreter::define(const std::string& name, Value value, Scope* scope) {
  charge(scope->names.size() / 16);
  for (auto& [known, old] : scope->names) {
    if (known == name) {
      old = std::move(value);
      return;
    }
  }
  scope->names.emplace_back(name, std::move(value));
}

// --- Loops ---

// Moves one more item that passes the test from the source to `passed`.
bool Interpreter::fetch_ahead(LoopState& loop) {
  while (loop.next < loop.source.size()) {
    const Value item = loop.source[loop.next++];
    bool passes = true;
    if (loop.node != nullptr && loop.node->test) {
      Scope* const scope = enter(loop.scope);
      assign(loop.node->target, item, scope);
      passes = eval(*loop.node->test, scope).truthy();
      leave(scope);
    }
    if (passes) {
      loop.passed.push_back(item);
      return true;
    }
  }
  return false;
}

bool Interpreter::next_item(LoopState& loop) {
  if (loop.index0 + 1 >= static_cast<int64_t>(loop.passed.size()) && !fetch_ahead(loop)) return false;
  ++loop.index0;
  return true;
}

Interpreter::Flow Interpreter::run_for(const Node& node, Scope* scope) {
  const Value iterable = eval(*node.expr, scope);
  auto loop = std::make_shared<LoopState>();
  loop->source = iterate(meter_, iterable);
  loop->depth0 = 0;
  for (const Value& item : loop->source) loop->depth = std::max(loop->depth, item.depth());
  if (++loop->depth > kMaxValueDepth)
    fail(format("values are nested deeper than the limit of {}", kMaxValueDepth));
  loop->node = &node;
  loop->scope = scope;
  static constexpr std::string_view kLoop = "loop";
  bool any = false;
  while (next_item(*loop)) {
    any = true;
    Scope* const inner = enter(scope);
    inner->names.emplace_back(kLoop, Value(loop));
    assign(node.target, loop->passed[static_cast<size_t>(loop->index0)], inner);
    const Flow flow = run(node.body, inner);
    leave(inner);
    if (flow == Flow::break_) break;
  }
  loop->node = nullptr;
  return any ? Flow::normal : run(node.else_body, scope);
}

Value Interpreter::loop_attribute(LoopState& loop, const std::string& name) {
  const auto all = [&] {
    while (fetch_ahead(loop)) {
    }
    return static_cast<int64_t>(loop.passed.size());
  };
  const auto at = static_cast<size_t>(loop.index0);
  const auto has_next = [&] { return at + 1 < loop.passed.size() || fetch_ahead(loop); };
  if (name == "index") return loop.index0 + 1;
  if (name == "index0") return loop.index0;
  if (name == "first") return loop.index0 == 0;
  if (name == "last") return !has_next();
  if (name == "length") return all();
  if (name == "revindex") return all() - loop.index0;
  if (name == "revindex0") return all() - loop.index0 - 1;
  if (name == "depth") return loop.depth0 + 1;
  if (name == "depth0") return loop.depth0;
  if (name == "previtem") return at > 0 ? loop.passed[at - 1] : Value::undefined("there is no previous item");
  if (name == "nextitem") return has_next() ? loop.passed[at + 1] : Value::undefined("there is no next item");
  return Value::undefined(format("'loop' has no attribute {}", quoted(name)));
}

Value Interpreter::call_loop(LoopState& loop, std::string_view method, const Args& args) {
  if (method == "cycle") {
    if (args.positional.empty()) fail("loop.cycle needs at least one value");
    return args.positional[static_cast<size_t>(loop.index0) % args.positional.size()];
  }
  const bool same = loop.changed_called && loop.changed.size() == args.positional.size() &&
                    std::equal(loop.changed.begin(), loop.changed.end(), args.positional.begin(),
                               [this](const Value& a, const Value& b) { return equal(meter_, a, b); });
  loop.changed_called = true;
  for (const Value& value : args.positional) {
    if (value.depth() > 0) fail("loop.changed compares scalars only");
  }
  loop.changed = args.positional;
  return !same;
}

// --- Macros ---

Value Interpreter::make_macro(const MacroNode& node, Scope* scope) {
  charge(10);
  for (Scope* at = scope; at != nullptr && !at->captured; at = at->parent) at->captured = true;
  auto macro = std::make_shared<Callable>();
  macro->kind = Callable::Kind::macro;
  macro->name = node.name;
  macro->macro = &node;
  macro->scope = scope;
  return Value(std::shared_ptr<const Callable>(std::move(macro)));
}

Value Interpreter::call_macro(const Callable& callable, const Args& args) {
  const MacroNode& macro = *callable.macro;
  if (macro_depth_ >= limits_.recursion)
    fail(format("macro calls are nested deeper than the limit of {}", limits_.recursion));
  const size_t count = macro.parameters.size();
  std::vector<std::optional<Value>> values(count);
  List extra;
  extra.kind = ListKind::tuple;
  for (size_t i = 0; i < args.positional.size(); ++i) {
    if (i < count) {
      values[i] = args.positional[i];
    } else {
      extra.items.push_back(args.positional[i]);
    }
  }
  Dict named;
  std::optional<Value> caller;
  for (const auto& [name, value] : args.named) {
    const auto at = std::find(macro.parameters.begin(), macro.parameters.end(), name);
    const auto index = static_cast<size_t>(at - macro.parameters.begin());
    if (at != macro.parameters.end() && !values[index]) {
      values[index] = value;
    } else if (name == "caller" && macro.uses_caller) {
      caller = value;
    } else {
      named.set(name, value);
    }
  }
  if (!extra.items.empty() && !macro.uses_varargs) {
    fail(format("macro {} takes not more than {} arguments", quoted(callable.name), count));
  }
  if (!named.entries.empty() && !macro.uses_kwargs) {
    fail(format("macro {} takes no keyword argument {}", quoted(callable.name),
                quoted(named.entries[0].first.text())));
  }
  Scope* const scope = enter(callable.scope);
  const size_t first_default = count - macro.defaults.size();
  for (size_t i = 0; i < count; ++i) {
    if (!values[i]) {
      values[i] =
          i >= first_default
              ? eval(*macro.defaults[i - first_default], scope)
              : Value::undefined(format("parameter {} was not provided", quoted(macro.parameters[i])));
    }
    scope->names.emplace_back(macro.parameters[i], *values[i]);
  }
  if (macro.uses_caller)
    scope->names.emplace_back("caller", caller ? *caller : Value::undefined("no caller defined"));
  if (macro.uses_kwargs) scope->names.emplace_back("kwargs", Value(std::move(named)));
  if (macro.uses_varargs) scope->names.emplace_back("varargs", Value(std::move(extra)));
  ++macro_depth_;
  Str captured;
  Str* const outer = std::exchange(out_, &captured);
  run(macro.body, scope);
  out_ = outer;
  --macro_depth_;
  leave(scope);
  return text(std::move(captured));
}

void Interpreter::run_call_block(const Node& node, Scope* scope) {
  const Value callee = eval(*node.expr->children[0], scope);
  Args args = eval_args(node.expr->args, scope);
  args.named.emplace_back("caller", make_macro(node.macro, scope));
  write(to_str(meter_, call(callee, args)));
}

Value Interpreter::call(const Value& callee, const Args& args) {
  const Enter level(*this);
  if (callee.is_undefined()) fail(callee.hint());
  if (!callee.is_callable()) fail(format("'{}' object is not callable", callee.type_name()));
  const Callable& callable = callee.callable();
  switch (callable.kind) {
    case Callable::Kind::macro:
      return call_macro(callable, args);
    case Callable::Kind::function:
      return call_function(*this, callable.name, args);
    case Callable::Kind::method:
      break;
  }
  if (callable.self.is_loop()) return call_loop(callable.self.loop(), callable.name, args);
  return call_method(*this, callable.self, callable.name, args);
}

// --- Look-ups ---

namespace {
Value bound(Callable::Kind kind, std::string_view name, Value self) {
  auto callable = std::make_shared<Callable>();
  callable->kind = kind;
  callable->name = name;
  callable->self = std::move(self);
  if (Value(std::shared_ptr<const Callable>(callable)).depth() > kMaxValueDepth)
    fail("values are nested too deep");
  return Value(std::shared_ptr<const Callable>(std::move(callable)));
}
Value missing(const Value& object, std::string_view name) {
  const char* what = object.is_none() ? "None" : object.type_name();
  return Value::undefined(format("'{}' has no attribute {}", what, quoted(name)));
}
}  // namespace

Value Interpreter::lookup(const std::string& name, Scope* scope) {
  for (Scope* at = scope; at != nullptr; at = at->parent) {
    charge(at->names.size() / 16);
    for (const auto& [known, value] : at->names) {
      if (known == name) return value;
    }
  }
  if (const Value* value = context_.find(name)) return *value;
  if (has_function(name)) return bound(Callable::Kind::function, name, Value());
  return Value::undefined(format("{} is undefined", quoted(name)));
}

Value Interpreter::attribute(const Value& object, const std::string& name) {
  if (object.is_undefined()) fail(object.hint());
  if (object.is_namespace()) {
    const Value* value = object.ns().attributes.find(name);
    return value != nullptr ? *value : missing(object, name);
  }
  if (object.is_loop()) {
    if (name == "cycle" || name == "changed") return bound(Callable::Kind::method, name, object);
    return loop_attribute(object.loop(), name);
  }
  if (has_method(object, name)) return bound(Callable::Kind::method, name, object);
  if (object.is_dict()) {
    if (const Value* value = object.dict().find(name)) return *value;
  }
  if (object.is_list() && object.list().group) {
    if (name == "grouper") return object.list().items[0];
    if (name == "list") return object.list().items[1];
  }
  if (object.is_callable() && object.callable().kind == Callable::Kind::macro) {
    const MacroNode& macro = *object.callable().macro;
    if (name == "name") return Value(macro.name);
    if (name == "caller") return macro.uses_caller;
    if (name == "catch_kwargs") return macro.uses_kwargs;
    if (name == "catch_varargs") return macro.uses_varargs;
  }
  return missing(object, name);
}

Value Interpreter::item(const Value& object, const Value& key) {
  if (object.is_undefined()) fail(object.hint());
  if (object.is_dict() && !key.is_list() && !key.is_dict()) {
    if (const Value* value = object.dict().find(meter_, key)) return *value;
  }
  const bool indexable = object.is_string() || (object.is_list() && object.list().is_sequence());
  if (indexable && key.is_integral()) {
    const int64_t size = length(meter_, object);
    int64_t index = key.as_int();
    if (index < 0) index += size;
    if (index < 0 || index >= size) return Value::undefined(format("index {} is out of range", key.as_int()));
    if (object.is_list()) return object.list().items[static_cast<size_t>(index)];
    charge_text(object.text().size());
    size_t at = 0;
    for (; index > 0; --index) at += decode_utf8(object.text(), at).length;
    return object.str().substr(at, at + decode_utf8(object.text(), at).length);
  }
  if (!key.is_string()) return missing(object, "(no such key)");
  // As Python's getattr() after a failed [...]: methods and attributes, but never a key again.
  return object.is_dict() && !has_method(object, key.text()) ? missing(object, key.text())
                                                             : attribute(object, key.text());
}

}  // namespace tessera::tokenizer::jinja
