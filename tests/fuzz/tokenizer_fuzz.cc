// Any bytes through the tokenizer: encoding loses nothing, trusted spans change nothing but control tokens,
// and a decoder fed in any pieces gives what decoding at once gives.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/check.h"
#include "tokenizer/tokenizer.h"

namespace {

using namespace tessera;
using namespace tessera::tokenizer;

std::string spelling(int byte) {
  // GPT-2's alphabet for the bytes; see byte_bpe.cc.
  const bool plain = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  uint32_t code = static_cast<uint32_t>(byte);
  if (!plain) {
    code = 0x100;
    for (int b = 0; b < byte; ++b)
      code += !((b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae);
  }
  std::string out;
  append_utf8(out, code);
  return out;
}

std::unique_ptr<Tokenizer> make(const char* pre) {
  VocabSpec spec;
  spec.model = "gpt2";
  spec.pre = pre;
  for (int byte = 0; byte < 256; ++byte) spec.tokens.push_back(spelling(byte));
  const auto merge = [&](const std::string& left, const std::string& right) {
    spec.merges.push_back(left + " " + right);
    spec.tokens.push_back(left + right);
  };
  const std::string space = spelling(' ');
  merge("a", "a");
  merge("aa", "aa");
  merge("t", "h");
  merge("th", "e");
  merge(space, "the");
  merge(space, space);
  merge(spelling(0xe4), spelling(0xbd));
  merge("'", "s");
  merge("1", "2");
  spec.token_types.assign(spec.tokens.size(), 1);
  for (const char* control : {"<|a|>", "<|a|><|b|>", "<|b|>", "|"}) {
    spec.tokens.push_back(control);
    spec.token_types.push_back(control[0] == '<' ? 3 : 1);
  }
  spec.tokens.back() = "<u>";
  spec.token_types.back() = 4;
  auto made = Tokenizer::create(std::move(spec));
  TESSERA_CHECK_MSG(made.ok(), made.status().message());
  return std::move(*made);
}

void check(const Tokenizer& tokenizer, std::string_view text, uint8_t cut) {
  for (const bool parse_special : {false, true}) {
    const std::vector<int32_t> ids = tokenizer.encode(text, {.parse_special = parse_special});
    std::string joined;
    for (const int32_t id : ids) {
      TESSERA_CHECK(parse_special || !tokenizer.is_control(id));
      joined += tokenizer.token_bytes(id);
    }
    TESSERA_CHECK(joined == text);

    const auto whole = tokenizer.decode(ids);
    TESSERA_CHECK(whole.ok() && is_utf8(*whole));
    StreamDecoder stream(tokenizer, false);
    std::string streamed;
    for (const int32_t id : ids) {
      const std::string piece = stream.push(id);
      TESSERA_CHECK(is_utf8(piece));
      streamed += piece;
    }
    TESSERA_CHECK(streamed + stream.finish() == *whole);
    Utf8Repairer repairer;
    std::string repaired;
    for (size_t at = 0; at < text.size(); at += cut % 5 + 1)
      repairer.push(text.substr(at, cut % 5 + 1), repaired);
    repairer.finish(repaired);
    TESSERA_CHECK(repaired == *whole);
  }
  // Spans that touch are one span; an untrusted text is encode() of it.
  const size_t middle = text.size() * cut / 256;
  const TextSpan both[] = {{0, middle}, {middle, text.size()}};
  TESSERA_CHECK(tokenizer.encode_spans(text, both, false) == tokenizer.encode(text, {.parse_special = true}));
  TESSERA_CHECK(tokenizer.encode_spans(text, {}, false) == tokenizer.encode(text));
  const TextSpan first[] = {{0, middle}};
  std::string joined;
  for (const int32_t id : tokenizer.encode_spans(text, first, false)) joined += tokenizer.token_bytes(id);
  TESSERA_CHECK(joined == text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::unique_ptr<Tokenizer> gpt2 = make("gpt-2"), smollm = make("smollm");
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  check(*gpt2, text, data[0]);
  check(*smollm, text, data[0]);
  return 0;
}
