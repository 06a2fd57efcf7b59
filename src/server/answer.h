// Answer: the engine's outputs as OpenAI's JSON, whole or as server-sent events. No I/O; not thread-safe.
//
// A stream's events come in OpenAI's order: for each choice the role (chat), its text, its finish_reason in a
// chunk of its own; then the usage with no choices, when asked for; then [DONE].
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/request.h"
#include "engine/service.h"
#include "server/api_error.h"
#include "server/call.h"

namespace tessera::server {

struct AnswerIdentity {
  std::string id;           // "chatcmpl-..." or "cmpl-..."
  std::string model;        // the served name
  std::string fingerprint;  // of build and model
  int64_t created = 0;      // unix seconds
};

class Answer {
 public:
  // `prompts`: the token ids of each prompt. `echoes`: what stands before each prompt's text, or empty.
  // `text` must outlive this.
  Answer(const Call& call, AnswerIdentity identity, std::vector<std::vector<int32_t>> prompts,
         std::vector<std::string> echoes, const engine::TextService& text);

  // News of one sample of prompt `prompt`. With call.stream its events are appended to *events.
  void take(int prompt, const engine::Output& output, std::string* events);
  // True when every choice has finished.
  bool complete() const { return open_choices_ == 0; }

  void append_end(std::string* events) const;  // usage and [DONE]
  std::string whole() const;                   // the body of an answer that is not streamed

 private:
  // Comma-joined JSON of the log-probabilities so far.
  struct Logprobs {
    std::string tokens, token_logprobs, top_logprobs, text_offset;  // completions
    std::string content;                                            // chat
  };
  struct Choice {
    std::string text;
    std::vector<int32_t> tokens;
    Logprobs logprobs;
    int64_t text_offset = 0;  // in code points
    bool begun = false;
    engine::FinishReason finish = engine::FinishReason::none;
    std::string stop_reason;
    uint64_t seed = 0;
    int completion_tokens = 0;
  };
  struct Prompt {
    int prompt_tokens = 0;
    int cached_tokens = 0;
  };

  void begin(int index, const Logprobs& prompt, std::string* events);
  void append_delta(int index, const std::string& text, const engine::Output& output,
                    const Logprobs& logprobs, std::string* events) const;
  void append_finish(int index, std::string* events) const;
  void open_chunk(int index, std::string* events) const;
  void close_chunk(std::string* events) const;
  void append_choice(int index, std::string* out) const;
  void append_usage(std::string* out) const;
  void append_end_of(const Choice& choice, std::string* out) const;
  void collect(Choice& choice, const engine::Output& output, Logprobs* out) const;
  void collect_prompt(int prompt, const std::vector<engine::TokenLogprobs>& entries, Logprobs* out) const;
  void append_entry(int32_t token, const engine::TokenLogprobs* entry, int64_t offset, Logprobs* out) const;
  void append_logprobs(const Logprobs& logprobs, std::string* out) const;

  const Call& call_;
  const engine::TextService& text_;
  std::string prefix_;  // {"id":...,"model":...  of every object
  std::vector<std::vector<int32_t>> prompt_ids_;
  std::vector<std::string> echoes_;
  std::vector<Prompt> prompts_;
  std::vector<Choice> choices_;
  int open_choices_ = 0;
};

// One event that carries an error, then [DONE].
std::string error_events(const ApiError& error);

}  // namespace tessera::server
