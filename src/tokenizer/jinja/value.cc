#include "tokenizer/jinja/value.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/format.h"
#include "tokenizer/jinja/interpreter.h"

namespace tessera::tokenizer::jinja {
namespace {

int checked_depth(int depth) {
  if (depth > kMaxValueDepth) fail(format("values are nested deeper than the limit of {}", kMaxValueDepth));
  return depth;
}

void add_repr(Meter& meter, Str& out, const Str& value) {
  meter.charge_text(value.text.size());
  // Double quotes only for a text with single ones and no double ones, as Python does.
  const bool has_single = value.text.find('\'') != std::string::npos;
  const char quote = has_single && value.text.find('"') == std::string::npos ? '"' : '\'';
  std::string text(1, quote);
  for (size_t at = 0; at < value.text.size();) {
    const Utf8Char c = decode_utf8(value.text, at);
    if (c.code == static_cast<uint32_t>(quote) || c.code == '\\') {
      text += '\\';
      text += static_cast<char>(c.code);
    } else if (c.code == '\n') {
      text += "\\n";
    } else if (c.code == '\r') {
      text += "\\r";
    } else if (c.code == '\t') {
      text += "\\t";
    } else if (is_printable(c.code)) {
      text.append(value.text, at, c.length);
    } else if (c.code < 0x100) {
      text += format("\\x{:02x}", c.code);
    } else if (c.code < 0x10000) {
      text += format("\\u{:04x}", c.code);
    } else {
      text += format("\\U{:08x}", c.code);
    }
    at += c.length;
  }
  text += quote;
  out.append(value.derived(std::move(text)));
}

void add_repr(Meter& meter, Str& out, const Value& value);

void add_items(Meter& meter, Str& out, const std::vector<Value>& items) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.append(", ");
    add_repr(meter, out, items[i]);
  }
}

void add_dict(Meter& meter, Str& out, const Dict& dict) {
  out.append("{");
  bool first = true;
  for (const auto& [key, item] : dict.entries) {
    if (!first) out.append(", ");
    first = false;
    add_repr(meter, out, key);
    out.append(": ");
    add_repr(meter, out, item);
  }
  out.append("}");
}

void add_list(Meter& meter, Str& out, const List& list) {
  switch (list.kind) {
    case ListKind::list:
      out.append("[");
      add_items(meter, out, list.items);
      return out.append("]");
    case ListKind::tuple:
      out.append("(");
      add_items(meter, out, list.items);
      return out.append(list.items.size() == 1 ? ",)" : ")");
    case ListKind::range:
      return out.append(list.range_text);
    case ListKind::generator:
      fail("a generator cannot be printed; use the filter list or join");
    case ListKind::dict_keys:
      out.append("dict_keys([");
      break;
    case ListKind::dict_values:
      out.append("dict_values([");
      break;
    case ListKind::dict_items:
      out.append("dict_items([");
      break;
  }
  add_items(meter, out, list.items);
  out.append("])");
}

void add_repr(Meter& meter, Str& out, const Value& value) {
  meter.charge(1);
  if (value.is_none()) return out.append("None");
  if (value.is_undefined()) return out.append("Undefined");
  if (value.is_bool()) return out.append(value.as_bool() ? "True" : "False");
  if (value.is_int()) return out.append(std::to_string(value.as_int()));
  if (value.is_float()) return out.append(float_repr(value.as_float()));
  if (value.is_string()) return add_repr(meter, out, value.str());
  if (value.is_list()) return add_list(meter, out, value.list());
  if (value.is_dict()) return add_dict(meter, out, value.dict());
  if (value.is_callable() && value.callable().kind == Callable::Kind::macro) {
    return out.append(format("<Macro '{}'>", value.callable().name));
  }
  fail(format("a {} cannot be printed", value.type_name()));
}

bool equal_items(Meter& meter, const std::vector<Value>& a, const std::vector<Value>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!equal(meter, a[i], b[i])) return false;
  }
  return true;
}

bool equal_dicts(Meter& meter, const Dict& a, const Dict& b) {
  if (a.entries.size() != b.entries.size()) return false;
  for (const auto& [key, value] : a.entries) {
    const Value* other = b.find(meter, key);
    if (other == nullptr || !equal(meter, value, *other)) return false;
  }
  return true;
}

// Exact: an int64 does not always fit a double.
int compare_numbers(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return a.as_int() < b.as_int() ? -1 : a.as_int() > b.as_int();
  if (a.is_float() && b.is_float()) return a.as_float() < b.as_float() ? -1 : a.as_float() > b.as_float();
  if (b.is_integral()) return -compare_numbers(b, a);
  const double right = b.as_float();
  if (right >= 9223372036854775808.0) return -1;
  if (right < -9223372036854775808.0) return 1;
  const auto whole = static_cast<int64_t>(right);
  if (a.as_int() != whole) return a.as_int() < whole ? -1 : 1;
  const double rest = right - static_cast<double>(whole);
  return rest > 0 ? -1 : rest < 0;
}

bool is_nan(const Value& v) {
  return v.is_float() && std::isnan(v.as_float());
}

}  // namespace

void Meter::refuse() const {
  fail(format("the template needs more than {} steps, the limit", limit_));
}

void fail(std::string message) {
  throw TemplateError{std::move(message)};
}

Str Str::substr(size_t begin, size_t end) const {
  Str part(text.substr(begin, end - begin));
  auto span =
      std::partition_point(tainted.begin(), tainted.end(), [&](const TextSpan& t) { return t.end <= begin; });
  for (; span != tainted.end() && span->begin < end; ++span) {
    part.tainted.push_back({std::max(span->begin, begin) - begin, std::min(span->end, end) - begin});
  }
  return part;
}

void Str::append(const Str& other) {
  const size_t shift = text.size();
  text += other.text;
  for (const TextSpan& span : other.tainted) {
    if (!tainted.empty() && tainted.back().end == span.begin + shift) {
      tainted.back().end = span.end + shift;
    } else {
      tainted.push_back({span.begin + shift, span.end + shift});
    }
  }
}

Value::Value(List v) {
  for (const Value& item : v.items) v.depth = std::max(v.depth, item.depth() + 1);
  checked_depth(v.depth);
  data_ = std::make_shared<const List>(std::move(v));
}

Value::Value(Dict v) {
  for (const auto& [key, item] : v.entries) v.depth = std::max({v.depth, key.depth() + 1, item.depth() + 1});
  checked_depth(v.depth);
  data_ = std::make_shared<const Dict>(std::move(v));
}

Value Value::undefined(std::string hint) {
  Value value;
  value.data_ = std::make_shared<const Undefined>(Undefined{std::move(hint)});
  return value;
}

bool Value::truthy() const {
  if (is_none() || is_undefined()) return false;
  if (is_integral()) return as_int() != 0;
  if (is_float()) return as_float() != 0;
  if (is_string()) return !text().empty();
  if (is_list()) return !list().has_length() || !list().items.empty();
  if (is_dict()) return !dict().entries.empty();
  return true;
}

int Value::depth() const {
  if (is_list()) return list().depth;
  if (is_dict()) return dict().depth;
  if (is_callable()) return callable().self.depth() + 1;
  if (is_loop()) return loop().depth;
  return 0;
}

const char* Value::type_name() const {
  if (is_none()) return "NoneType";
  if (is_undefined()) return "Undefined";
  if (is_bool()) return "bool";
  if (is_int()) return "int";
  if (is_float()) return "float";
  if (is_string()) return "str";
  if (is_dict()) return "dict";
  if (is_callable()) return "function";
  if (is_loop()) return "LoopContext";
  if (is_namespace()) return "Namespace";
  switch (list().kind) {
    case ListKind::list:
      return "list";
    case ListKind::tuple:
      return "tuple";
    case ListKind::range:
      return "range";
    case ListKind::generator:
      return "generator";
    case ListKind::dict_keys:
      return "dict_keys";
    case ListKind::dict_values:
      return "dict_values";
    case ListKind::dict_items:
      return "dict_items";
  }
  return "?";
}

bool Value::same_object(const Value& other) const {
  if (data_.index() != other.data_.index()) return false;
  if (is_undefined()) return false;
  if (is_string()) return text() == other.text();  // Python interns what templates compare
  if (is_bool() || is_int()) return as_int() == other.as_int();
  if (is_float()) return as_float() == other.as_float();
  return data_ == other.data_;
}

void Dict::put(std::string hash, const Value& key, Value value) {
  const auto [at, fresh] = index_.emplace(std::move(hash), entries.size());
  if (fresh) {
    entries.emplace_back(key, std::move(value));
  } else {
    entries[at->second].second = std::move(value);
  }
}

void Dict::set(Meter& meter, const Value& key, Value value) {
  put(hash_key(meter, key), key, std::move(value));
}

void Dict::set(std::string key, Value value, bool outside) {
  std::string hash = "s" + key;
  put(std::move(hash), Value(Str(std::move(key), outside)), std::move(value));
}

const Value* Dict::find(Meter& meter, const Value& key) const {
  const auto at = index_.find(hash_key(meter, key));
  return at == index_.end() ? nullptr : &entries[at->second].second;
}

const Value* Dict::find(std::string_view key) const {
  const auto at = index_.find(std::string("s").append(key));
  return at == index_.end() ? nullptr : &entries[at->second].second;
}

std::string hash_key(Meter& meter, const Value& value) {
  meter.charge(1);
  if (value.is_string()) {
    meter.charge_text(value.text().size());
    return "s" + value.text();
  }
  if (value.is_none()) return "n";
  if (value.is_undefined()) return "u";
  if (value.is_integral()) return "i" + std::to_string(value.as_int());
  if (value.is_float()) {
    const double v = value.as_float();
    if (v == std::floor(v) && std::abs(v) < 9e18) return "i" + std::to_string(static_cast<int64_t>(v));
    return "f" + float_repr(v);
  }
  if (value.is_list() && (value.list().kind == ListKind::tuple)) {
    std::string key = "t";
    for (const Value& item : value.list().items) {
      const std::string part = hash_key(meter, item);
      meter.charge_text(part.size());
      key += format("{}:{}", part.size(), part);
    }
    return key;
  }
  fail(format("unhashable type: '{}'", value.type_name()));
}

bool equal(Meter& meter, const Value& a, const Value& b) {
  meter.charge(1);
  if (a.is_number() && b.is_number()) return !is_nan(a) && !is_nan(b) && compare_numbers(a, b) == 0;
  if (a.is_string() && b.is_string()) {
    if (a.text().size() != b.text().size()) return false;
    meter.charge_text(a.text().size());
    return a.text() == b.text();
  }
  if (a.is_undefined() && b.is_undefined()) return true;
  if (a.is_none() && b.is_none()) return true;
  if (a.is_list() && b.is_list()) {
    if (a.list().kind != b.list().kind) return false;
    if (a.list().kind == ListKind::generator || a.list().kind == ListKind::dict_values)
      return a.same_object(b);
    return equal_items(meter, a.list().items, b.list().items);
  }
  if (a.is_dict() && b.is_dict()) return equal_dicts(meter, a.dict(), b.dict());
  return a.same_object(b);
}

int compare(Meter& meter, const Value& a, const Value& b, const char* op) {
  if (a.is_number() && b.is_number()) {
    // Every ordering with NaN is false; the caller asks for NaN itself.
    return compare_numbers(a, b);
  }
  meter.charge(1);
  if (a.is_string() && b.is_string()) {
    meter.charge_text(std::min(a.text().size(), b.text().size()));
    return a.text().compare(b.text());
  }
  const bool lists = a.is_list() && b.is_list() && a.list().kind == b.list().kind &&
                     (a.list().kind == ListKind::list || a.list().kind == ListKind::tuple);
  if (lists) {
    const auto &left = a.list().items, &right = b.list().items;
    for (size_t i = 0; i < left.size() && i < right.size(); ++i) {
      if (!equal(meter, left[i], right[i])) return compare(meter, left[i], right[i], op);
    }
    return left.size() < right.size() ? -1 : left.size() > right.size();
  }
  for (const Value* v : {&a, &b}) {
    if (v->is_undefined()) fail(v->hint());
  }
  fail(format("'{}' not supported between instances of '{}' and '{}'", op, a.type_name(), b.type_name()));
}

Str to_str(Meter& meter, const Value& value) {
  if (value.is_string()) meter.charge_text(value.text().size());
  if (value.is_string()) return value.str();
  if (value.is_undefined()) return Str();
  return repr(meter, value);
}

Str repr(Meter& meter, const Value& value) {
  Str out;
  add_repr(meter, out, value);
  return out;
}

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  // The shortest digits that give the value back, laid out as Python does: exponents below -4 and from 16.
  char digits[64];
  const auto done = std::to_chars(digits, digits + sizeof digits, value, std::chars_format::scientific);
  const std::string text(digits, done.ptr);
  const size_t e = text.find('e');
  const int exponent = std::stoi(text.substr(e + 1));
  if (exponent >= -4 && exponent < 16) {
    const auto fixed = std::to_chars(digits, digits + sizeof digits, value, std::chars_format::fixed);
    std::string plain(digits, fixed.ptr);
    if (plain.find('.') == std::string::npos) plain += ".0";
    return plain;
  }
  return text.substr(0, e) + format("e{}{:02}", exponent < 0 ? '-' : '+', std::abs(exponent));
}

std::vector<Value> iterate(Meter& meter, const Value& value) {
  if (value.is_undefined()) return {};
  if (value.is_string()) {
    meter.charge(value.text().size());
    std::vector<Value> characters;
    for (size_t at = 0; at < value.text().size();) {
      const size_t next = at + decode_utf8(value.text(), at).length;
      characters.emplace_back(value.str().substr(at, next));
      at = next;
    }
    return characters;
  }
  if (value.is_list()) {
    const List& list = value.list();
    meter.charge(list.items.size());
    if (list.kind != ListKind::generator) return list.items;
    if (list.consumed) return {};
    list.consumed = true;
    return list.items;
  }
  if (value.is_dict()) {
    meter.charge(value.dict().entries.size());
    std::vector<Value> keys;
    keys.reserve(value.dict().entries.size());
    for (const auto& [key, item] : value.dict().entries) keys.push_back(key);
    return keys;
  }
  fail(format("'{}' object is not iterable", value.type_name()));
}

int64_t length(Meter& meter, const Value& value) {
  if (value.is_undefined()) return 0;
  if (value.is_string()) {
    meter.charge_text(value.text().size());
    return static_cast<int64_t>(count_code_points(value.text()));
  }
  if (value.is_list() && value.list().has_length()) return static_cast<int64_t>(value.list().items.size());
  if (value.is_dict()) return static_cast<int64_t>(value.dict().entries.size());
  fail(format("object of type '{}' has no len()", value.type_name()));
}

}  // namespace tessera::tokenizer::jinja
