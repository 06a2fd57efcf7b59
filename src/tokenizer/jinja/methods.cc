// Methods of strings, lists and dicts. Those that would change a list or a dict do not exist, as in Jinja's
// immutable sandbox.
#include <algorithm>

#include "core/format.h"
#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/vocab.h"

namespace tessera::tokenizer::jinja {
namespace {

using Given = std::vector<std::optional<Value>>;

// --- Strings ---

Value change(Interpreter& in, const Str& text, std::string (*how)(std::string_view)) {
  in.charge(text.text.size() / 4);  // mapping a character costs much more than copying it
  return in.text(text.derived(how(text.text)));
}

Value strip(Interpreter& in, const Str& text, const Args& args, bool left, bool right) {
  const Given given = args.bind("strip", {"chars"});
  in.charge_text(text.text.size());
  if (!given[0] || given[0]->is_none()) return in.text(strip_text(text, nullptr, left, right));
  const Str& set = need_str(*given[0], "strip's characters");
  if (set.text.size() > 1024) fail("strip's characters are over the limit of 1024 bytes");
  in.charge_text(text.text.size() * (set.text.size() + 1));
  return in.text(strip_text(text, &set, left, right));
}

std::vector<Value> split_at_space(const Str& text, int64_t limit, bool from_right) {
  const std::string& s = text.text;
  std::vector<std::pair<size_t, size_t>> words;
  size_t begin = std::string::npos;
  for (size_t at = 0; at < s.size();) {
    const Utf8Char c = decode_utf8(s, at);
    const bool space = is_python_space(c.code);
    if (!space && begin == std::string::npos) begin = at;
    if (space && begin != std::string::npos) {
      words.emplace_back(begin, at);
      begin = std::string::npos;
    }
    at += c.length;
  }
  if (begin != std::string::npos) words.emplace_back(begin, s.size());
  std::vector<Value> out;
  const auto count = static_cast<int64_t>(words.size());
  const bool whole = limit < 0 || count <= limit + 1;
  const int64_t merged = whole ? 0 : count - limit;  // words that stay together
  for (int64_t i = 0; i < count; ++i) {
    const auto& [from, to] = words[static_cast<size_t>(i)];
    if (merged > 0 && from_right && i == 0) {
      // The rest on the left, its leading white space kept out as Python does only at the right.
      const size_t end = words[static_cast<size_t>(merged - 1)].second;
      out.emplace_back(text.substr(0, end));
      i = merged - 1;
    } else if (merged > 0 && !from_right && i == limit) {
      out.emplace_back(text.substr(from, s.size()));
      break;
    } else {
      out.emplace_back(text.substr(from, to));
    }
  }
  return out;
}

std::vector<Value> split_at(const Str& text, const Str& separator, int64_t limit, bool from_right) {
  if (separator.text.empty()) fail("split's separator is empty");
  std::vector<Value> out;
  if (from_right) {
    size_t end = text.text.size();
    while (limit != 0 && end >= separator.text.size()) {
      const size_t found = text.text.rfind(separator.text, end - separator.text.size());
      if (found == std::string::npos) break;
      out.emplace_back(text.substr(found + separator.text.size(), end));
      end = found;
      --limit;
    }
    out.emplace_back(text.substr(0, end));
    std::reverse(out.begin(), out.end());
    return out;
  }
  size_t begin = 0;
  while (limit != 0) {
    const size_t found = text.text.find(separator.text, begin);
    if (found == std::string::npos) break;
    out.emplace_back(text.substr(begin, found));
    begin = found + separator.text.size();
    --limit;
  }
  out.emplace_back(text.substr(begin, text.text.size()));
  return out;
}

Value split(Interpreter& in, const Str& text, const Args& args, bool from_right) {
  const Given given = args.bind("split", {"sep", "maxsplit"});
  const int64_t limit = given[1] ? need_int(*given[1], "split's maxsplit") : -1;
  in.charge_text(text.text.size());
  const bool at_space = !given[0] || given[0]->is_none();
  std::vector<Value> parts =
      at_space ? split_at_space(text, limit, from_right)
               : split_at(text, need_str(*given[0], "split's separator"), limit, from_right);
  in.charge(parts.size());
  return make_list(std::move(parts));
}

// The bytes of code points [start, end), by Python's rules for bounds.
std::pair<size_t, size_t> code_point_span(Interpreter& in, const Str& text, const std::optional<Value>& start,
                                          const std::optional<Value>& end) {
  const bool from_start = !start || start->is_none(), to_end = !end || end->is_none();
  if (from_start && to_end) return {0, text.text.size()};
  const int64_t size = length(in.meter(), Value(text));
  const auto bound = [&](const std::optional<Value>& value, int64_t otherwise) {
    if (!value || value->is_none()) return otherwise;
    int64_t at = need_int(*value, "a position");
    if (at < 0) at = at < -size ? 0 : at + size;
    return std::min(at, size + 1);  // past the end matches nothing
  };
  const int64_t from = bound(start, 0), to = std::min(bound(end, size), size);
  if (from > to) return {1, 0};
  size_t begin = 0;
  for (int64_t i = 0; i < from; ++i) begin += decode_utf8(text.text, begin).length;
  size_t stop = begin;
  for (int64_t i = from; i < to; ++i) stop += decode_utf8(text.text, stop).length;
  return {begin, stop};
}

Value affix(Interpreter& in, const Str& text, const Args& args, bool at_start) {
  const Given given = args.bind(at_start ? "startswith" : "endswith", {"prefix", "start", "end"}, 1);
  const auto [begin, end] = code_point_span(in, text, given[1], given[2]);
  if (begin > end) return false;
  const std::string_view part = std::string_view(text.text).substr(begin, end - begin);
  const auto matches = [&](const Value& value) {
    const std::string& wanted = need_str(value, "the affix").text;
    in.charge_text(wanted.size());
    return at_start ? part.starts_with(wanted) : part.ends_with(wanted);
  };
  const Value& wanted = *given[0];
  if (!wanted.is_list() || wanted.list().kind != ListKind::tuple) return matches(wanted);
  in.charge(wanted.list().items.size());
  return std::any_of(wanted.list().items.begin(), wanted.list().items.end(), matches);
}

// find, rfind, index, rindex, count.
Value search(Interpreter& in, const Str& text, std::string_view name, const Args& args) {
  const Given given = args.bind(name, {"sub", "start", "end"}, 1);
  const std::string& wanted = need_str(*given[0], "the text to find").text;
  const auto [begin, end] = code_point_span(in, text, given[1], given[2]);
  in.charge_text(text.text.size());
  const bool none = begin > end;
  const std::string_view part =
      none ? std::string_view() : std::string_view(text.text).substr(begin, end - begin);
  if (name == "count") {
    if (none) return 0;
    if (wanted.empty()) return static_cast<int64_t>(count_code_points(part)) + 1;
    int64_t count = 0;
    for (size_t at = part.find(wanted); at != std::string_view::npos;
         at = part.find(wanted, at + wanted.size()))
      ++count;
    return count;
  }
  const size_t found = none             ? std::string_view::npos
                       : name[0] == 'r' ? part.rfind(wanted)
                                        : part.find(wanted);
  if (found != std::string_view::npos) {
    return static_cast<int64_t>(count_code_points(std::string_view(text.text).substr(0, begin + found)));
  }
  if (name.ends_with("index")) fail("substring not found");
  return -1;
}

Value pad(Interpreter& in, const Str& text, std::string_view name, const Args& args) {
  const Given given = args.bind(name, {"width", "fillchar"}, 1);
  const int64_t width = need_int(*given[0], "the width");
  const Str fill = given[1] ? need_str(*given[1], "the fill character") : Str(" ");
  if (length(in.meter(), Value(fill)) != 1) fail("the fill character must be one character");
  const int64_t size = length(in.meter(), Value(text));
  if (width <= size) return in.text(text);
  if (width > in.limits().range)
    fail(format("a width of {} is over the limit of {}", width, in.limits().range));
  const int64_t missing = width - size;
  const int64_t left = name == "ljust" ? 0 : name == "rjust" ? missing : missing / 2 + (missing & width & 1);
  in.charge(static_cast<size_t>(missing));
  Str out;
  for (int64_t i = 0; i < left; ++i) out.append(fill);
  out.append(text);
  for (int64_t i = left; i < missing; ++i) out.append(fill);
  return in.text(std::move(out));
}

Value zero_fill(Interpreter& in, const Str& text, const Args& args) {
  const Given given = args.bind("zfill", {"width"}, 1);
  const int64_t width = need_int(*given[0], "zfill's width");
  const int64_t size = length(in.meter(), Value(text));
  if (width <= size) return in.text(text);
  if (width > in.limits().range)
    fail(format("a width of {} is over the limit of {}", width, in.limits().range));
  const size_t sign = text.text.starts_with('-') || text.text.starts_with('+') ? 1 : 0;
  Str out = text.substr(0, sign);
  out.append(std::string(static_cast<size_t>(width - size), '0'));
  out.append(text.substr(sign, text.text.size()));
  return in.text(std::move(out));
}

Value partition(Interpreter& in, const Str& text, const Args& args, bool from_right) {
  const Given given = args.bind("partition", {"sep"}, 1);
  const Str& separator = need_str(*given[0], "partition's separator");
  if (separator.text.empty()) fail("partition's separator is empty");
  in.charge_text(text.text.size());
  const size_t at = from_right ? text.text.rfind(separator.text) : text.text.find(separator.text);
  if (at == std::string::npos) {
    if (from_right) return make_list({Value(""), Value(""), Value(text)}, ListKind::tuple);
    return make_list({Value(text), Value(""), Value("")}, ListKind::tuple);
  }
  const size_t after = at + separator.text.size();
  return make_list({Value(text.substr(0, at)), Value(separator), Value(text.substr(after, text.text.size()))},
                   ListKind::tuple);
}

Value remove_affix(Interpreter& in, const Str& text, const Args& args, bool prefix) {
  const Given given = args.bind(prefix ? "removeprefix" : "removesuffix", {"affix"}, 1);
  const std::string& affix = need_str(*given[0], "the affix").text;
  const size_t size = text.text.size();
  if (prefix && text.text.starts_with(affix)) return in.text(text.substr(affix.size(), size));
  if (!prefix && text.text.ends_with(affix)) return in.text(text.substr(0, size - affix.size()));
  return in.text(text);
}

// True when there is a character and all pass.
Value all_characters(Interpreter& in, const Str& text, bool (*passes)(uint32_t)) {
  in.charge_text(text.text.size());
  for (size_t at = 0; at < text.text.size();) {
    const Utf8Char c = decode_utf8(text.text, at);
    if (!passes(c.code)) return false;
    at += c.length;
  }
  return !text.text.empty();
}

Value join(Interpreter& in, const Str& text, const Args& args) {
  const Given given = args.bind("join", {"iterable"}, 1);
  if (given[0]->is_undefined()) return Value("");
  const std::vector<Value> items = iterate(in.meter(), *given[0]);
  for (const Value& item : items) need_str(item, "an item to join");
  return in.text(join_text(in, text, items));
}

Value lines(Interpreter& in, const Str& text, const Args& args) {
  const Given given = args.bind("splitlines", {"keepends"});
  in.charge_text(text.text.size());
  std::vector<Value> out;
  for (Str& line : split_lines(text, given[0] && given[0]->truthy())) out.emplace_back(std::move(line));
  in.charge(out.size());
  return make_list(std::move(out));
}

Value replace(Interpreter& in, const Str& text, const Args& args) {
  const Given given = args.bind("replace", {"old", "new", "count"}, 2);
  const int64_t count = given[2] ? need_int(*given[2], "replace's count") : -1;
  return in.text(replace_text(in, text, need_str(*given[0], "replace's old"),
                              need_str(*given[1], "replace's new"), count));
}

// str.format with plain fields: {}, {0}, {name}, {{ and }}.
Value brace_format(Interpreter& in, const Str& text, const Args& args) {
  Str out;
  size_t next = 0;
  const std::string& s = text.text;
  for (size_t at = 0; at < s.size();) {
    const size_t stop = std::min(s.find_first_of("{}", at), s.size());
    out.append(text.substr(at, stop));
    if (stop == s.size()) break;
    if (stop + 1 < s.size() && s[stop + 1] == s[stop]) {
      out.append(text.substr(stop, stop + 1));
      at = stop + 2;
      continue;
    }
    const size_t end = s.find('}', stop);
    if (s[stop] == '}' || end == std::string::npos) fail("single brace in a format string");
    const std::string field = s.substr(stop + 1, end - stop - 1);
    if (field.find_first_of("!:.[{") != std::string::npos)
      fail("format strings support plain fields only: {}, {0}, {name}");
    const bool number =
        !field.empty() && field.size() < 6 && field.find_first_not_of("0123456789") == std::string::npos;
    const Value* value = nullptr;
    if (field.empty() || number) {
      const size_t index = field.empty() ? next++ : static_cast<size_t>(std::stoi(field));
      if (index < args.positional.size()) value = &args.positional[index];
    } else {
      for (const auto& [name, named] : args.named) {
        if (name == field) value = &named;
      }
    }
    if (value == nullptr) fail(format("a format string has no argument for field {}", quoted(field)));
    out.append(to_str(in.meter(), *value));
    if (out.text.size() > in.limits().output_bytes) fail("a formatted text is over the limit of bytes");
    at = end + 1;
  }
  return in.text(std::move(out));
}

using StringMethod = Value (*)(Interpreter&, const Str&, const Args&);
struct StringEntry {
  std::string_view name;
  StringMethod run;
};
#define TESSERA_CHANGE(how) \
  [](Interpreter& in, const Str& s, const Args& a) { return a.bind("the method", {}), change(in, s, how); }
#define TESSERA_ALL(condition)                                                  \
  [](Interpreter& in, const Str& s, const Args& a) {                            \
    a.bind("the method", {});                                                   \
    return all_characters(in, s, [](uint32_t c) -> bool { return condition; }); \
  }
#define TESSERA_NAMED(function, name) \
  [](Interpreter& in, const Str& s, const Args& a) { return function(in, s, name, a); }
#define TESSERA_WITH(function, ...) \
  [](Interpreter& in, const Str& s, const Args& a) { return function(in, s, a, __VA_ARGS__); }
constexpr StringEntry kStringMethods[] = {
    {"capitalize", TESSERA_CHANGE(capitalize)},
    {"center", TESSERA_NAMED(pad, "center")},
    {"count", TESSERA_NAMED(search, "count")},
    {"endswith", TESSERA_WITH(affix, false)},
    {"find", TESSERA_NAMED(search, "find")},
    {"format", brace_format},
    {"index", TESSERA_NAMED(search, "index")},
    {"isalnum", TESSERA_ALL(is_letter(c) || is_number(c))},
    {"isalpha", TESSERA_ALL(is_letter(c))},
    {"isdigit", TESSERA_ALL(c >= '0' && c <= '9')},
    {"isspace", TESSERA_ALL(is_python_space(c))},
    {"join", join},
    {"ljust", TESSERA_NAMED(pad, "ljust")},
    {"lower", TESSERA_CHANGE(to_lower)},
    {"lstrip", TESSERA_WITH(strip, true, false)},
    {"partition", TESSERA_WITH(partition, false)},
    {"removeprefix", TESSERA_WITH(remove_affix, true)},
    {"removesuffix", TESSERA_WITH(remove_affix, false)},
    {"replace", replace},
    {"rfind", TESSERA_NAMED(search, "rfind")},
    {"rindex", TESSERA_NAMED(search, "rindex")},
    {"rjust", TESSERA_NAMED(pad, "rjust")},
    {"rpartition", TESSERA_WITH(partition, true)},
    {"rsplit", TESSERA_WITH(split, true)},
    {"rstrip", TESSERA_WITH(strip, false, true)},
    {"split", TESSERA_WITH(split, false)},
    {"splitlines", lines},
    {"startswith", TESSERA_WITH(affix, true)},
    {"strip", TESSERA_WITH(strip, true, true)},
    {"title", TESSERA_CHANGE(title_case)},
    {"upper", TESSERA_CHANGE(to_upper)},
    {"zfill", zero_fill},
};
#undef TESSERA_CHANGE
#undef TESSERA_ALL
#undef TESSERA_NAMED
#undef TESSERA_WITH

const StringEntry* find_string_method(std::string_view name) {
  const auto* at = std::lower_bound(std::begin(kStringMethods), std::end(kStringMethods), name,
                                    [](const StringEntry& e, std::string_view n) { return e.name < n; });
  return at == std::end(kStringMethods) || at->name != name ? nullptr : at;
}

// --- Dicts and lists ---

Value dict_method(Interpreter& in, const Value& self, std::string_view name, const Args& args) {
  const Dict& dict = self.dict();
  if (name == "get") {
    const Given given = args.bind("get", {"key", "default"}, 1);
    const Value* value = dict.find(in.meter(), *given[0]);
    return value != nullptr ? *value : given[1] ? *given[1] : Value();
  }
  args.bind(name, {});
  in.charge(dict.entries.size());
  if (name == "copy") return self;
  std::vector<Value> out;
  for (const auto& [key, value] : dict.entries) {
    out.push_back(name == "keys" ? key : name == "values" ? value : make_list({key, value}, ListKind::tuple));
  }
  return make_list(std::move(out), name == "keys"     ? ListKind::dict_keys
                                   : name == "values" ? ListKind::dict_values
                                                      : ListKind::dict_items);
}

Value list_method(Interpreter& in, const Value& self, std::string_view name, const Args& args) {
  const std::vector<Value>& items = self.list().items;
  if (name == "copy") {
    args.bind("copy", {});
    return self;
  }
  const Given given = args.bind(name, {"value"}, 1);
  const auto same = [&](const Value& item) { return equal(in.meter(), item, *given[0]); };
  if (name == "count") return static_cast<int64_t>(std::count_if(items.begin(), items.end(), same));
  const auto at = std::find_if(items.begin(), items.end(), same);
  if (at == items.end()) fail("the value is not in the list");
  return static_cast<int64_t>(at - items.begin());
}

}  // namespace

bool has_method(const Value& self, std::string_view name) {
  if (self.is_string()) return find_string_method(name) != nullptr;
  if (self.is_dict())
    return name == "get" || name == "items" || name == "keys" || name == "values" || name == "copy";
  if (self.is_list() && self.list().is_sequence()) {
    return name == "index" || name == "count" || (name == "copy" && self.list().kind == ListKind::list);
  }
  return false;
}

Value call_method(Interpreter& in, const Value& self, std::string_view name, const Args& args) {
  if (self.is_dict()) return dict_method(in, self, name, args);
  if (self.is_list()) return list_method(in, self, name, args);
  return find_string_method(name)->run(in, self.str(), args);
}

}  // namespace tessera::tokenizer::jinja
