// Appends JSON to a string that the caller reuses; the answer side of the server builds no tree.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::server {

// A quoted JSON string. Always valid JSON: bytes that are no UTF-8 become U+FFFD.
void append_json_string(std::string& out, std::string_view text);
void append_json_int(std::string& out, int64_t value);
// Shortest form that reads back as the same float. JSON has no infinities: -inf (a banned token) becomes
// -9999, as vLLM writes it. REQUIRES: not NaN.
void append_json_float(std::string& out, float value);
void append_json_ids(std::string& out, const std::vector<int32_t>& ids);

bool is_utf8(std::string_view text);
// Length of the valid UTF-8 sequence at text[at], 1..4, or 0.
int utf8_length(std::string_view text, size_t at);

}  // namespace tessera::server
