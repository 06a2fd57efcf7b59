#include "tokenizer/chat_template.h"

#include "core/format.h"
#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/jinja/parser.h"
#include "tokenizer/vocab.h"

namespace tessera::tokenizer {
namespace {

std::string describe(const jinja::TemplateError& error) {
  // One line of UTF-8, whatever the template put into its message.
  std::string message;
  Utf8Repairer repairer;
  repairer.push(error.message, message);
  repairer.finish(message);
  for (char& c : message) {
    if (static_cast<uint8_t>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return error.line > 0 ? format("chat template, line {}: {}", error.line, message)
                        : "chat template: " + message;
}

}  // namespace

struct ChatTemplate::Compiled {
  jinja::Body body;
  std::string bos_token, eos_token;
};

ChatTemplate::ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

Result<ChatTemplate> ChatTemplate::compile(std::string_view source, std::string bos_token,
                                           std::string eos_token) {
  if (source.size() > kMaxTemplateBytes) {
    return bad_file(
        format("chat template: {} bytes, more than the limit of {}", source.size(), kMaxTemplateBytes));
  }
  if (!is_utf8(source)) return bad_file("chat template: not UTF-8");
  ChatTemplate made;
  made.compiled_ = std::make_unique<Compiled>();
  made.compiled_->bos_token = std::move(bos_token);
  made.compiled_->eos_token = std::move(eos_token);
  try {
    made.compiled_->body = jinja::parse(source);
  } catch (const jinja::TemplateError& error) {
    return bad_file(describe(error));
  }
  return made;
}

Result<RenderedChat> ChatTemplate::render(const std::vector<TemplateMessage>& messages,
                                          const RenderOptions& options) const {
  jinja::List list;
  for (const TemplateMessage& message : messages) {
    jinja::Dict dict;
    dict.set("role", jinja::Value::outside(message.role));
    dict.set("content", jinja::Value::outside(message.content));
    if (!message.name.empty()) dict.set("name", jinja::Value::outside(message.name));
    list.items.emplace_back(std::move(dict));
  }
  return render(jinja::Value(std::move(list)), options);
}

Result<RenderedChat> ChatTemplate::render(const jinja::Value& messages, const RenderOptions& options) const {
  jinja::Dict context;
  context.set("messages", messages);
  context.set("add_generation_prompt", options.add_generation_prompt);
  context.set("bos_token", jinja::Value(compiled_->bos_token));
  context.set("eos_token", jinja::Value(compiled_->eos_token));
  for (const auto& [name, value] : options.variables) {
    if (context.find(name) != nullptr || jinja::has_function(name)) {
      return invalid_argument(
          format("chat_template_kwargs: {} is set by the server and cannot be replaced", quoted(name)),
          "chat_template_kwargs");
    }
    context.set(name, value);
  }
  const jinja::Limits limits{.steps = options.limits.steps,
                             .range = options.limits.range,
                             .recursion = options.limits.recursion,
                             .output_bytes = options.limits.output_bytes};
  try {
    jinja::Str out = jinja::Interpreter(limits, context, options.now).render(compiled_->body);
    RenderedChat chat;
    size_t at = 0;
    for (const TextSpan& span : out.tainted) {
      if (span.begin > at) chat.trusted.push_back({at, span.begin});
      at = span.end;
    }
    if (at < out.text.size()) chat.trusted.push_back({at, out.text.size()});
    chat.text = std::move(out.text);
    return chat;
  } catch (const jinja::TemplateError& error) {
    return invalid_argument(describe(error), "messages");
  }
}

std::vector<int32_t> encode_chat(const Tokenizer& tokenizer, const RenderedChat& chat, size_t* left_out) {
  return tokenizer.encode_spans(chat.text, chat.trusted, false, left_out);
}

}  // namespace tessera::tokenizer
