#include "server/json_value.h"

#include <boost/json/basic_parser_impl.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value_stack.hpp>
#include <cmath>
#include <unordered_set>
#include <vector>

#include "core/format.h"
#include "server/json_writer.h"

namespace tessera::server {
namespace {

namespace json = boost::json;
using View = json::string_view;

// Builds the value and watches the keys of every open object.
class Handler {
 public:
  static constexpr std::size_t max_object_size = json::object::max_size();
  static constexpr std::size_t max_array_size = json::array::max_size();
  static constexpr std::size_t max_key_size = json::string::max_size();
  static constexpr std::size_t max_string_size = json::string::max_size();

  explicit Handler(int values) : values_left_(values) { stack_.reset(); }
  json::value release() { return stack_.release(); }
  const std::string& reason() const { return reason_; }

  bool on_document_begin(json::error_code&) { return true; }
  bool on_document_end(json::error_code&) { return true; }
  bool on_object_begin(json::error_code&) {
    keys_.emplace_back();
    return true;
  }
  bool on_object_end(std::size_t n, json::error_code& error) {
    keys_.pop_back();
    stack_.push_object(n);
    return count(error);
  }
  bool on_array_begin(json::error_code&) { return true; }
  bool on_array_end(std::size_t n, json::error_code& error) {
    stack_.push_array(n);
    return count(error);
  }
  bool on_key_part(View part, std::size_t, json::error_code&) {
    key_.append(part.data(), part.size());
    stack_.push_chars(part);
    return true;
  }
  bool on_key(View part, std::size_t, json::error_code& error) {
    key_.append(part.data(), part.size());
    stack_.push_key(part);
    if (!keys_.back().insert(key_).second) return fail("the key " + quoted(key_) + " is there twice", error);
    key_.clear();
    return true;
  }
  bool on_string_part(View part, std::size_t, json::error_code&) {
    stack_.push_chars(part);
    return true;
  }
  bool on_string(View part, std::size_t, json::error_code& error) {
    stack_.push_string(part);
    return count(error);
  }
  bool on_number_part(View, json::error_code&) { return true; }
  bool on_int64(std::int64_t value, View, json::error_code& error) {
    stack_.push_int64(value);
    return count(error);
  }
  bool on_uint64(std::uint64_t value, View, json::error_code& error) {
    stack_.push_uint64(value);
    return count(error);
  }
  bool on_double(double value, View, json::error_code& error) {
    if (!std::isfinite(value)) return fail("a number is too large for a double", error);
    stack_.push_double(value);
    return count(error);
  }
  bool on_bool(bool value, json::error_code& error) {
    stack_.push_bool(value);
    return count(error);
  }
  bool on_null(json::error_code& error) {
    stack_.push_null();
    return count(error);
  }
  bool on_comment_part(View, json::error_code&) { return true; }
  bool on_comment(View, json::error_code&) { return true; }

 private:
  static std::string quoted(const std::string& key) {
    std::string out;
    append_json_string(out, std::string_view(key).substr(0, 64));
    return out;
  }
  bool fail(std::string reason, json::error_code& error) {
    reason_ = std::move(reason);
    error = json::error::extra_data;
    return false;
  }
  bool count(json::error_code& error) {
    if (--values_left_ >= 0) return true;
    return fail("it holds too many values", error);
  }

  json::value_stack stack_;
  std::vector<std::unordered_set<std::string>> keys_;
  std::string key_;
  std::string reason_;
  int values_left_;
};

ApiError bad_json(std::string_view reason, size_t offset) {
  return {
      .code = "invalid_json",
      .param = "body",
      .message = format("body: no valid JSON at byte {}: {}; send one UTF-8 JSON object", offset, reason)};
}

}  // namespace

Fault parse_json(std::string_view text, const JsonLimits& limits, json::value* out) {
  if (text.empty()) return bad_json("it is empty", 0);
  json::parse_options options;
  options.max_depth = limits.depth;
  json::basic_parser<Handler> parser(options, limits.values);
  json::error_code error;
  const size_t used = parser.write_some(false, text.data(), text.size(), error);
  const std::string& reason = parser.handler().reason();
  if (error == json::error::too_deep) {
    return bad_json(format("nested deeper than {} levels", limits.depth), used);
  }
  if (error) return bad_json(reason.empty() ? error.message() : reason, used);
  const size_t rest = text.find_first_not_of(" \t\r\n", used);
  if (rest != std::string_view::npos) return bad_json("there is more behind the value", rest);
  *out = parser.handler().release();
  return std::nullopt;
}

std::string_view kind_name(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return "null";
    case json::kind::bool_:
      return "a boolean";
    case json::kind::int64:
    case json::kind::uint64:
      return "an integer";
    case json::kind::double_:
      return "a number";
    case json::kind::string:
      return "a string";
    case json::kind::array:
      return "an array";
    case json::kind::object:
      return "an object";
  }
  return "a value";
}

std::string brief(const json::value& value, size_t limit) {
  if (value.is_array()) return format("an array of {}", value.get_array().size());
  if (value.is_object()) return format("an object of {}", value.get_object().size());
  std::string text;
  if (value.is_string()) {
    append_json_string(text, std::string_view(value.get_string()).substr(0, limit));
  } else {
    text = json::serialize(value);
  }
  return text;
}

}  // namespace tessera::server
