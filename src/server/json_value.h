// Strict JSON of requests over Boost.JSON.
//
// Beyond the grammar it refuses: duplicate keys, numbers that do not fit a double, invalid UTF-8 and lone
// surrogates, a byte-order mark, anything behind the value, more than `depth` levels or `values` values.
#pragma once

#include <boost/json/value.hpp>
#include <string>
#include <string_view>

#include "server/api_error.h"

namespace tessera::server {

struct JsonLimits {
  int depth = 64;
  int values = 1 << 20;
};

// *out is valid only when there is no fault. The fault's param is "body".
Fault parse_json(std::string_view text, const JsonLimits& limits, boost::json::value* out);

// "a number", "a string"...; and the value itself in at most `limit` bytes, for messages.
std::string_view kind_name(const boost::json::value& value);
std::string brief(const boost::json::value& value, size_t limit = 48);

}  // namespace tessera::server
