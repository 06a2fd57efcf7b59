// The filter tojson, as Hugging Face defines it: json.dumps without HTML escapes.
#include <algorithm>
#include <cmath>

#include "core/format.h"
#include "core/json_text.h"
#include "tokenizer/jinja/interpreter.h"

namespace tessera::tokenizer::jinja {
namespace {

class JsonWriter {
 public:
  JsonWriter(Interpreter& in, const JsonOptions& options) : in_(in), options_(options) {
    if (options.separators) {
      item_separator_ = options.separators->first;
      key_separator_ = options.separators->second;
    } else {
      item_separator_ = Str(options.indent ? "," : ", ");
      key_separator_ = Str(": ");
    }
  }

  Str run(const Value& value) {
    write(value, 0);
    return std::move(out_);
  }

 private:
  void plain(std::string_view text) {
    in_.charge_text(text.size());
    out_.append(text);
    if (out_.text.size() > in_.limits().output_bytes) fail("JSON text is over the limit of bytes");
  }
  void styled(const Str& text) {
    in_.charge_text(text.text.size());
    out_.append(text);
    if (out_.text.size() > in_.limits().output_bytes) fail("JSON text is over the limit of bytes");
  }
  void new_line(int level) {
    if (!options_.indent) return;
    plain("\n");
    for (int i = 0; i < level; ++i) styled(*options_.indent);
  }

  void write_string(const Str& text) {
    in_.charge_text(text.text.size());
    std::string out = "\"";
    for (size_t at = 0; at < text.text.size();) {
      const Utf8Char c = decode_utf8(text.text, at);
      if (c.code == '"' || c.code == '\\' || c.code < 0x20) {
        append_json_escape(out, static_cast<char>(c.code));
      } else if (options_.ensure_ascii && c.code >= 0x7f && c.code < 0x10000) {
        out += format("\\u{:04x}", c.code);
      } else if (options_.ensure_ascii && c.code >= 0x10000 && c.code < kInvalidByte) {
        const uint32_t rest = c.code - 0x10000;
        out += format("\\u{:04x}\\u{:04x}", 0xd800 + (rest >> 10), 0xdc00 + (rest & 0x3ff));
      } else {
        out.append(text.text, at, c.length);
      }
      at += c.length;
    }
    styled(text.derived(out + "\""));
  }

  void write_float(double value) {
    plain(std::isnan(value)   ? "NaN"
          : std::isinf(value) ? (value > 0 ? "Infinity" : "-Infinity")
                              : float_repr(value));
  }

  // Scalars; false if `value` is none.
  bool write_scalar(const Value& value) {
    if (value.is_none()) return plain("null"), true;
    if (value.is_bool()) return plain(value.as_bool() ? "true" : "false"), true;
    if (value.is_int()) return plain(std::to_string(value.as_int())), true;
    if (value.is_float()) return write_float(value.as_float()), true;
    return false;
  }

  void write_key(const Value& key) {
    if (key.is_string()) return write_string(key.str());
    plain("\"");
    if (!write_scalar(key)) fail(format("keys of JSON must be scalars, not '{}'", key.type_name()));
    plain("\"");
  }

  void write_dict(const Dict& dict, int level) {
    if (dict.entries.empty()) return plain("{}");
    std::vector<const std::pair<Value, Value>*> entries;
    for (const auto& entry : dict.entries) entries.push_back(&entry);
    if (options_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(), [this](const auto* a, const auto* b) {
        return compare(in_.meter(), a->first, b->first, "<") < 0;
      });
    }
    plain("{");
    bool first = true;
    for (const auto* entry : entries) {
      if (!first) styled(item_separator_);
      first = false;
      new_line(level + 1);
      write_key(entry->first);
      styled(key_separator_);
      write(entry->second, level + 1);
    }
    new_line(level);
    plain("}");
  }

  void write_list(const std::vector<Value>& items, int level) {
    if (items.empty()) return plain("[]");
    plain("[");
    bool first = true;
    for (const Value& item : items) {
      if (!first) styled(item_separator_);
      first = false;
      new_line(level + 1);
      write(item, level + 1);
    }
    new_line(level);
    plain("]");
  }

  void write(const Value& value, int level) {
    in_.charge(1);
    if (write_scalar(value)) return;
    if (value.is_string()) return write_string(value.str());
    if (value.is_dict()) return write_dict(value.dict(), level);
    const bool list =
        value.is_list() && (value.list().kind == ListKind::list || value.list().kind == ListKind::tuple);
    if (list) return write_list(value.list().items, level);
    fail(format("a value of type {} is not JSON serializable", value.type_name()));
  }

  Interpreter& in_;
  const JsonOptions& options_;
  Str item_separator_, key_separator_;
  Str out_;
};

}  // namespace

Str to_json(Interpreter& in, const Value& value, const JsonOptions& options) {
  return JsonWriter(in, options).run(value);
}

}  // namespace tessera::tokenizer::jinja
