// Tokens that are recognised in running text before any pre-tokenizer sees it: control and user-defined ones.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace tessera::tokenizer {

class AddedTokens {
 public:
  // Empty spellings are never matched. A spelling over 1,024 bytes is a bad_file: it bounds the work at each
  // byte.
  static Result<AddedTokens> create(const VocabSpec& spec);

  struct Match {
    size_t begin = 0, end = 0;  // bytes
    int32_t id = -1;            // -1: nothing found
  };
  // The leftmost match at or after `from`, the longest one there. User-defined tokens match anywhere; control
  // tokens only inside one of `trusted` (ascending, disjoint and apart), of which those before *span end
  // before `from`; *span moves forward. Time O(bytes x longest spelling) at worst.
  Match find(std::string_view text, size_t from, std::span<const TextSpan> trusted, size_t* span) const;

 private:
  struct Node {
    int32_t user_id = -1, control_id = -1;
    int32_t child = -1, sibling = -1;  // first child; next in the parent's list
    char byte = 0;
  };
  int32_t step(int32_t node, char byte) const;
  Match longest_at(std::string_view text, size_t begin, size_t trusted_end) const;

  std::vector<Node> nodes_ = {Node{}};
  int32_t roots_[256];  // the root's children by byte, -1 if none
};

}  // namespace tessera::tokenizer
