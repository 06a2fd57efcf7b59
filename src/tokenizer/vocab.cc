#include "tokenizer/vocab.h"

#include "core/format.h"

namespace tessera::tokenizer {
namespace {

constexpr size_t kMaxTokens = size_t{1} << 24;

Status check_id(const char* field, int32_t id, size_t tokens) {
  if (id >= -1 && id < static_cast<int64_t>(tokens)) return {};
  return bad_file(format("tokenizer.ggml.{}: {} is no id of a vocabulary of {} tokens", field, id, tokens));
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

Status check_types(const VocabSpec& spec) {
  if (spec.token_types.empty()) return {};
  if (spec.token_types.size() != spec.tokens.size()) {
    return bad_file(format("tokenizer.ggml.token_type: {} entries for {} tokens", spec.token_types.size(),
                           spec.tokens.size()));
  }
  bool seen[256] = {};
  for (size_t id = 0; id < spec.token_types.size(); ++id) {
    const int32_t type = spec.token_types[id];
    if (type < 1 || type > 6) {
      return bad_file(format("tokenizer.ggml.token_type: token {} has type {}, not 1..6", id, type));
    }
    if (type != static_cast<int32_t>(TokenType::byte)) continue;
    const int byte = parse_byte_token(spec.tokens[id]);
    if (byte < 0) {
      return bad_file(format("tokenizer.ggml.tokens: byte token {} is {}, not <0xHH> with two hex digits", id,
                             quoted(spec.tokens[id])));
    }
    if (seen[byte])
      return bad_file(format("tokenizer.ggml.tokens: token {} repeats byte <0x{:02X}>", id, byte));
    seen[byte] = true;
  }
  return {};
}

}  // namespace

std::string quoted(std::string_view text) {
  constexpr size_t kLimit = 48;
  std::string out = "'";
  for (size_t at = 0; at < text.size();) {
    if (at >= kLimit) {
      out += "...";
      break;
    }
    const Utf8Char c = decode_utf8(text, at);
    if (is_printable(c.code)) {
      out.append(text, at, c.length);
    } else {
      out += format("\\x{:02x}", static_cast<uint8_t>(text[at]));
      at += 1;
      continue;
    }
    at += c.length;
  }
  return out + "'";
}

int parse_byte_token(std::string_view spelling) {
  if (spelling.size() != 6 || !spelling.starts_with("<0x") || spelling[5] != '>') return -1;
  const int high = hex_digit(spelling[3]), low = hex_digit(spelling[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

Result<Vocab> Vocab::create(const VocabSpec& spec) {
  if (spec.tokens.empty()) return bad_file("tokenizer.ggml.tokens: the vocabulary is empty");
  if (spec.tokens.size() > kMaxTokens) {
    return bad_file(format("tokenizer.ggml.tokens: {} tokens, more than the limit of {}", spec.tokens.size(),
                           kMaxTokens));
  }
  TESSERA_RETURN_IF_ERROR(check_types(spec));
  TESSERA_RETURN_IF_ERROR(check_id("bos_token_id", spec.bos_id, spec.tokens.size()));
  TESSERA_RETURN_IF_ERROR(check_id("eos_token_id", spec.eos_id, spec.tokens.size()));
  TESSERA_RETURN_IF_ERROR(check_id("unknown_token_id", spec.unk_id, spec.tokens.size()));
  TESSERA_RETURN_IF_ERROR(check_id("padding_token_id", spec.pad_id, spec.tokens.size()));
  if (spec.add_bos && spec.bos_id < 0)
    return bad_file("tokenizer.ggml.add_bos_token: true, but there is no bos_token_id");
  if (spec.add_eos && spec.eos_id < 0)
    return bad_file("tokenizer.ggml.add_eos_token: true, but there is no eos_token_id");
  Vocab vocab;
  vocab.ids_.reserve(spec.tokens.size());
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    const auto [at, fresh] = vocab.ids_.emplace(spec.tokens[id], static_cast<int32_t>(id));
    if (!fresh) {
      return bad_file(format("tokenizer.ggml.tokens: {} is both token {} and token {}",
                             quoted(spec.tokens[id]), at->second, id));
    }
  }
  return vocab;
}

int32_t Vocab::find(std::string_view spelling) const {
  const auto at = ids_.find(spelling);
  return at == ids_.end() ? -1 : at->second;
}

}  // namespace tessera::tokenizer
