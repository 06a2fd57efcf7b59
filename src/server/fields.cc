#include "server/fields.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/format.h"

namespace tessera::server {
namespace json = boost::json;

const json::value* Fields::take(std::string_view name) {
  known_.push_back(name);
  const json::value* value = object_.if_contains(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

bool Fields::has(std::string_view name) const {
  const json::value* value = object_.if_contains(name);
  return value != nullptr && !value->is_null();
}

Fault Fields::take_bool(std::string_view name, bool* out) {
  const json::value* value = take(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_bool()) return invalid_type(path(name), "true or false", kind_name(*value));
  *out = value->get_bool();
  return std::nullopt;
}

Fault Fields::take_int(std::string_view name, int64_t low, int64_t high, int* out) {
  const json::value* value = take(name);
  if (value == nullptr) return std::nullopt;
  int64_t wide = 0;
  TESSERA_RETURN_IF_FAULT(read_int(*value, path(name), low, high, &wide));
  *out = static_cast<int>(wide);
  return std::nullopt;
}

Fault Fields::take_uint64(std::string_view name, uint64_t* out, bool* present) {
  *present = false;
  const json::value* value = take(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_string() || value->is_bool() || value->is_structured()) {
    return invalid_type(path(name), "an integer", kind_name(*value));
  }
  if (value->is_uint64()) {
    *out = value->get_uint64();
  } else if (value->is_int64() && value->get_int64() >= 0) {
    *out = static_cast<uint64_t>(value->get_int64());
  } else {
    return invalid_value(path(name),
                         format("{}: {} is not allowed: it must be an integer from 0 to 2^64 - 1; send one",
                                path(name), brief(*value)));
  }
  *present = true;
  return std::nullopt;
}

Fault Fields::take_float(std::string_view name, float* out) {
  const json::value* value = take(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) return invalid_type(path(name), "a number", kind_name(*value));
  const double wide = value->to_number<double>();
  if (!(std::abs(wide) <= std::numeric_limits<float>::max())) {
    return invalid_value(
        path(name), format("{}: {} is too large for a float; send a smaller one", path(name), brief(*value)));
  }
  *out = static_cast<float>(wide);
  return std::nullopt;
}

Fault Fields::take_string(std::string_view name, std::string* out) {
  const json::value* value = take(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) return invalid_type(path(name), "a string", kind_name(*value));
  *out = std::string_view(value->get_string());
  return std::nullopt;
}

Fault Fields::take_ids(std::string_view name, std::vector<int32_t>* out) {
  const json::value* value = take(name);
  if (value == nullptr) return std::nullopt;
  return read_ids(*value, path(name), out);
}

Fault Fields::refuse(std::string_view name, std::string_view remedy) {
  if (take(name) == nullptr) return std::nullopt;
  return unsupported_field(path(name), remedy);
}

void Fields::ignore(std::initializer_list<std::string_view> names) {
  known_.insert(known_.end(), names.begin(), names.end());
}

Fault Fields::finish() const {
  for (const auto& member : object_) {
    if (std::find(known_.begin(), known_.end(), std::string_view(member.key())) == known_.end()) {
      return unknown_field(path(std::string_view(member.key()).substr(0, 64)));
    }
  }
  return std::nullopt;
}

Fault read_int(const json::value& value, const std::string& param, int64_t low, int64_t high, int64_t* out) {
  if (!value.is_number()) return invalid_type(param, "an integer", kind_name(value));
  const bool inside = value.is_int64() && value.get_int64() >= low && value.get_int64() <= high;
  if (inside) {
    *out = value.get_int64();
    return std::nullopt;
  }
  const bool low_open = low == std::numeric_limits<int32_t>::min();
  const std::string limit =
      low_open ? format("an integer of at most {}", high) : format("an integer from {} to {}", low, high);
  return invalid_value(param,
                       format("{}: {} is not allowed: it must be {}; send one", param, brief(value), limit));
}

Fault read_ids(const json::value& value, const std::string& param, std::vector<int32_t>* out) {
  if (!value.is_array()) return invalid_type(param, "an array of token ids", kind_name(value));
  const json::array& array = value.get_array();
  out->clear();
  out->reserve(array.size());
  for (size_t i = 0; i < array.size(); ++i) {
    constexpr int64_t kMaxId = std::numeric_limits<int32_t>::max();
    const json::value& id = array[i];
    int64_t unused = 0;
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() > kMaxId) {
      return read_int(id, format("{}[{}]", param, i), 0, kMaxId, &unused);
    }
    out->push_back(static_cast<int32_t>(id.get_int64()));
  }
  return std::nullopt;
}

}  // namespace tessera::server
