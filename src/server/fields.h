// Fields: one JSON object of a request, read field by field.
//
// Each known field is taken once; finish() refuses whatever nobody took, so that no field is ever accepted
// and left without effect. null counts as absent, as in the OpenAI API.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "server/api_error.h"
#include "server/json_value.h"

namespace tessera::server {

class Fields {
 public:
  // `object` must outlive this. `prefix` stands before names in messages: "messages[0]." or "".
  explicit Fields(const boost::json::object& object, std::string prefix = {})
      : object_(object), prefix_(std::move(prefix)) {}

  // nullptr when absent or null. Marks the field as known.
  const boost::json::value* take(std::string_view name);
  bool has(std::string_view name) const;

  // Each leaves *out alone when the field is absent.
  Fault take_bool(std::string_view name, bool* out);
  Fault take_int(std::string_view name, int64_t low, int64_t high, int* out);
  Fault take_uint64(std::string_view name, uint64_t* out, bool* present);
  Fault take_float(std::string_view name, float* out);  // finite as a float; the range is validate()'s
  Fault take_string(std::string_view name, std::string* out);
  Fault take_ids(std::string_view name, std::vector<int32_t>* out);
  // The field is known but cannot be had: a fault unless absent or null.
  Fault refuse(std::string_view name, std::string_view remedy);
  void ignore(std::initializer_list<std::string_view> names);

  Fault finish() const;
  std::string path(std::string_view name) const { return prefix_ + std::string(name); }

 private:
  const boost::json::object& object_;
  std::string prefix_;
  std::vector<std::string_view> known_;
};

// An array of integers that fit int32. Faults name `param`.
Fault read_ids(const boost::json::value& value, const std::string& param, std::vector<int32_t>* out);
// A single integer in [low, high].
Fault read_int(const boost::json::value& value, const std::string& param, int64_t low, int64_t high,
               int64_t* out);

}  // namespace tessera::server
