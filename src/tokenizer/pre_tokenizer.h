// Pre-tokenizers: the cut of a text into the pieces inside which subword merging happens.
//
// Each is a hand-written scanner for one model family's pattern, linear in the text and without backtracking,
// so no input can make it slow or deep. To add one: a file pre_NAME.cc with its scanner, and a line in
// pre_tokenizer.cc.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tessera/status.h"

namespace tessera::tokenizer {

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  // The end of the piece that begins at `begin`; begin < result <= text.size(). Looks at text[begin..] only,
  // so a text is cut by repeated calls. Bytes that are no UTF-8 count as one character each, no letter,
  // number or space. REQUIRES: begin < text.size(). Thread-safe.
  virtual size_t next(std::string_view text, size_t begin) const = 0;
};

// By GGUF's name (tokenizer.ggml.pre). An unknown name is `unsupported` and lists the known ones: another
// family's pattern would give wrong ids without any other sign. The result lives for ever.
Result<const PreTokenizer*> find_pre_tokenizer(std::string_view name);
std::vector<std::string_view> pre_tokenizer_names();

// One for each file pre_*.cc.
const PreTokenizer& gpt2_pre_tokenizer();
const PreTokenizer& smollm_pre_tokenizer();

// The end of GPT-2's piece at `begin`, for the families that refine that pattern. With `end_of_text` a number
// character ends the text as far as the pattern can see. REQUIRES then: no number character at `begin`.
enum class NumberIs { in_text, end_of_text };
size_t gpt2_piece_end(std::string_view text, size_t begin, NumberIs number);

}  // namespace tessera::tokenizer
