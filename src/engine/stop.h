// Stop: when a sample's answer ends, and which of its text is certain.
//
// Invariants:
//  1. Text handed out is whole code points and never part of a stop string that cuts it: what may still
//  become
//     one is held back.
//  2. Of several stop strings the one whose last byte comes first ends the answer; of those that end
//  together,
//     the longest. So the answer does not depend on how tokens cut the text.
//  3. A token is counted before it is judged: stop conditions win over max_tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/request.h"

namespace tessera::engine {

// Turns the token ids of one sample into text as they come. The tokenizer's streaming detokenizer stands
// behind it.
class TextDecoder {
 public:
  virtual ~TextDecoder() = default;
  // The text that is certain after this token: whole code points, possibly none.
  virtual std::string push(int32_t token) = 0;
  // What is left at the end; an unfinished code point becomes U+FFFD.
  virtual std::string finish() = 0;
};

class StopChecker {
 public:
  struct Update {
    std::string text;  // newly certain
    FinishReason finish = FinishReason::none;
    std::string stop_reason;  // a stop string, or a stop token's id in decimal; empty for the model's own end
  };

  // `params` and `eos_ids` must outlive it. max_tokens: params.max_tokens, lowered to what the context
  // leaves.
  StopChecker(const SamplingParams& params, std::span<const int32_t> eos_ids, int max_tokens,
              std::unique_ptr<TextDecoder> decoder);

  // Takes one generated token. REQUIRES: not finished. The text of the model's own end is never handed out;
  // that of a stop token only with include_stop_str_in_output.
  Update push(int32_t token);
  // The answer ends from outside (cancel, error): the text that was held back.
  std::string flush();

  int tokens() const { return count_; }
  // The ids that end an answer, which may not be drawn as one of the first min_tokens tokens.
  static std::vector<int32_t> ends(const SamplingParams& params, std::span<const int32_t> eos_ids);

 private:
  bool find_stop(size_t* begin, size_t* end, const std::string** which) const;
  size_t held_suffix() const;

  const SamplingParams& params_;
  int max_tokens_;
  std::unique_ptr<TextDecoder> decoder_;
  std::span<const int32_t> eos_ids_;  // empty when they are ignored
  std::string held_;                  // text that is not handed out yet
  int count_ = 0;
};

}  // namespace tessera::engine
