// Interpreter: expressions and operators.
#include <algorithm>
#include <cmath>

#include "core/format.h"
#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/vocab.h"

namespace tessera::tokenizer::jinja {
namespace {

[[noreturn]] void overflow() {
  fail("integer overflow: integers have 64 bits");
}
[[noreturn]] void no_operands(std::string_view op, const Value& a, const Value& b) {
  for (const Value* v : {&a, &b}) {
    if (v->is_undefined()) fail(v->hint());
  }
  fail(format("unsupported operand types for {}: '{}' and '{}'", op, a.type_name(), b.type_name()));
}

int64_t floor_div(int64_t a, int64_t b) {
  if (a == INT64_MIN && b == -1) overflow();
  return a / b - ((a % b != 0 && (a % b < 0) != (b < 0)) ? 1 : 0);
}
int64_t floor_mod(int64_t a, int64_t b) {
  if (b == -1) return 0;
  const int64_t rest = a % b;
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}
double floor_mod(double a, double b) {
  double rest = std::fmod(a, b);
  if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
  return rest == 0 ? std::copysign(0.0, b) : rest;
}
// Python's float //: from the remainder, so that it agrees with %.
double floor_div(double a, double b) {
  const double rest = std::fmod(a, b);
  double quotient = (a - rest) / b;
  if (rest != 0 && (rest < 0) != (b < 0)) quotient -= 1;
  if (quotient == 0) return std::copysign(0.0, a / b);
  const double whole = std::floor(quotient);
  return quotient - whole > 0.5 ? whole + 1 : whole;
}

Value power(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral() && b.as_int() >= 0) {
    int64_t result = 1, base = a.as_int();
    for (int64_t exponent = b.as_int(); exponent > 0; exponent >>= 1) {
      if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) overflow();
      if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) overflow();
    }
    return result;
  }
  const double x = a.as_float(), y = b.as_float();
  if (x == 0 && y < 0) fail("zero cannot be raised to a negative power");
  if (x < 0 && y != std::floor(y) && std::isfinite(y))
    fail("a negative number to a fractional power is complex");
  const double result = std::pow(x, y);
  if (std::isinf(result) && std::isfinite(x) && std::isfinite(y)) fail("float overflow");
  return result;
}

Value int_arithmetic(std::string_view op, int64_t a, int64_t b) {
  int64_t result = 0;
  if (op == "+") {
    if (__builtin_add_overflow(a, b, &result)) overflow();
  } else if (op == "-") {
    if (__builtin_sub_overflow(a, b, &result)) overflow();
  } else if (op == "*") {
    if (__builtin_mul_overflow(a, b, &result)) overflow();
  } else {
    if (b == 0) fail("division by zero");
    if (op == "/") return static_cast<double>(a) / static_cast<double>(b);
    return op == "//" ? floor_div(a, b) : floor_mod(a, b);
  }
  return result;
}

Value float_arithmetic(std::string_view op, double a, double b) {
  if (op == "+") return a + b;
  if (op == "-") return a - b;
  if (op == "*") return a * b;
  if (b == 0) fail("division by zero");
  if (op == "/") return a / b;
  return op == "//" ? floor_div(a, b) : floor_mod(a, b);
}

bool is_plain_sequence(const Value& v) {
  return v.is_list() && (v.list().kind == ListKind::list || v.list().kind == ListKind::tuple);
}

// Python's rule for slice bounds.
struct SliceRange {
  int64_t start, step, count;
};
SliceRange slice_range(const Value& start, const Value& stop, const Value& step_value, int64_t size) {
  const int64_t step = step_value.is_none() ? 1 : step_value.as_int();
  if (step == 0) fail("slice step cannot be zero");
  const int64_t low = step < 0 ? -1 : 0, high = step < 0 ? size - 1 : size;
  const auto clamp = [&](const Value& bound, int64_t otherwise) {
    if (bound.is_none()) return otherwise;
    int64_t at = bound.as_int();
    if (at < 0) at = at < -size ? low : at + size;
    return std::clamp(at, low, high);
  };
  const int64_t from = clamp(start, step < 0 ? high : low), to = clamp(stop, step < 0 ? low : high);
  const int64_t span = step < 0 ? from - to : to - from;
  const uint64_t stride = step < 0 ? 0 - static_cast<uint64_t>(step) : static_cast<uint64_t>(step);
  const int64_t count = span <= 0 ? 0 : static_cast<int64_t>((static_cast<uint64_t>(span) - 1) / stride) + 1;
  return {from, step, count};
}

}  // namespace

Value Interpreter::eval(const Expr& expr, Scope* scope) {
  charge(1);
  if (expr.kind == ExprKind::constant) return expr.constant;
  if (expr.kind == ExprKind::name) return lookup(expr.text, scope);
  if (++depth_ > kMaxEvalDepth) {
    fail(format("evaluation is nested deeper than the limit of {} levels", kMaxEvalDepth));
  }
  Value value = eval_dispatch(expr, scope);
  --depth_;
  return value;
}

Value Interpreter::eval_dispatch(const Expr& expr, Scope* scope) {
  const auto child = [&](size_t i) { return eval(*expr.children[i], scope); };
  switch (expr.kind) {
    case ExprKind::constant:
      return expr.constant;
    case ExprKind::name:
      return lookup(expr.text, scope);
    case ExprKind::tuple:
    case ExprKind::list:
      return eval_list(expr, scope);
    case ExprKind::dict:
      return eval_dict(expr, scope);
    case ExprKind::attribute:
      return attribute(child(0), expr.text);
    case ExprKind::subscript: {
      const Value object = child(0);
      return item(object, child(1));
    }
    case ExprKind::slice:
      return eval_slice(expr, scope);
    case ExprKind::call:
      return eval_call(expr, scope);
    case ExprKind::filter: {
      const Value input = child(0);
      return apply_filter(*this, expr.text, input, eval_args(expr.args, scope));
    }
    case ExprKind::test: {
      const Value input = child(0);
      return apply_test(*this, expr.text, input, eval_args(expr.args, scope));
    }
    case ExprKind::unary:
      return eval_unary(expr, scope);
    case ExprKind::binary: {
      const Value left = child(0);
      return binary(expr.text, left, child(1));
    }
    case ExprKind::logic: {
      Value left = child(0);
      return left.truthy() == (expr.text == "or") ? left : child(1);
    }
    case ExprKind::compare:
      return eval_compare(expr, scope);
    case ExprKind::concat:
      return eval_concat(expr, scope);
    case ExprKind::condition:
      if (child(1).truthy()) return child(0);
      return expr.children[2] ? child(2) : Value::undefined("the condition is false and there is no 'else'");
  }
  return Value();
}

Value Interpreter::eval_list(const Expr& expr, Scope* scope) {
  List list;
  list.kind = expr.kind == ExprKind::tuple ? ListKind::tuple : ListKind::list;
  list.items.reserve(expr.children.size());
  for (const ExprPtr& child : expr.children) list.items.push_back(eval(*child, scope));
  return Value(std::move(list));
}

Value Interpreter::eval_dict(const Expr& expr, Scope* scope) {
  Dict dict;
  for (size_t i = 0; i + 1 < expr.children.size(); i += 2) {
    const Value key = eval(*expr.children[i], scope);
    dict.set(meter_, key, eval(*expr.children[i + 1], scope));
  }
  return Value(std::move(dict));
}

Value Interpreter::eval_slice(const Expr& expr, Scope* scope) {
  const Value object = eval(*expr.children[0], scope);
  Value bounds[3];
  bool proper = true;
  for (size_t i = 0; i < 3; ++i) {
    if (expr.children[i + 1]) bounds[i] = eval(*expr.children[i + 1], scope);
    proper &= bounds[i].is_none() || bounds[i].is_integral();
  }
  if (object.is_undefined()) fail(object.hint());
  const bool sliceable = object.is_string() || (object.is_list() && object.list().is_sequence());
  if (!sliceable || !proper) return Value::undefined(format("a {} cannot be sliced so", object.type_name()));
  const int64_t size = length(meter_, object);
  const SliceRange range = slice_range(bounds[0], bounds[1], bounds[2], size);
  if (object.is_list()) {
    charge(static_cast<size_t>(range.count));
    std::vector<Value> items;
    items.reserve(static_cast<size_t>(range.count));
    for (int64_t i = 0; i < range.count; ++i) {
      items.push_back(object.list().items[static_cast<size_t>(range.start + i * range.step)]);
    }
    return make_list(std::move(items),
                     object.list().kind == ListKind::tuple ? ListKind::tuple : ListKind::list);
  }
  const Str& text = object.str();
  charge_text(text.text.size());
  std::vector<size_t> starts;  // of each code point, and the end
  starts.reserve(static_cast<size_t>(size) + 1);
  for (size_t at = 0; at < text.text.size(); at += decode_utf8(text.text, at).length) starts.push_back(at);
  starts.push_back(text.text.size());
  if (range.count == 0) return Value("");
  if (range.step == 1) {
    const auto first = static_cast<size_t>(range.start);
    return this->text(text.substr(starts[first], starts[first + static_cast<size_t>(range.count)]));
  }
  Str out;
  charge(static_cast<size_t>(range.count));
  for (int64_t i = 0; i < range.count; ++i) {
    const auto at = static_cast<size_t>(range.start + i * range.step);
    out.append(text.substr(starts[at], starts[at + 1]));
  }
  return this->text(std::move(out));
}

Value Interpreter::eval_unary(const Expr& expr, Scope* scope) {
  const Value value = eval(*expr.children[0], scope);
  if (expr.text == "not") return !value.truthy();
  if (value.is_undefined()) fail(value.hint());
  if (!value.is_number()) fail(format("bad operand type for unary {}: '{}'", expr.text, value.type_name()));
  if (expr.text == "+") return value.is_float() ? value : Value(value.as_int());
  if (value.is_float()) return -value.as_float();
  if (value.as_int() == INT64_MIN) overflow();
  return -value.as_int();
}

Value Interpreter::eval_compare(const Expr& expr, Scope* scope) {
  Value left = eval(*expr.children[0], scope);
  for (size_t i = 0; i < expr.ops.size(); ++i) {
    Value right = eval(*expr.children[i + 1], scope);
    bool holds = false;
    const std::string& op = expr.ops[i];
    if (op == "==" || op == "!=") {
      holds = equal(meter_, left, right) == (op == "==");
    } else if (op == "in" || op == "not in") {
      holds = contains(right, left) == (op == "in");
    } else {
      const bool unordered = (left.is_float() && std::isnan(left.as_float())) ||
                             (right.is_float() && std::isnan(right.as_float()));
      const int order = compare(meter_, left, right, op.c_str());
      holds = !unordered && (op == "<"    ? order < 0
                             : op == "<=" ? order <= 0
                             : op == ">"  ? order > 0
                                          : order >= 0);
    }
    if (!holds) return false;
    left = std::move(right);
  }
  return true;
}

bool Interpreter::contains(const Value& container, const Value& item) {
  if (container.is_string()) {
    if (!item.is_string()) {
      if (item.is_undefined()) fail(item.hint());
      fail(format("'in <string>' requires a string on the left, not '{}'", item.type_name()));
    }
    charge_text(container.text().size());
    return container.text().find(item.text()) != std::string::npos;
  }
  if (container.is_dict()) return container.dict().find(meter_, item) != nullptr;
  const std::vector<Value> items = iterate(meter_, container);
  return std::any_of(items.begin(), items.end(),
                     [&](const Value& each) { return equal(meter_, each, item); });
}

Value Interpreter::eval_concat(const Expr& expr, Scope* scope) {
  Str out;
  for (const ExprPtr& child : expr.children) {
    const Value value = eval(*child, scope);
    out.append(to_str(meter_, value));
    if (out.text.size() > limits_.output_bytes) break;  // text() refuses it
  }
  return text(std::move(out));
}

Args Interpreter::eval_args(const CallArgs& args, Scope* scope) {
  Args out;
  for (const ExprPtr& arg : args.positional) out.positional.push_back(eval(*arg, scope));
  if (args.star) {
    for (Value& value : iterate(meter_, eval(*args.star, scope))) out.positional.push_back(std::move(value));
  }
  for (const auto& [name, arg] : args.named) {
    for (const auto& [known, value] : out.named) {
      if (known == name) fail(format("argument {} is given twice", quoted(name)));
    }
    out.named.emplace_back(name, eval(*arg, scope));
  }
  if (args.star_star) {
    const Value dict = eval(*args.star_star, scope);
    if (!dict.is_dict()) fail("the argument after ** must be a mapping");
    charge(dict.dict().entries.size());
    if (dict.dict().entries.size() > 255) fail("more than 255 arguments after **");
    for (const auto& [key, value] : dict.dict().entries) {
      if (!key.is_string()) fail("keywords must be strings");
      for (const auto& [name, arg] : args.named) {
        if (name == key.text()) fail(format("argument {} is given twice", quoted(name)));
      }
      out.named.emplace_back(key.text(), value);
    }
  }
  return out;
}

Value Interpreter::eval_call(const Expr& expr, Scope* scope) {
  const Value callee = eval(*expr.children[0], scope);
  return call(callee, eval_args(expr.args, scope));
}

Value Interpreter::binary(std::string_view op, const Value& left, const Value& right) {
  if (left.is_number() && right.is_number()) return arithmetic(op, left, right);
  if (op == "+") return add(left, right);
  if (op == "%" && left.is_string()) return percent_format(*this, left.str(), right);
  if (op == "*") {
    const bool left_sequence = left.is_string() || is_plain_sequence(left);
    if (left_sequence && right.is_integral()) return repeat(left, right.as_int());
    const bool right_sequence = right.is_string() || is_plain_sequence(right);
    if (right_sequence && left.is_integral()) return repeat(right, left.as_int());
  }
  no_operands(op, left, right);
}

Value Interpreter::arithmetic(std::string_view op, const Value& left, const Value& right) {
  if (op == "**") return power(left, right);
  if (left.is_integral() && right.is_integral()) return int_arithmetic(op, left.as_int(), right.as_int());
  return float_arithmetic(op, left.as_float(), right.as_float());
}

Value Interpreter::add(const Value& left, const Value& right) {
  if (left.is_string() && right.is_string()) {
    const bool markup = left.str().markup || right.str().markup;
    Str sum = markup && !left.str().markup ? escape_html(left) : left.str();
    charge_text(sum.text.size());
    sum.append(markup && !right.str().markup ? escape_html(right) : right.str());
    sum.markup = markup;
    return text(std::move(sum));
  }
  if (is_plain_sequence(left) && is_plain_sequence(right) && left.list().kind == right.list().kind) {
    charge(left.list().items.size() + right.list().items.size());
    std::vector<Value> items = left.list().items;
    items.insert(items.end(), right.list().items.begin(), right.list().items.end());
    return make_list(std::move(items), left.list().kind);
  }
  no_operands("+", left, right);
}

Value Interpreter::repeat(const Value& sequence, int64_t count) {
  count = std::max<int64_t>(count, 0);
  const size_t size = sequence.is_string() ? sequence.text().size() : sequence.list().items.size();
  size_t total = 0;
  if (__builtin_mul_overflow(size, static_cast<size_t>(count), &total)) total = SIZE_MAX;
  if (size == 0) count = 0;
  if (sequence.is_string()) {
    if (total > limits_.output_bytes) {
      fail(
          format("a text of {} x {} bytes is over the limit of {} bytes", count, size, limits_.output_bytes));
    }
    charge(static_cast<size_t>(count));
    Str out;
    for (int64_t i = 0; i < count; ++i) out.append(sequence.str());
    return text(std::move(out));
  }
  charge(total);
  std::vector<Value> items;
  items.reserve(total);
  for (int64_t i = 0; i < count; ++i) {
    items.insert(items.end(), sequence.list().items.begin(), sequence.list().items.end());
  }
  return make_list(std::move(items), sequence.list().kind);
}

}  // namespace tessera::tokenizer::jinja
