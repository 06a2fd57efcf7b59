#include <algorithm>
#include <array>

#include "core/format.h"
#include "server/call_common.h"

namespace tessera::server {
namespace json = boost::json;
namespace {

// [{"type":"text","text":...}, ...]: the texts joined by line ends.
Fault parse_parts(const json::array& parts, const std::string& param, std::string* out) {
  if (parts.empty())
    return invalid_value(param, format("{}: an empty array; send a string or text parts", param));
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string here = format("{}[{}]", param, i);
    if (!parts[i].is_object()) return invalid_type(here, "an object with type and text", kind_name(parts[i]));
    Fields fields(parts[i].get_object(), here + ".");
    std::string type, text;
    TESSERA_RETURN_IF_FAULT(fields.take_string("type", &type));
    if (type.empty()) return missing_field(fields.path("type"));
    if (type != "text") {
      return unsupported_field(fields.path("type"),
                               format("\"{}\" parts cannot be read, only text", type.substr(0, 32)));
    }
    if (!fields.has("text")) return missing_field(fields.path("text"));
    TESSERA_RETURN_IF_FAULT(fields.take_string("text", &text));
    TESSERA_RETURN_IF_FAULT(fields.finish());
    if (i > 0) *out += '\n';
    *out += text;
  }
  return std::nullopt;
}

Fault parse_message(const json::value& value, const std::string& param, engine::ChatMessage* out) {
  if (!value.is_object()) return invalid_type(param, "an object with role and content", kind_name(value));
  Fields fields(value.get_object(), param + ".");
  if (!fields.has("role")) return missing_field(fields.path("role"));
  TESSERA_RETURN_IF_FAULT(fields.take_string("role", &out->role));
  static constexpr std::array<std::string_view, 4> kRoles = {"system", "user", "assistant", "developer"};
  if (std::find(kRoles.begin(), kRoles.end(), out->role) == kRoles.end()) {
    return invalid_value(
        fields.path("role"),
        format("{}: \"{}\" is not allowed: it must be system, developer, user or assistant; change it",
               fields.path("role"), out->role.substr(0, 32)));
  }
  // OpenAI's newer name of the same thing; templates know only the old one.
  if (out->role == "developer") out->role = "system";
  const json::value* content = fields.take("content");
  if (content == nullptr) return missing_field(fields.path("content"));
  if (content->is_string()) {
    out->content = std::string_view(content->get_string());
  } else if (content->is_array()) {
    TESSERA_RETURN_IF_FAULT(parse_parts(content->get_array(), fields.path("content"), &out->content));
  } else {
    return invalid_type(fields.path("content"), "a string or an array of text parts", kind_name(*content));
  }
  TESSERA_RETURN_IF_FAULT(fields.take_string("name", &out->name));
  for (const char* name : {"tool_calls", "tool_call_id", "function_call", "audio", "refusal"}) {
    TESSERA_RETURN_IF_FAULT(fields.refuse(name, "remove it"));
  }
  return fields.finish();
}

Fault parse_logprobs(Fields& fields, Call* call) {
  bool logprobs = false;
  int top = 0;
  TESSERA_RETURN_IF_FAULT(fields.take_bool("logprobs", &logprobs));
  TESSERA_RETURN_IF_FAULT(fields.take_int("top_logprobs", 0, 20, &top));
  if (fields.has("top_logprobs") && !logprobs) {
    return invalid_value("top_logprobs",
                         "top_logprobs: only allowed with logprobs: true; set it or leave this out");
  }
  if (logprobs) call->sampling.logprobs = top;
  return std::nullopt;
}

Fault parse_max_tokens(Fields& fields, const CallRules& rules, Call* call) {
  if (fields.has("max_tokens") && fields.has("max_completion_tokens")) {
    return invalid_value("max_completion_tokens",
                         "max_completion_tokens: the same as max_tokens, which is there too; send one");
  }
  call->sampling.max_tokens =
      std::max(1, rules.limits.max_model_len);  // the engine lowers it to what is left
  TESSERA_RETURN_IF_FAULT(fields.take_int("max_tokens", INT32_MIN, INT32_MAX, &call->sampling.max_tokens));
  return fields.take_int("max_completion_tokens", INT32_MIN, INT32_MAX, &call->sampling.max_tokens);
}

Fault parse_response_format(Fields& fields) {
  const json::value* form = fields.take("response_format");
  if (form == nullptr) return std::nullopt;
  if (!form->is_object()) return invalid_type("response_format", "an object", kind_name(*form));
  Fields inner(form->get_object(), "response_format.");
  std::string type;
  TESSERA_RETURN_IF_FAULT(inner.take_string("type", &type));
  if (type != "text")
    return unsupported_field("response_format", "only {\"type\": \"text\"} is; leave it out");
  return inner.finish();
}

}  // namespace

Fault parse_messages(const json::value& value, std::vector<engine::ChatMessage>* out) {
  if (!value.is_array()) return invalid_type("messages", "an array of messages", kind_name(value));
  if (value.get_array().empty())
    return invalid_value("messages", "messages: empty; send at least one message");
  for (size_t i = 0; i < value.get_array().size(); ++i) {
    engine::ChatMessage message;
    TESSERA_RETURN_IF_FAULT(parse_message(value.get_array()[i], format("messages[{}]", i), &message));
    out->push_back(std::move(message));
  }
  return std::nullopt;
}

Fault parse_chat(const json::object& body, const CallRules& rules, Call* call) {
  Fields fields(body);
  call->chat = true;
  TESSERA_RETURN_IF_FAULT(parse_shared(fields, rules, call));
  const json::value* messages = fields.take("messages");
  if (messages == nullptr) return missing_field("messages");
  TESSERA_RETURN_IF_FAULT(parse_messages(*messages, &call->messages));
  TESSERA_RETURN_IF_FAULT(fields.take_bool("add_generation_prompt", &call->add_generation_prompt));
  TESSERA_RETURN_IF_FAULT(parse_max_tokens(fields, rules, call));
  TESSERA_RETURN_IF_FAULT(parse_logprobs(fields, call));
  TESSERA_RETURN_IF_FAULT(parse_response_format(fields));
  for (const char* name :
       {"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "audio", "modalities",
        "prediction", "reasoning_effort", "service_tier", "verbosity", "web_search_options", "chat_template",
        "chat_template_kwargs", "continue_final_message", "prompt_logprobs", "structured_outputs"}) {
    TESSERA_RETURN_IF_FAULT(fields.refuse(name, "leave it out"));
  }
  TESSERA_RETURN_IF_FAULT(fields.finish());
  return check_sampling(fields, rules, *call);
}

}  // namespace tessera::server
