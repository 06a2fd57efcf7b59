// The checks that every vocabulary passes, whatever its model, and the map from spelling to id.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>

#include "tessera/status.h"
#include "tokenizer/tokenizer.h"

namespace tessera::tokenizer {

class Vocab {
 public:
  // `spec` must outlive the result and keep its tokens in place.
  static Result<Vocab> create(const VocabSpec& spec);
  int32_t find(std::string_view spelling) const;  // -1 if there is none

 private:
  std::unordered_map<std::string_view, int32_t> ids_;
};

// Text from a file made safe for a one-line message: cut at 48 bytes, control characters and bad UTF-8
// replaced.
std::string quoted(std::string_view text);

// The value of a byte token "<0xHH>" with exactly two hex digits; -1 otherwise.
int parse_byte_token(std::string_view spelling);

}  // namespace tessera::tokenizer
