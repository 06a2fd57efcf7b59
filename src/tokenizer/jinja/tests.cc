// Tests: `value is NAME`.
#include <algorithm>
#include <cmath>

#include "core/format.h"
#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/vocab.h"

namespace tessera::tokenizer::jinja {
namespace {

const Value& one(const Args& args, std::string_view test) {
  if (args.positional.size() != 1 || !args.named.empty())
    fail(format("the test '{}' needs one argument", test));
  return args.positional[0];
}

bool ordering(Interpreter& in, const Value& a, const Value& b, const char* op) {
  const auto nan = [](const Value& v) { return v.is_float() && std::isnan(v.as_float()); };
  const int order = compare(in.meter(), a, b, op);
  if (nan(a) || nan(b)) return false;
  const std::string_view name = op;
  return name == "<" ? order < 0 : name == "<=" ? order <= 0 : name == ">" ? order > 0 : order >= 0;
}

bool is_divisible(Interpreter& in, const Value& value, const Value& by) {
  return equal(in.meter(), in.binary("%", value, by), Value(0));
}

// Python's islower/isupper: at least one cased character, all of the wanted case.
bool has_case(Interpreter& in, const Value& value, bool upper) {
  const std::string text = to_str(in.meter(), value).text;
  const std::string same = upper ? to_upper(text) : to_lower(text),
                    other = upper ? to_lower(text) : to_upper(text);
  return text == same && text != other;
}

bool is_iterable(const Value& v) {
  return v.is_string() || v.is_list() || v.is_dict() || v.is_undefined() || v.is_loop();
}

using Test = bool (*)(Interpreter&, const Value&, const Args&);
struct Entry {
  std::string_view name;
  Test run;
  bool plain;  // takes no argument
};
#define TESSERA_PLAIN(body) [](Interpreter&, const Value& v, const Args&) -> bool { return body; }
#define TESSERA_ORDER(op) \
  [](Interpreter& in, const Value& v, const Args& a) -> bool { return ordering(in, v, one(a, op), op); }
constexpr Test kEqual = [](Interpreter& in, const Value& v, const Args& a) {
  return equal(in.meter(), v, one(a, "=="));
};
constexpr Test kUnequal = [](Interpreter& in, const Value& v, const Args& a) {
  return !equal(in.meter(), v, one(a, "!="));
};
constexpr Test kLess = TESSERA_ORDER("<"), kAtMost = TESSERA_ORDER("<="), kMore = TESSERA_ORDER(">"),
               kAtLeast = TESSERA_ORDER(">=");

constexpr Entry kTests[] = {
    {"defined", TESSERA_PLAIN(!v.is_undefined()), true},
    {"undefined", TESSERA_PLAIN(v.is_undefined()), true},
    {"none", TESSERA_PLAIN(v.is_none()), true},
    {"boolean", TESSERA_PLAIN(v.is_bool()), true},
    {"true", TESSERA_PLAIN(v.is_bool() && v.as_bool()), true},
    {"false", TESSERA_PLAIN(v.is_bool() && !v.as_bool()), true},
    {"integer", TESSERA_PLAIN(v.is_int()), true},
    {"float", TESSERA_PLAIN(v.is_float()), true},
    {"number", TESSERA_PLAIN(v.is_number()), true},
    {"string", TESSERA_PLAIN(v.is_string()), true},
    {"mapping", TESSERA_PLAIN(v.is_dict()), true},
    {"sequence",
     TESSERA_PLAIN(v.is_string() || v.is_dict() || (v.is_list() && v.list().is_sequence()) ||
                   v.is_undefined()),
     true},
    {"iterable", TESSERA_PLAIN(is_iterable(v)), true},
    {"callable", TESSERA_PLAIN(v.is_callable()), true},
    {"escaped", TESSERA_PLAIN(v.is_string() && v.str().markup), true},
    {"lower", [](Interpreter& in, const Value& v, const Args&) { return has_case(in, v, false); }, true},
    {"upper", [](Interpreter& in, const Value& v, const Args&) { return has_case(in, v, true); }, true},
    {"odd",
     [](Interpreter& in, const Value& v, const Args&) {
       return equal(in.meter(), in.binary("%", v, Value(2)), Value(1));
     },
     true},
    {"even", [](Interpreter& in, const Value& v, const Args&) { return is_divisible(in, v, Value(2)); },
     true},
    {"divisibleby",
     [](Interpreter& in, const Value& v, const Args& a) {
       return is_divisible(in, v, one(a, "divisibleby"));
     },
     false},
    {"in", [](Interpreter& in, const Value& v, const Args& a) { return in.contains(one(a, "in"), v); },
     false},
    {"sameas", [](Interpreter&, const Value& v, const Args& a) { return v.same_object(one(a, "sameas")); },
     false},
    {"filter",
     [](Interpreter&, const Value& v, const Args&) { return v.is_string() && has_filter(v.text()); }, true},
    {"test", [](Interpreter&, const Value& v, const Args&) { return v.is_string() && has_test(v.text()); },
     true},
    {"eq", kEqual, false},
    {"equalto", kEqual, false},
    {"==", kEqual, false},
    {"ne", kUnequal, false},
    {"!=", kUnequal, false},
    {"lt", kLess, false},
    {"lessthan", kLess, false},
    {"<", kLess, false},
    {"le", kAtMost, false},
    {"<=", kAtMost, false},
    {"gt", kMore, false},
    {"greaterthan", kMore, false},
    {">", kMore, false},
    {"ge", kAtLeast, false},
    {">=", kAtLeast, false},
};
#undef TESSERA_PLAIN
#undef TESSERA_ORDER

const Entry* find(std::string_view name) {
  const auto* at =
      std::find_if(std::begin(kTests), std::end(kTests), [&](const Entry& e) { return e.name == name; });
  return at == std::end(kTests) ? nullptr : at;
}

}  // namespace

bool has_test(std::string_view name) {
  return find(name) != nullptr;
}

bool apply_test(Interpreter& in, std::string_view name, const Value& input, const Args& args) {
  const Entry* test = find(name);
  if (test == nullptr) fail(format("no test named {}", quoted(name)));
  if (test->plain && !(args.positional.empty() && args.named.empty())) {
    fail(format("the test '{}' takes no arguments", name));
  }
  return test->run(in, input, args);
}

}  // namespace tessera::tokenizer::jinja
