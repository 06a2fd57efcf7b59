// Filters: `value | NAME(...)`.
#include <algorithm>

#include "core/format.h"
#include "tokenizer/jinja/filters.h"
#include "tokenizer/vocab.h"

namespace tessera::tokenizer::jinja {
namespace {

using namespace filters;

Value text_filter(Interpreter& in, const Value& v, std::string (*change)(std::string_view)) {
  const Str text = to_str(in.meter(), v);
  in.charge(text.text.size() / 4);  // mapping a character costs much more than copying it
  return in.text(text.derived(change(text.text)));
}

// Jinja's own: a word begins at the start and after [-\s({\[<]+.
std::string title_words(std::string_view text) {
  const auto separates = [](uint32_t c) {
    return is_python_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
  };
  std::string out;
  size_t begin = 0;
  while (begin < text.size()) {
    size_t end = begin;
    const bool separator = separates(decode_utf8(text, begin).code);
    while (end < text.size()) {
      const Utf8Char c = decode_utf8(text, end);
      if (separates(c.code) != separator) break;
      end += c.length;
    }
    const std::string_view word = text.substr(begin, end - begin);
    const size_t first = decode_utf8(word, 0).length;
    out += to_upper(word.substr(0, first));
    out += to_lower(word.substr(first));
    begin = end;
  }
  return out;
}

Value indent(Interpreter& in, const Value& v, const Args& args) {
  const Given given = args.bind("indent", {"width", "first", "blank"});
  Str margin(std::string(4, ' '));
  if (given[0] && given[0]->is_string()) {
    margin = given[0]->str();
  } else if (given[0]) {
    const int64_t width = need_int(*given[0], "indent's width");
    if (width > 100000) fail(format("indent's width of {} is over the limit of 100000", width));
    margin = Str(std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' '));
  }
  Str text = need_str(v, "the text to indent");
  in.charge_text(text.text.size());
  text.append("\n");
  const std::vector<Str> lines = split_lines(text, false);
  Str out;
  if (truthy(given[1])) out.append(margin);
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) {
      out.append("\n");
      if (truthy(given[2]) || !lines[i].text.empty()) out.append(margin);
    }
    in.charge_text(margin.text.size() + lines[i].text.size());
    out.append(lines[i]);
    if (out.text.size() > in.limits().output_bytes) fail("an indented text is over the limit of bytes");
  }
  return in.text(std::move(out));
}

Value truncate(Interpreter& in, const Value& v, const Args& args) {
  const Given given = args.bind("truncate", {"length", "killwords", "end", "leeway"});
  const int64_t limit = given[0] ? need_int(*given[0], "truncate's length") : 255;
  const Str end = given[2] ? need_str(*given[2], "truncate's end") : Str("...");
  const int64_t leeway = given[3] && !given[3]->is_none() ? need_int(*given[3], "truncate's leeway") : 5;
  const Str& text = need_str(v, "the text to truncate");
  const int64_t end_size = length(in.meter(), Value(end)), size = length(in.meter(), v);
  if (limit < end_size || leeway < 0) fail("truncate needs length >= the end's and leeway >= 0");
  if (size <= limit || size - limit <= leeway) return v;
  size_t cut = 0;
  for (int64_t i = 0; i < limit - end_size; ++i) cut += decode_utf8(text.text, cut).length;
  Str out = text.substr(0, cut);
  const size_t space = truthy(given[1]) ? std::string::npos : out.text.rfind(' ');
  if (space != std::string::npos) out = out.substr(0, space);
  out.append(end);
  return in.text(std::move(out));
}

Value center(Interpreter& in, const Value& v, const Args& args) {
  const Given given = args.bind("center", {"width"});
  Args width;
  width.positional.push_back(given[0] ? *given[0] : Value(80));
  return call_method(in, Value(to_str(in.meter(), v)), "center", width);
}

Value tojson(Interpreter& in, const Value& v, const Args& args) {
  const Given given = args.bind("tojson", {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonOptions options;
  options.ensure_ascii = truthy(given[0]);
  options.sort_keys = truthy(given[3]);
  if (given[1] && !given[1]->is_none()) {
    if (given[1]->is_string()) {
      options.indent = given[1]->str();
    } else {
      const int64_t width = need_int(*given[1], "tojson's indent");
      if (width > 1000) fail(format("tojson's indent of {} is over the limit of 1000", width));
      options.indent = Str(std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' '));
    }
  }
  if (given[2] && !given[2]->is_none()) {
    const std::vector<Value> pair = iterate(in.meter(), *given[2]);
    if (pair.size() != 2) fail("tojson's separators must be a pair");
    options.separators = std::pair(need_str(pair[0], "a separator"), need_str(pair[1], "a separator"));
  }
  return in.text(to_json(in, v, options));
}

Value format_text(Interpreter& in, const Value& v, const Args& args) {
  if (!args.named.empty()) {
    if (!args.positional.empty()) fail("format takes positional or keyword arguments, not both");
    Dict dict;
    for (const auto& [name, value] : args.named) dict.set(name, value);
    return percent_format(in, to_str(in.meter(), v), Value(std::move(dict)));
  }
  return percent_format(in, to_str(in.meter(), v), make_list(args.positional, ListKind::tuple));
}

Value replace(Interpreter& in, const Value& v, const Args& args) {
  const Given given = args.bind("replace", {"old", "new", "count"}, 2);
  const int64_t count = given[2] && !given[2]->is_none() ? need_int(*given[2], "replace's count") : -1;
  Meter& meter = in.meter();
  return in.text(
      replace_text(in, to_str(meter, v), to_str(meter, *given[0]), to_str(meter, *given[1]), count));
}

Value trim(Interpreter& in, const Value& v, const Args& args) {
  const Given given = args.bind("trim", {"chars"});
  const Str text = to_str(in.meter(), v);
  if (!given[0] || given[0]->is_none()) return in.text(strip_text(text, nullptr, true, true));
  const Str& set = need_str(*given[0], "trim's chars");
  if (set.text.size() > 1024) fail("trim's chars are over the limit of 1024 bytes");
  in.charge_text(text.text.size() * (set.text.size() + 1));
  return in.text(strip_text(text, &set, true, true));
}

Value default_value(Interpreter&, const Value& v, const Args& args) {
  const Given given = args.bind("default", {"default_value", "boolean"});
  if (v.is_undefined() || (truthy(given[1]) && !v.truthy())) return given[0] ? *given[0] : Value("");
  return v;
}

Value word_count(Interpreter& in, const Value& v, const Args& args) {
  args.bind("wordcount", {});
  const Str text = to_str(in.meter(), v);
  int64_t count = 0;
  bool inside = false;
  for (size_t at = 0; at < text.text.size();) {
    const Utf8Char c = decode_utf8(text.text, at);
    const bool word = c.code == '_' || is_letter(c.code) || is_number(c.code);
    count += word && !inside;
    inside = word;
    at += c.length;
  }
  return count;
}

Value escape(Interpreter& in, const Value& v, const Args& args) {
  args.bind("escape", {});
  if (v.is_string() && v.str().markup) return v;
  const Str text = to_str(in.meter(), v);
  in.charge_text(text.text.size());
  return in.text(escape_html(Value(text)));
}

Value safe(Interpreter& in, const Value& v, const Args& args) {
  args.bind("safe", {});
  Str text = to_str(in.meter(), v);
  text.markup = true;
  return in.text(std::move(text));
}

using Filter = Value (*)(Interpreter&, const Value&, const Args&);
struct Entry {
  std::string_view name;
  Filter run;
};
#define TESSERA_TEXT(change)                           \
  [](Interpreter& in, const Value& v, const Args& a) { \
    a.bind("the filter", {});                          \
    return text_filter(in, v, change);                 \
  }
constexpr Filter kLength = [](Interpreter& in, const Value& v, const Args& a) {
  a.bind("length", {});
  return Value(length(in.meter(), v));
};
constexpr Entry kFilters[] = {
    {"abs", absolute},
    {"attr", attr},
    {"batch", batch},
    {"capitalize", TESSERA_TEXT(capitalize)},
    {"center", center},
    {"count", kLength},
    {"d", default_value},
    {"default", default_value},
    {"dictsort", dict_sort},
    {"e", escape},
    {"escape", escape},
    {"first", first},
    {"float", to_float},
    {"format", format_text},
    {"groupby", group_by},
    {"indent", indent},
    {"int", to_int},
    {"items", items_of},
    {"join", join},
    {"last", last},
    {"length", kLength},
    {"list", [](Interpreter& in, const Value& v,
                const Args& a) { return a.bind("list", {}), make_list(iterate(in.meter(), v)); }},
    {"lower", TESSERA_TEXT(to_lower)},
    {"map", map_items},
    {"max", [](Interpreter& in, const Value& v, const Args& a) { return extreme(in, v, a, true); }},
    {"min", [](Interpreter& in, const Value& v, const Args& a) { return extreme(in, v, a, false); }},
    {"reject", [](Interpreter& in, const Value& v, const Args& a) { return select(in, v, a, false, false); }},
    {"rejectattr",
     [](Interpreter& in, const Value& v, const Args& a) { return select(in, v, a, true, false); }},
    {"replace", replace},
    {"reverse", reverse},
    {"round", round_number},
    {"safe", safe},
    {"select", [](Interpreter& in, const Value& v, const Args& a) { return select(in, v, a, false, true); }},
    {"selectattr",
     [](Interpreter& in, const Value& v, const Args& a) { return select(in, v, a, true, true); }},
    {"slice", slice},
    {"sort", sort_items},
    {"string", [](Interpreter& in, const Value& v,
                  const Args& a) { return a.bind("string", {}), in.text(to_str(in.meter(), v)); }},
    {"sum", sum},
    {"title", TESSERA_TEXT(title_words)},
    {"tojson", tojson},
    {"trim", trim},
    {"truncate", truncate},
    {"unique", unique},
    {"upper", TESSERA_TEXT(to_upper)},
    {"wordcount", word_count},
};
#undef TESSERA_TEXT

const Entry* find(std::string_view name) {
  const auto* at = std::lower_bound(std::begin(kFilters), std::end(kFilters), name,
                                    [](const Entry& e, std::string_view n) { return e.name < n; });
  return at == std::end(kFilters) || at->name != name ? nullptr : at;
}

}  // namespace

bool has_filter(std::string_view name) {
  return find(name) != nullptr;
}

Value apply_filter(Interpreter& in, std::string_view name, const Value& input, const Args& args) {
  in.charge(1);
  const Entry* filter = find(name);
  if (filter == nullptr) fail(format("no filter named {}", quoted(name)));
  return filter->run(in, input, args);
}

}  // namespace tessera::tokenizer::jinja
