// Filters: `value | NAME(...)`.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <set>

#include "core/format.h"
#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/vocab.h"

namespace tessera::tokenizer::jinja {
namespace {

using Given = std::vector<std::optional<Value>>;
bool truthy(const std::optional<Value>& value) {
  return value && value->truthy();
}

// --- Items by attribute ---

// Follows "a.b.0" as Jinja's attribute= arguments do.
class Getter {
 public:
  Getter(Interpreter& in, const std::optional<Value>& path, const std::optional<Value>& fallback = {})
      : in_(in), fallback_(fallback) {
    if (!path || path->is_none()) return;
    if (!path->is_string()) {
      parts_.push_back(*path);
      return;
    }
    const std::string& text = path->text();
    for (size_t begin = 0; begin <= text.size();) {
      const size_t end = std::min(text.find('.', begin), text.size());
      const std::string part = text.substr(begin, end - begin);
      int64_t index = 0;
      const auto done = std::from_chars(part.data(), part.data() + part.size(), index);
      const bool number =
          !part.empty() && part[0] != '-' && done.ec == std::errc() && done.ptr == part.data() + part.size();
      parts_.push_back(number ? Value(index) : Value(part));
      begin = end + 1;
    }
  }
  Value operator()(const Value& item) const {
    Value value = item;
    for (const Value& part : parts_) {
      in_.charge(1);
      value = in_.item(value, part);
      if (fallback_ && !fallback_->is_none() && value.is_undefined()) value = *fallback_;
    }
    return value;
  }

 private:
  Interpreter& in_;
  std::vector<Value> parts_;
  std::optional<Value> fallback_;
};

Value folded(Interpreter& in, const Value& value) {
  if (!value.is_string()) return value;
  in.charge_text(value.text().size());
  return Value(value.str().derived(to_lower(value.text())));
}

Value generator(std::vector<Value> items) {
  return make_list(std::move(items), ListKind::generator);
}

// --- Text ---

Value text_filter(Interpreter& in, const Value& v, std::string (*change)(std::string_view)) {
  const Str text = to_str(in.meter(), v);
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

// --- Numbers ---

std::string digits_of(const Value& v) {
  const Str stripped = strip_text(v.str(), nullptr, true, true);
  std::string out;
  for (size_t i = 0; i < stripped.text.size(); ++i) {
    const char c = stripped.text[i];
    const auto digit = [](char d) { return d >= '0' && d <= '9'; };
    const bool between = c == '_' && i > 0 && i + 1 < stripped.text.size() && digit(stripped.text[i - 1]) &&
                         digit(stripped.text[i + 1]);
    if (!between) out += c;
  }
  return out;
}

std::optional<double> parse_float(const Value& v) {
  if (v.is_number()) return v.as_float();
  if (!v.is_string()) return std::nullopt;
  std::string text = to_lower(digits_of(v));
  if (text.starts_with('+') && !text.starts_with("+-")) text.erase(0, 1);
  if (text == "infinity" || text == "inf") return INFINITY;
  if (text == "-infinity" || text == "-inf") return -INFINITY;
  if (text == "nan" || text == "-nan") return std::nan("");
  if (text.find_first_not_of("0123456789.e+-") != std::string::npos) return std::nullopt;
  double value = 0;
  const auto done = std::from_chars(text.data(), text.data() + text.size(), value);
  if (done.ptr != text.data() + text.size() || text.empty()) return std::nullopt;
  if (done.ec == std::errc::result_out_of_range) {
    const size_t e = text.find('e');
    const bool tiny = e != std::string::npos && e + 1 < text.size() && text[e + 1] == '-';
    return tiny ? 0.0 : text[0] == '-' ? -INFINITY : INFINITY;
  }
  return value;
}

Value truncated(double value) {
  if (!(value >= -9223372036854775808.0 && value < 9223372036854775808.0))
    fail("integer overflow: integers have 64 bits");
  return static_cast<int64_t>(value);
}

Value to_int(Interpreter&, const Value& v, const Args& args) {
  const Given given = args.bind("int", {"default", "base"});
  const Value fallback = given[0] ? *given[0] : Value(0);
  if (v.is_undefined()) fail(v.hint());
  if (v.is_integral()) return v.as_int();
  if (v.is_string()) {
    const int64_t base = given[1] ? need_int(*given[1], "int's base") : 10;
    std::string text = to_lower(digits_of(v));
    const bool negative = text.starts_with('-');
    if (negative || text.starts_with('+')) text.erase(0, 1);
    int64_t radix = base;
    const std::string_view prefix = std::string_view(text).substr(0, 2);
    const int64_t named = prefix == "0x" ? 16 : prefix == "0o" ? 8 : prefix == "0b" ? 2 : 0;
    if (named != 0 && (base == named || base == 0)) {
      radix = named;
      text.erase(0, 2);
    }
    if (radix == 0) radix = 10;
    int64_t value = 0;
    if (radix >= 2 && radix <= 36 && !text.empty() && text[0] != '-') {
      const std::string whole = negative ? "-" + text : text;
      const auto done =
          std::from_chars(whole.data(), whole.data() + whole.size(), value, static_cast<int>(radix));
      if (done.ptr == whole.data() + whole.size()) {
        if (done.ec == std::errc::result_out_of_range) fail("integer overflow: integers have 64 bits");
        if (done.ec == std::errc()) return value;
      }
    }
  }
  const std::optional<double> number = parse_float(v);
  return number && std::isfinite(*number) ? truncated(*number) : fallback;
}

Value to_float(Interpreter&, const Value& v, const Args& args) {
  const Given given = args.bind("float", {"default"});
  if (v.is_undefined()) fail(v.hint());
  const std::optional<double> number = parse_float(v);
  return number ? Value(*number) : given[0] ? *given[0] : Value(0.0);
}

// Half to even at the given decimal, as Python rounds: through the shortest decimal text of the exact value.
double round_half_even(double value, int64_t digits) {
  if (!std::isfinite(value) || digits > 323) return value;
  if (digits < -308) return std::copysign(0.0, value);
  if (digits >= 0) {
    const std::string text = format("{:.{}f}", value, digits);
    double rounded = 0;
    std::from_chars(text.data(), text.data() + text.size(), rounded);
    return rounded;
  }
  const double scale = std::pow(10.0, static_cast<double>(-digits));
  return std::nearbyint(value / scale) * scale;
}

Value round_number(Interpreter& in, const Value& v, const Args& args) {
  const Given given = args.bind("round", {"precision", "method"});
  const int64_t precision = given[0] ? need_int(*given[0], "round's precision") : 0;
  const std::string method = given[1] ? need_str(*given[1], "round's method").text : "common";
  if (method != "common" && method != "ceil" && method != "floor")
    fail("round's method must be common, ceil or floor");
  if (v.is_undefined()) fail(v.hint());
  if (!v.is_number()) fail(format("round needs a number, not '{}'", v.type_name()));
  if (method == "common") {
    if (v.is_float()) return round_half_even(v.as_float(), precision);
    if (precision >= 0) return v.as_int();
    return truncated(round_half_even(v.as_float(), precision));
  }
  const Value scale = in.binary("**", Value(10), Value(precision));
  const Value scaled = in.binary("*", v, scale);
  const double whole = method == "ceil" ? std::ceil(scaled.as_float()) : std::floor(scaled.as_float());
  return in.binary("/", truncated(whole), scale);
}

Value absolute(Interpreter&, const Value& v, const Args& args) {
  args.bind("abs", {});
  if (v.is_undefined()) fail(v.hint());
  if (!v.is_number()) fail(format("abs needs a number, not '{}'", v.type_name()));
  if (v.is_float()) return std::fabs(v.as_float());
  if (v.as_int() == INT64_MIN) fail("integer overflow: integers have 64 bits");
  return std::abs(v.as_int());
}

// --- Sequences ---

// A stable order; ties and errors as Python's sorted().
void sort_by(Interpreter& in, std::vector<std::pair<std::vector<Value>, Value>>& items, bool reverse) {
  const auto less = [&](const auto& a, const auto& b) {
    for (size_t i = 0; i < a.first.size(); ++i) {
      if (!equal(in.meter(), a.first[i], b.first[i]))
        return compare(in.meter(), a.first[i], b.first[i], "<") < 0;
    }
    return false;
  };
  // NaN has no order, and std::stable_sort needs one.
  for (const auto& [keys, item] : items) {
    for (const Value& key : keys) {
      if (key.is_float() && std::isnan(key.as_float())) fail("NaN cannot be sorted");
    }
  }
  if (reverse) std::reverse(items.begin(), items.end());
  std::stable_sort(items.begin(), items.end(), less);
  if (reverse) std::reverse(items.begin(), items.end());
}

Value sort_items(Interpreter& in, const Value& v, const Args& args) {
  const Given given = args.bind("sort", {"reverse", "case_sensitive", "attribute"});
  std::vector<Getter> getters;
  if (given[2] && given[2]->is_string()) {
    const std::string& path = given[2]->text();
    for (size_t begin = 0; begin <= path.size();) {
      const size_t end = std::min(path.find(',', begin), path.size());
      getters.emplace_back(in, Value(path.substr(begin, end - begin)));
      begin = end + 1;
    }
  } else {
    getters.emplace_back(in, given[2]);
  }
  if (getters.size() > 16) fail("sort takes at most 16 attributes");
  std::vector<std::pair<std::vector<Value>, Value>> keyed;
  for (const Value& item : iterate(in.meter(), v)) {
    std::vector<Value> keys;
    for (const Getter& getter : getters)
      keys.push_back(truthy(given[1]) ? getter(item) : folded(in, getter(item)));
    keyed.emplace_back(std::move(keys), item);
  }
  sort_by(in, keyed, truthy(given[0]));
  std::vector<Value> out;
  for (auto& [keys, item] : keyed) out.push_back(std::move(item));
  return make_list(std::move(out));
}

Value dict_sort(Interpreter& in, const Value& v, const Args& args) {
  const Given given = args.bind("dictsort", {"case_sensitive", "by", "reverse"});
  const std::string by = given[1] ? need_str(*given[1], "dictsort's by").text : "key";
  if (by != "key" && by != "value") fail("dictsort sorts by either 'key' or 'value'");
  if (v.is_undefined()) fail(v.hint());
  if (!v.is_dict()) fail(format("dictsort needs a mapping, not '{}'", v.type_name()));
  std::vector<std::pair<std::vector<Value>, Value>> keyed;
  in.charge(v.dict().entries.size());
  for (const auto& [key, value] : v.dict().entries) {
    const Value& chosen = by == "key" ? key : value;
    keyed.push_back(
        {{truthy(given[0]) ? chosen : folded(in, chosen)}, make_list({key, value}, ListKind::tuple)});
  }
  sort_by(in, keyed, truthy(given[2]));
  std::vector<Value> out;
  for (auto& [keys, item] : keyed) out.push_back(std::move(item));
  return make_list(std::move(out));
}

Value group_by(Interpreter& in, const Value& v, const Args& args) {
  const Given given = args.bind("groupby", {"attribute", "default", "case_sensitive"}, 1);
  const Getter getter(in, given[0], given[1]);
  std::vector<std::pair<std::vector<Value>, Value>> keyed;
  for (const Value& item : iterate(in.meter(), v)) {
    const Value key = getter(item);
    keyed.push_back({{truthy(given[2]) ? key : folded(in, key)}, item});
  }
  sort_by(in, keyed, false);
  std::vector<Value> groups;
  for (size_t begin = 0; begin < keyed.size();) {
    size_t end = begin;
    std::vector<Value> members;
    for (; end < keyed.size() && equal(in.meter(), keyed[end].first[0], keyed[begin].first[0]); ++end) {
      members.push_back(keyed[end].second);
    }
    const Value key = truthy(given[2]) ? keyed[begin].first[0] : getter(keyed[begin].second);
    List group;
    group.kind = ListKind::tuple;
    group.group = true;
    group.items = {key, make_list(std::move(members))};
    groups.emplace_back(std::move(group));
    begin = std::max(end, begin + 1);
  }
  return make_list(std::move(groups));
}

Value unique(Interpreter& in, const Value& v, const Args& args) {
  const Given given = args.bind("unique", {"case_sensitive", "attribute"});
  const Getter getter(in, given[1]);
  std::set<std::string> seen;
  std::vector<Value> out;
  for (const Value& item : iterate(in.meter(), v)) {
    const Value key = truthy(given[0]) ? getter(item) : folded(in, getter(item));
    if (seen.insert(hash_key(in.meter(), key)).second) out.push_back(item);
  }
  return generator(std::move(out));
}

Value extreme(Interpreter& in, const Value& v, const Args& args, bool largest) {
  const Given given = args.bind(largest ? "max" : "min", {"case_sensitive", "attribute"});
  const Getter getter(in, given[1]);
  std::optional<Value> best, best_key;
  for (const Value& item : iterate(in.meter(), v)) {
    const Value key = truthy(given[0]) ? getter(item) : folded(in, getter(item));
    if (best) {
      const int order = compare(in.meter(), key, *best_key, largest ? ">" : "<");
      if (largest ? order <= 0 : order >= 0) continue;
    }
    best = item;
    best_key = key;
  }
  return best ? *best : Value::undefined("there is no item: the sequence is empty");
}

Value sum(Interpreter& in, const Value& v, const Args& args) {
  const Given given = args.bind("sum", {"attribute", "start"});
  const Getter getter(in, given[0]);
  Value total = given[1] ? *given[1] : Value(0);
  if (total.is_string()) fail("sum cannot add strings; use join");
  for (const Value& item : iterate(in.meter(), v)) total = in.binary("+", total, getter(item));
  return total;
}

Value first(Interpreter& in, const Value& v, const Args& args) {
  args.bind("first", {});
  const std::vector<Value> items = iterate(in.meter(), v);
  return items.empty() ? Value::undefined("there is no first item: the sequence is empty") : items.front();
}

Value last(Interpreter& in, const Value& v, const Args& args) {
  args.bind("last", {});
  if (v.is_undefined()) return Value::undefined("there is no last item: the sequence is empty");
  if (v.is_list() && !v.list().has_length()) fail("a generator cannot be reversed");
  const std::vector<Value> items = iterate(in.meter(), v);
  return items.empty() ? Value::undefined("there is no last item: the sequence is empty") : items.back();
}

Value reverse(Interpreter& in, const Value& v, const Args& args) {
  args.bind("reverse", {});
  std::vector<Value> items = iterate(in.meter(), v);
  std::reverse(items.begin(), items.end());
  if (v.is_string()) return in.text(join_text(in, Str(), items));
  return generator(std::move(items));
}

Value join(Interpreter& in, const Value& v, const Args& args) {
  const Given given = args.bind("join", {"d", "attribute"});
  const Getter getter(in, given[1]);
  std::vector<Value> items = iterate(in.meter(), v);
  if (given[1] && !given[1]->is_none())
    std::transform(items.begin(), items.end(), items.begin(), std::cref(getter));
  return in.text(join_text(in, given[0] ? to_str(in.meter(), *given[0]) : Str(), items));
}

Value map_items(Interpreter& in, const Value& v, const Args& args) {
  std::vector<Value> out;
  if (!v.truthy()) return generator({});
  if (args.positional.empty() && !args.named.empty()) {
    const Given given = args.bind("map", {"attribute", "default"}, 1);
    const Getter getter(in, given[0], given[1]);
    for (const Value& item : iterate(in.meter(), v)) out.push_back(getter(item));
    return generator(std::move(out));
  }
  if (args.positional.empty()) fail("map needs the name of a filter, or attribute=");
  const std::string name = need_str(args.positional[0], "map's filter").text;
  Args rest;
  rest.positional.assign(args.positional.begin() + 1, args.positional.end());
  rest.named = args.named;
  for (const Value& item : iterate(in.meter(), v)) out.push_back(apply_filter(in, name, item, rest));
  return generator(std::move(out));
}

Value select(Interpreter& in, const Value& v, const Args& args, bool by_attribute, bool wanted) {
  if (!v.truthy()) return generator({});
  const size_t skip = by_attribute ? 1 : 0;
  if (args.positional.size() < skip) fail("selectattr and rejectattr need the name of an attribute");
  const Getter getter(in, by_attribute ? std::optional(args.positional[0]) : std::nullopt);
  const bool tested = args.positional.size() > skip;
  std::string test;
  Args rest;
  if (tested) {
    test = need_str(args.positional[skip], "the test").text;
    rest.positional.assign(args.positional.begin() + static_cast<ptrdiff_t>(skip) + 1, args.positional.end());
    rest.named = args.named;
  }
  std::vector<Value> out;
  for (const Value& item : iterate(in.meter(), v)) {
    const Value chosen = getter(item);
    const bool holds = tested ? apply_test(in, test, chosen, rest) : chosen.truthy();
    if (holds == wanted) out.push_back(item);
  }
  return generator(std::move(out));
}

Value batch(Interpreter& in, const Value& v, const Args& args) {
  const Given given = args.bind("batch", {"linecount", "fill_with"}, 1);
  const int64_t count = need_int(*given[0], "batch's linecount");
  if (count < 1 || count > in.limits().range)
    fail(format("batch's linecount {} is not in 1..{}", count, in.limits().range));
  std::vector<Value> rows, row;
  for (const Value& item : iterate(in.meter(), v)) {
    if (static_cast<int64_t>(row.size()) == count) rows.push_back(make_list(std::exchange(row, {})));
    row.push_back(item);
  }
  if (!row.empty()) {
    if (given[1] && !given[1]->is_none()) {
      in.charge(static_cast<size_t>(count));
      row.resize(static_cast<size_t>(count), *given[1]);
    }
    rows.push_back(make_list(std::move(row)));
  }
  return generator(std::move(rows));
}

Value slice(Interpreter& in, const Value& v, const Args& args) {
  const Given given = args.bind("slice", {"slices", "fill_with"}, 1);
  const int64_t slices = need_int(*given[0], "slice's slices");
  if (slices < 1 || slices > in.limits().range)
    fail(format("slice's slices {} is not in 1..{}", slices, in.limits().range));
  in.charge(static_cast<size_t>(slices));
  const std::vector<Value> items = iterate(in.meter(), v);
  const int64_t each = static_cast<int64_t>(items.size()) / slices,
                extra = static_cast<int64_t>(items.size()) % slices;
  std::vector<Value> out;
  size_t at = 0;
  for (int64_t i = 0; i < slices; ++i) {
    const auto size = static_cast<size_t>(each + (i < extra ? 1 : 0));
    std::vector<Value> part(items.begin() + static_cast<ptrdiff_t>(at),
                            items.begin() + static_cast<ptrdiff_t>(at + size));
    if (given[1] && !given[1]->is_none() && i >= extra) part.push_back(*given[1]);
    out.push_back(make_list(std::move(part)));
    at += size;
  }
  return generator(std::move(out));
}

Value items_of(Interpreter& in, const Value& v, const Args& args) {
  args.bind("items", {});
  if (v.is_undefined()) return generator({});
  if (!v.is_dict()) fail("items needs a mapping");
  in.charge(v.dict().entries.size());
  std::vector<Value> out;
  for (const auto& [key, value] : v.dict().entries) out.push_back(make_list({key, value}, ListKind::tuple));
  return generator(std::move(out));
}

Value attr(Interpreter& in, const Value& v, const Args& args) {
  const Given given = args.bind("attr", {"name"}, 1);
  const std::string& name = need_str(*given[0], "attr's name").text;
  if (v.is_undefined()) fail(v.hint());
  // Attributes only, never keys.
  if (v.is_dict() && !has_method(v, name)) return Value::undefined(format("no attribute {}", quoted(name)));
  return in.attribute(v, name);
}

// --- Others ---

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
