#include "server/json_writer.h"

#include <fmt/format.h>

#include <cmath>

#include "core/format.h"

namespace tessera::server {

void append_json_int(std::string& out, int64_t value) {
  fmt::format_to(std::back_inserter(out), "{}", value);
}

void append_json_float(std::string& out, float value) {
  if (!std::isfinite(value)) value = value > 0 ? 9999.0f : -9999.0f;
  fmt::format_to(std::back_inserter(out), "{}", value);
}

void append_json_ids(std::string& out, const std::vector<int32_t>& ids) {
  out += '[';
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) out += ',';
    append_json_int(out, ids[i]);
  }
  out += ']';
}

}  // namespace tessera::server
