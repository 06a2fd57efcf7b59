#include "tokenizer/added_tokens.h"

#include <algorithm>

#include "core/format.h"
#include "tokenizer/vocab.h"

namespace tessera::tokenizer {
namespace {
constexpr size_t kMaxSpelling = 1024;
}

Result<AddedTokens> AddedTokens::create(const VocabSpec& spec) {
  AddedTokens added;
  std::fill(std::begin(added.roots_), std::end(added.roots_), -1);
  for (size_t id = 0; id < spec.token_types.size(); ++id) {
    const auto type = static_cast<TokenType>(spec.token_types[id]);
    if (type != TokenType::control && type != TokenType::user_defined) continue;
    const std::string& spelling = spec.tokens[id];
    if (spelling.empty()) continue;
    if (spelling.size() > kMaxSpelling) {
      return bad_file(
          format("tokenizer.ggml.tokens: special token {} ({}) has {} bytes, more than the limit of {}", id,
                 quoted(spelling), spelling.size(), kMaxSpelling));
    }
    int32_t node = 0;
    for (const char byte : spelling) {
      int32_t next = added.step(node, byte);
      if (next < 0) {
        next = static_cast<int32_t>(added.nodes_.size());
        Node fresh;
        fresh.byte = byte;
        fresh.sibling = added.nodes_[node].child;
        added.nodes_.push_back(fresh);
        added.nodes_[node].child = next;
        if (node == 0) added.roots_[static_cast<uint8_t>(byte)] = next;
      }
      node = next;
    }
    (type == TokenType::control ? added.nodes_[node].control_id : added.nodes_[node].user_id) =
        static_cast<int32_t>(id);
  }
  return added;
}

int32_t AddedTokens::step(int32_t node, char byte) const {
  if (node == 0) return roots_[static_cast<uint8_t>(byte)];
  for (int32_t child = nodes_[node].child; child >= 0; child = nodes_[child].sibling) {
    if (nodes_[child].byte == byte) return child;
  }
  return -1;
}

AddedTokens::Match AddedTokens::longest_at(std::string_view text, size_t begin, size_t trusted_end) const {
  Match match;
  int32_t node = 0;
  for (size_t at = begin; at < text.size(); ++at) {
    node = step(node, text[at]);
    if (node < 0) break;
    int32_t id = nodes_[node].user_id;
    if (nodes_[node].control_id >= 0 && at + 1 <= trusted_end) id = nodes_[node].control_id;
    if (id >= 0) match = {begin, at + 1, id};
  }
  return match;
}

AddedTokens::Match AddedTokens::find(std::string_view text, size_t from, std::span<const TextSpan> trusted,
                                     size_t* span) const {
  for (size_t at = from; at < text.size(); ++at) {
    if (roots_[static_cast<uint8_t>(text[at])] < 0) continue;
    while (*span < trusted.size() && trusted[*span].end <= at) ++*span;
    const bool inside = *span < trusted.size() && trusted[*span].begin <= at;
    const Match match = longest_at(text, at, inside ? trusted[*span].end : 0);
    if (match.id >= 0) return match;
  }
  return {};
}

}  // namespace tessera::tokenizer
