// What every template may call: filters, tests, functions, and the methods of strings, lists and dicts.
// To add one: a function in its file and a line in that file's table.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/jinja/value.h"

namespace tessera::tokenizer::jinja {

class Interpreter;

// Evaluated arguments of a call.
struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // The arguments in the order of `names`, by position or by name; absent ones are nullopt. Fails for one too
  // many, one unknown, one given twice, or fewer than `required` of the first names. `callee` is for the
  // message.
  std::vector<std::optional<Value>> bind(std::string_view callee,
                                         std::initializer_list<std::string_view> names,
                                         size_t required = 0) const;
};

bool has_filter(std::string_view name);
bool has_test(std::string_view name);
bool has_function(std::string_view name);
bool has_method(const Value& self, std::string_view name);

// Each fails for an unknown name.
Value apply_filter(Interpreter& in, std::string_view name, const Value& input, const Args& args);
bool apply_test(Interpreter& in, std::string_view name, const Value& input, const Args& args);
Value call_function(Interpreter& in, std::string_view name, const Args& args);
Value call_method(Interpreter& in, const Value& self, std::string_view name, const Args& args);

// As json.dumps does it in Hugging Face's environment.
struct JsonOptions {
  bool ensure_ascii = false, sort_keys = false;
  std::optional<Str> indent;
  std::optional<std::pair<Str, Str>> separators;
};
Str to_json(Interpreter& in, const Value& value, const JsonOptions& options);

// Python's "text" % value.
Value percent_format(Interpreter& in, const Str& text, const Value& value);

// --- Shared by the files of this folder ---
// The value as an int (bool and int only); fails naming `what`.
int64_t need_int(const Value& value, std::string_view what);
const Str& need_str(const Value& value, std::string_view what);
Value make_list(std::vector<Value> items, ListKind kind = ListKind::list);
// Text methods that filters share.
Str replace_text(Interpreter& in, const Str& text, const Str& from, const Str& to, int64_t count);
// Strips the code points in `set`, or Python's white space if null.
Str strip_text(const Str& text, const Str* set, bool left, bool right);
std::vector<Str> split_lines(const Str& text, bool keep_ends);
Str join_text(Interpreter& in, const Str& separator, const std::vector<Value>& items);
Str escape_html(const Value& value);

}  // namespace tessera::tokenizer::jinja
