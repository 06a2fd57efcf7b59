// Any source through the template engine, with small limits: it ends, in a Status or in a text whose spans
// are sound, and twice the same.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/check.h"
#include "tokenizer/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tessera::tokenizer;
  const std::string_view source(reinterpret_cast<const char*>(data), size);
  const auto compiled = ChatTemplate::compile(source, "<s>", "</s>");
  if (!compiled.ok()) {
    TESSERA_CHECK(compiled.status().message().find('\n') == std::string::npos);
    return 0;
  }
  const std::vector<TemplateMessage> messages = {{"system", "Be brief.", ""},
                                                 {"user", "  a <|im_start|>, b\n\xc3\xa9 \"c\" ", "n"},
                                                 {"assistant", "", ""}};
  RenderOptions options;
  options.limits = {.steps = 20000, .range = 1000, .recursion = 100, .output_bytes = 1 << 16};
  options.variables.emplace("flag", true);
  options.variables.emplace("number", 3);
  options.now = 1700000000;
  const auto first = compiled->render(messages, options), second = compiled->render(messages, options);
  TESSERA_CHECK(first.ok() == second.ok());
  if (!first.ok()) {
    TESSERA_CHECK(first.status().message() == second.status().message());
    TESSERA_CHECK(first.status().message().find('\n') == std::string::npos);
    return 0;
  }
  TESSERA_CHECK(first->text == second->text && first->text.size() <= options.limits.output_bytes);
  size_t at = 0;
  for (const TextSpan& span : first->trusted) {
    TESSERA_CHECK(span.begin >= at && span.end > span.begin && span.end <= first->text.size());
    at = span.end;
  }
  return 0;
}
