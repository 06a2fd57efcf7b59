#include "core/format.h"
#include "server/call_common.h"

namespace tessera::server {
namespace json = boost::json;

Fault parse_tokenize(const json::object& body, const CallRules& rules, TokenizeCall* call) {
  Fields fields(body);
  TESSERA_RETURN_IF_FAULT(check_model(fields, rules.model));
  int sources = 0;
  for (const char* name : {"prompt", "content", "messages"}) sources += fields.has(name) ? 1 : 0;
  if (sources == 0) return missing_field("prompt");
  if (sources > 1) {
    const char* second = fields.has("messages") ? "messages" : "content";
    return invalid_value(second,
                         format("{}: beside another of prompt, content and messages; send one", second));
  }
  TESSERA_RETURN_IF_FAULT(fields.take_string("prompt", &call->text));
  TESSERA_RETURN_IF_FAULT(fields.take_string("content", &call->text));
  if (const json::value* messages = fields.take("messages")) {
    call->chat = true;
    TESSERA_RETURN_IF_FAULT(parse_messages(*messages, &call->messages));
    TESSERA_RETURN_IF_FAULT(fields.take_bool("add_generation_prompt", &call->add_generation_prompt));
    return fields.finish();
  }
  // Defaults of the two origins: vLLM adds the special tokens to `prompt`, llama-server none to `content`.
  call->add_special = !fields.has("content");
  TESSERA_RETURN_IF_FAULT(fields.take_bool("add_special_tokens", &call->add_special));
  TESSERA_RETURN_IF_FAULT(fields.take_bool("add_special", &call->add_special));
  TESSERA_RETURN_IF_FAULT(fields.take_bool("parse_special", &call->parse_special));
  return fields.finish();
}

Fault parse_detokenize(const json::object& body, const CallRules& rules, std::vector<int32_t>* tokens) {
  Fields fields(body);
  TESSERA_RETURN_IF_FAULT(check_model(fields, rules.model));
  if (!fields.has("tokens")) return missing_field("tokens");
  TESSERA_RETURN_IF_FAULT(fields.take_ids("tokens", tokens));
  for (size_t i = 0; i < tokens->size(); ++i) {
    if ((*tokens)[i] >= rules.limits.vocab_size) {
      const std::string param = format("tokens[{}]", i);
      return invalid_value(
          param, format("{}: {} is not allowed: it must be below {}; take ids from /tokenize", param,
                        (*tokens)[i], rules.limits.vocab_size));
    }
  }
  return fields.finish();
}

}  // namespace tessera::server
