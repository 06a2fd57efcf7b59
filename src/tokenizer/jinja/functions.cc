// Global functions: range, dict, namespace, raise_exception, strftime_now.
#include <algorithm>
#include <ctime>

#include "core/format.h"
#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/vocab.h"

namespace tessera::tokenizer::jinja {
namespace {

Value make_range(Interpreter& in, const Args& args) {
  const auto given = args.bind("range", {"start", "stop", "step"}, 1);
  if (!args.named.empty()) fail("range takes no keyword arguments");
  const int64_t start = given[1] ? need_int(*given[0], "range's start") : 0;
  const int64_t stop = need_int(given[1] ? *given[1] : *given[0], "range's stop");
  const int64_t step = given[2] ? need_int(*given[2], "range's step") : 1;
  if (step == 0) fail("range's step cannot be zero");
  const bool empty = step > 0 ? start >= stop : start <= stop;
  const uint64_t span = empty      ? 0
                        : step > 0 ? static_cast<uint64_t>(stop) - static_cast<uint64_t>(start)
                                   : static_cast<uint64_t>(start) - static_cast<uint64_t>(stop);
  const uint64_t stride = step > 0 ? static_cast<uint64_t>(step) : 0 - static_cast<uint64_t>(step);
  const uint64_t count = span == 0 ? 0 : (span - 1) / stride + 1;
  if (count > static_cast<uint64_t>(in.limits().range)) {
    fail(format("a range of {} items is over the limit of {}", count, in.limits().range));
  }
  in.charge(count);
  List list;
  list.kind = ListKind::range;
  list.range_text =
      step == 1 ? format("range({}, {})", start, stop) : format("range({}, {}, {})", start, stop, step);
  for (uint64_t i = 0; i < count; ++i) {
    list.items.emplace_back(
        static_cast<int64_t>(static_cast<uint64_t>(start) + i * static_cast<uint64_t>(step)));
  }
  return Value(std::move(list));
}

// Python's dict(mapping or pairs, **named).
Dict make_dict(Interpreter& in, const Args& args) {
  Dict dict;
  if (args.positional.size() > 1) fail("dict takes at most one positional argument");
  if (!args.positional.empty()) {
    const Value& from = args.positional[0];
    if (from.is_undefined()) fail(from.hint());
    if (from.is_dict()) {
      for (const auto& [key, value] : from.dict().entries) dict.set(in.meter(), key, value);
    } else {
      for (const Value& pair : iterate(in.meter(), from)) {
        const std::vector<Value> items = iterate(in.meter(), pair);
        if (items.size() != 2) fail("dict needs pairs");
        dict.set(in.meter(), items[0], items[1]);
      }
    }
  }
  for (const auto& [name, value] : args.named) dict.set(name, value);
  return dict;
}

Value make_namespace(Interpreter& in, const Args& args) {
  in.charge(10);
  Namespace* made = in.new_namespace();
  made->attributes = make_dict(in, args);
  for (const auto& [key, value] : made->attributes.entries) {
    if (key.is_string() && key.text().starts_with('_'))
      fail("an attribute of a namespace cannot start with an underscore");
  }
  return Value(made);
}

Value raise(Interpreter& in, const Args& args) {
  const auto given = args.bind("raise_exception", {"message"}, 1);
  fail(
      format("the template refuses the conversation: {}", to_str(in.meter(), *given[0]).text.substr(0, 400)));
}

Value strftime_now(Interpreter& in, const Args& args) {
  const auto given = args.bind("strftime_now", {"format"}, 1);
  const Str& pattern = need_str(*given[0], "strftime_now's format");
  if (pattern.text.size() > 256) fail("strftime_now's format is over the limit of 256 bytes");
  const auto seconds = static_cast<time_t>(in.now());
  std::tm utc{};
  if (gmtime_r(&seconds, &utc) == nullptr) fail("the time is out of range");
  char out[4096];
  // One byte in front tells an empty result from one that does not fit.
  const std::string marked = "." + pattern.text;
  const size_t size = std::strftime(out, sizeof out, marked.c_str(), &utc);
  if (size == 0) fail("strftime_now's text is too long");
  return Value(pattern.derived(std::string(out + 1, size - 1)));
}

using Function = Value (*)(Interpreter&, const Args&);
struct Entry {
  std::string_view name;
  Function run;
};
constexpr Entry kFunctions[] = {
    {"range", make_range},
    {"dict", [](Interpreter& in, const Args& args) { return Value(make_dict(in, args)); }},
    {"namespace", make_namespace},
    {"raise_exception", raise},
    {"strftime_now", strftime_now},
};
const Entry* find(std::string_view name) {
  const auto* end = std::end(kFunctions);
  const auto* at = std::find_if(std::begin(kFunctions), end, [&](const Entry& e) { return e.name == name; });
  return at == end ? nullptr : at;
}

}  // namespace

bool has_function(std::string_view name) {
  return find(name) != nullptr;
}

Value call_function(Interpreter& in, std::string_view name, const Args& args) {
  const Entry* function = find(name);
  if (function == nullptr) fail(format("no function named {}", quoted(name)));
  return function->run(in, args);
}

}  // namespace tessera::tokenizer::jinja
