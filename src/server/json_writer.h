// Appends JSON to a string that the caller reuses; the answer side of the server builds no tree.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/json_text.h"

namespace tessera::server {

void append_json_int(std::string& out, int64_t value);
// Shortest form that reads back as the same float. JSON has no infinities: -inf (a banned token) becomes
// -9999, as vLLM writes it. REQUIRES: not NaN.
void append_json_float(std::string& out, float value);
void append_json_ids(std::string& out, const std::vector<int32_t>& ids);

}  // namespace tessera::server
