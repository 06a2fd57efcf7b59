#include "core/format.h"
#include "server/call_common.h"

namespace tessera::server {
namespace json = boost::json;
namespace {

Fault check_prompt_ids(const std::string& param, const std::vector<int32_t>& ids,
                       const engine::Limits& limits) {
  if (ids.empty()) return invalid_value(param, format("{}: empty; send at least one token", param));
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < limits.vocab_size) continue;
    return invalid_value(param,
                         format("{}: token id {} at index {} is not allowed: it must be below {}; take ids "
                                "from /tokenize",
                                param, ids[i], i, limits.vocab_size));
  }
  return std::nullopt;
}

Fault parse_one(const json::value& value, const std::string& param, const CallRules& rules,
                PromptInput* out) {
  if (value.is_string()) {
    if (value.get_string().empty()) {
      return invalid_value(param, format("{}: empty; send at least one character", param));
    }
    *out = std::string(std::string_view(value.get_string()));
    return std::nullopt;
  }
  if (!value.is_array()) return invalid_type(param, "a string or an array of token ids", kind_name(value));
  std::vector<int32_t> ids;
  TESSERA_RETURN_IF_FAULT(read_ids(value, param, &ids));
  TESSERA_RETURN_IF_FAULT(check_prompt_ids(param, ids, rules.limits));
  *out = std::move(ids);
  return std::nullopt;
}

// A string, token ids, or an array of either.
Fault parse_prompt(Fields& fields, const CallRules& rules, Call* call) {
  const json::value* prompt = fields.take("prompt");
  if (prompt == nullptr) return missing_field("prompt");
  const json::array* array = prompt->if_array();
  const bool several = array != nullptr && !array->empty() && !(*array)[0].is_number();
  if (!several) {
    PromptInput input;
    TESSERA_RETURN_IF_FAULT(parse_one(*prompt, "prompt", rules, &input));
    call->prompts.push_back(std::move(input));
    return std::nullopt;
  }
  const size_t most = static_cast<size_t>(rules.limits.max_n) / static_cast<size_t>(call->n);
  if (array->size() > most) {
    return invalid_value(
        "prompt", format("prompt: {} prompts with n = {} are more than {} choices; send fewer", array->size(),
                         call->n, rules.limits.max_n));
  }
  for (size_t i = 0; i < array->size(); ++i) {
    PromptInput input;
    TESSERA_RETURN_IF_FAULT(parse_one((*array)[i], format("prompt[{}]", i), rules, &input));
    call->prompts.push_back(std::move(input));
  }
  return std::nullopt;
}

}  // namespace

Fault parse_completion(const json::object& body, const CallRules& rules, Call* call) {
  Fields fields(body);
  call->chat = false;
  TESSERA_RETURN_IF_FAULT(parse_shared(fields, rules, call));
  TESSERA_RETURN_IF_FAULT(parse_prompt(fields, rules, call));
  TESSERA_RETURN_IF_FAULT(fields.take_int("max_tokens", INT32_MIN, INT32_MAX, &call->sampling.max_tokens));
  TESSERA_RETURN_IF_FAULT(fields.take_int("logprobs", 0, 20, &call->sampling.logprobs));
  TESSERA_RETURN_IF_FAULT(fields.take_bool("echo", &call->echo));
  if (call->echo) {
    engine::SamplingParams& sampling = call->sampling;
    // One prompt's log-probabilities may be megabytes of JSON; nobody needs them n times.
    if (sampling.logprobs >= 0 && call->n > 1) {
      return invalid_value("n", format("n: {} is not allowed with echo and logprobs: it must be 1", call->n));
    }
    sampling.prompt_logprobs = sampling.logprobs;
    call->prompt_only = sampling.max_tokens == 0 && sampling.min_tokens == 0;
    if (call->prompt_only) sampling.max_tokens = 1;
  }
  TESSERA_RETURN_IF_FAULT(fields.refuse("suffix", "leave it out, text can only be continued at its end"));
  TESSERA_RETURN_IF_FAULT(fields.refuse("response_format", "leave it out"));
  TESSERA_RETURN_IF_FAULT(fields.finish());
  return check_sampling(fields, rules, *call);
}

}  // namespace tessera::server
