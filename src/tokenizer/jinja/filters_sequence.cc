// Filters on sequences and mappings.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <set>

#include "core/format.h"
#include "tokenizer/jinja/filters.h"
#include "tokenizer/vocab.h"

namespace tessera::tokenizer::jinja::filters {
namespace {

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
  in.charge(value.text().size() / 4);
  return Value(value.str().derived(to_lower(value.text())));
}

Value generator(std::vector<Value> items) {
  return make_list(std::move(items), ListKind::generator);
}

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

}  // namespace

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

}  // namespace tessera::tokenizer::jinja::filters
