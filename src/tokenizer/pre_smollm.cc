// SmolLM: every number character stands alone, and GPT-2's pattern cuts each stretch between them as if it
// were a text of its own (so white space before a number stays whole).
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/unicode.h"

namespace tessera::tokenizer {
namespace {

class Smollm final : public PreTokenizer {
 public:
  size_t next(std::string_view text, size_t begin) const override {
    const Utf8Char first = decode_utf8(text, begin);
    if (is_number(first.code)) return begin + first.length;
    return gpt2_piece_end(text, begin, NumberIs::end_of_text);
  }
};

}  // namespace

const PreTokenizer& smollm_pre_tokenizer() {
  static const Smollm instance;
  return instance;
}

}  // namespace tessera::tokenizer
