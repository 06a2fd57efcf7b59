// Chat templates: the Jinja source that comes with a model, rendered as Hugging Face renders it.
//
// A template is untrusted code: it sees only the values below, and a render is bounded (RenderLimits). Text
// that comes from the conversation is tracked through every operation, so that encode_chat() turns only what
// the template itself wrote into control tokens.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tessera/status.h"
#include "tokenizer/jinja/value.h"
#include "tokenizer/tokenizer.h"

namespace tessera::tokenizer {

// Deterministic, so the same template and conversation always fare the same.
struct RenderLimits {
  int64_t steps = 5'000'000;               // statements, expressions, list items, and 32 bytes of text each
  int64_t range = 100'000;                 // items of one range()
  int recursion = 100;                     // nested macro calls
  size_t output_bytes = size_t{16} << 20;  // of the output, and of any one string
};
constexpr size_t kMaxTemplateBytes = size_t{1} << 20;

struct TemplateMessage {
  std::string role;
  std::string content;
  std::string name;  // "": the message has none
};

struct RenderOptions {
  bool add_generation_prompt = true;
  // More variables for the template, e.g. tools; none may be messages, add_generation_prompt, bos_token,
  // eos_token or a built-in function. Their strings count as conversation (jinja::Value::outside).
  // Making a Value that is nested deeper than jinja::kMaxValueDepth throws jinja::TemplateError: check the
  // depth of JSON before.
  std::map<std::string, jinja::Value> variables;
  int64_t now = 0;  // Unix seconds for strftime_now, in UTC
  RenderLimits limits;
};

struct RenderedChat {
  std::string text;
  std::vector<TextSpan> trusted;  // what the template wrote: bytes, ascending, disjoint
};

class ChatTemplate {
 public:
  // `bos_token` and `eos_token` are the vocabulary's spellings, "" if there are none. A mistake in the source
  // is a bad_file Status with its line; more than kMaxTemplateBytes is refused.
  static Result<ChatTemplate> compile(std::string_view source, std::string bos_token, std::string eos_token);
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  // What Hugging Face's apply_chat_template gives for the same conversation. Whatever goes wrong, also a
  // limit passed or the template's own raise_exception, is an invalid_argument Status of field "messages"
  // with the template's line. Thread-safe.
  Result<RenderedChat> render(const std::vector<TemplateMessage>& messages,
                              const RenderOptions& options = {}) const;
  // The same with any value as `messages`.
  Result<RenderedChat> render(const jinja::Value& messages, const RenderOptions& options = {}) const;

 private:
  struct Compiled;
  ChatTemplate();
  std::unique_ptr<Compiled> compiled_;
};

// The ids of a rendered chat: control tokens only where the template wrote them, all else as encode() of the
// whole text. Adds no bos or eos of its own, since templates write them.
std::vector<int32_t> encode_chat(const Tokenizer& tokenizer, const RenderedChat& chat,
                                 size_t* left_out = nullptr);

}  // namespace tessera::tokenizer
