// Arguments and small helpers shared by the built-ins.
#include "tokenizer/jinja/builtins.h"

#include <algorithm>

#include "core/format.h"
#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/vocab.h"

namespace tessera::tokenizer::jinja {

std::vector<std::optional<Value>> Args::bind(std::string_view callee,
                                             std::initializer_list<std::string_view> names,
                                             size_t required) const {
  std::vector<std::optional<Value>> out(names.size());
  if (positional.size() > names.size()) {
    fail(format("{} takes at most {} arguments, {} given", callee, names.size(), positional.size()));
  }
  std::copy(positional.begin(), positional.end(), out.begin());
  for (const auto& [name, value] : named) {
    const auto at = std::find(names.begin(), names.end(), name);
    if (at == names.end()) fail(format("{} takes no argument {}", callee, quoted(name)));
    std::optional<Value>& slot = out[static_cast<size_t>(at - names.begin())];
    if (slot) fail(format("{} got two values for {}", callee, quoted(name)));
    slot = value;
  }
  for (size_t i = 0; i < required; ++i) {
    if (!out[i]) fail(format("{} needs the argument '{}'", callee, names.begin()[i]));
  }
  return out;
}

int64_t need_int(const Value& value, std::string_view what) {
  if (value.is_undefined()) fail(value.hint());
  if (!value.is_integral()) fail(format("{} must be an integer, not '{}'", what, value.type_name()));
  return value.as_int();
}

const Str& need_str(const Value& value, std::string_view what) {
  if (value.is_undefined()) fail(value.hint());
  if (!value.is_string()) fail(format("{} must be a string, not '{}'", what, value.type_name()));
  return value.str();
}

Value make_list(std::vector<Value> items, ListKind kind) {
  List list;
  list.items = std::move(items);
  list.kind = kind;
  return Value(std::move(list));
}

Str replace_text(Interpreter& in, const Str& text, const Str& from, const Str& to, int64_t count) {
  in.charge_text(text.text.size());
  Str out;
  size_t at = 0;
  const auto grow = [&](const Str& piece) {
    in.charge_text(piece.text.size());
    out.append(piece);
    if (out.text.size() > in.limits().output_bytes) fail("a replaced text is over the limit of bytes");
  };
  if (from.text.empty()) {
    // Matches before every code point and at the end.
    while (count != 0) {
      grow(to);
      --count;
      if (at >= text.text.size()) return out;
      const size_t next = at + decode_utf8(text.text, at).length;
      out.append(text.substr(at, next));
      at = next;
    }
  }
  while (count != 0) {
    const size_t found = from.text.empty() ? std::string::npos : text.text.find(from.text, at);
    if (found == std::string::npos) break;
    out.append(text.substr(at, found));
    grow(to);
    at = found + from.text.size();
    --count;
  }
  out.append(text.substr(at, text.text.size()));
  return out;
}

Str strip_text(const Str& text, const Str* set, bool left, bool right) {
  const std::string& s = text.text;
  const auto strips = [&](size_t at, size_t length) {
    if (set == nullptr) return is_python_space(decode_utf8(s, at).code);
    for (size_t i = 0; i < set->text.size();) {
      const size_t size = decode_utf8(set->text, i).length;
      if (size == length && set->text.compare(i, size, s, at, length) == 0) return true;
      i += size;
    }
    return false;
  };
  size_t begin = 0, end = s.size();
  while (left && begin < end) {
    const size_t length = decode_utf8(s, begin).length;
    if (!strips(begin, length)) break;
    begin += length;
  }
  while (right && end > begin) {
    size_t before = end - 1;
    while (before > begin && (static_cast<uint8_t>(s[before]) & 0xc0) == 0x80) --before;
    if (!strips(before, end - before)) break;
    end = before;
  }
  return text.substr(begin, end);
}

std::vector<Str> split_lines(const Str& text, bool keep_ends) {
  // Python's line boundaries.
  const auto ends_line = [](uint32_t c) {
    return (c >= 0xa && c <= 0xd) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
  };
  std::vector<Str> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.text.size();) {
    const Utf8Char c = decode_utf8(text.text, at);
    size_t next = at + c.length;
    if (ends_line(c.code)) {
      if (c.code == '\r' && next < text.text.size() && text.text[next] == '\n') ++next;
      lines.push_back(text.substr(begin, keep_ends ? next : at));
      begin = next;
    }
    at = next;
  }
  if (begin < text.text.size()) lines.push_back(text.substr(begin, text.text.size()));
  return lines;
}

Str join_text(Interpreter& in, const Str& separator, const std::vector<Value>& items) {
  Str out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) {
      in.charge_text(separator.text.size());
      out.append(separator);
    }
    out.append(to_str(in.meter(), items[i]));
    if (out.text.size() > in.limits().output_bytes) fail("a joined text is over the limit of bytes");
  }
  return out;
}

Str escape_html(const Value& value) {
  if (value.is_string() && value.str().markup) return value.str();
  const Str& text = need_str(value, "the text to escape");
  Str out;
  for (size_t at = 0; at < text.text.size();) {
    static constexpr std::string_view kSpecial = "&<>'\"";
    static constexpr const char* kEntity[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    const size_t stop = std::min(text.text.find_first_of(kSpecial, at), text.text.size());
    out.append(text.substr(at, stop));
    if (stop == text.text.size()) break;
    const Str entity(kEntity[kSpecial.find(text.text[stop])], text.substr(stop, stop + 1).any_taint());
    out.append(entity);
    at = stop + 1;
  }
  out.markup = true;
  return out;
}

}  // namespace tessera::tokenizer::jinja
