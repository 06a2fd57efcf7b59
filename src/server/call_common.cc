#include "server/call_common.h"

#include <charconv>
#include <cmath>
#include <limits>

#include "core/format.h"

namespace tessera::server {
namespace json = boost::json;
namespace {

constexpr int64_t kMinInt = std::numeric_limits<int32_t>::min();
constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
constexpr size_t kMaxSaltBytes = 256;

Fault parse_stop(Fields& fields, std::vector<std::string>* out) {
  const json::value* stop = fields.take("stop");
  if (stop == nullptr) return std::nullopt;
  if (stop->is_string()) {
    out->assign(1, std::string(std::string_view(stop->get_string())));
    return std::nullopt;
  }
  if (!stop->is_array()) return invalid_type("stop", "a string or an array of strings", kind_name(*stop));
  for (size_t i = 0; i < stop->get_array().size(); ++i) {
    const json::value& entry = stop->get_array()[i];
    if (!entry.is_string()) return invalid_type(format("stop[{}]", i), "a string", kind_name(entry));
    out->emplace_back(std::string_view(entry.get_string()));
  }
  return std::nullopt;
}

Fault parse_bias(Fields& fields, std::vector<std::pair<int32_t, float>>* out) {
  const json::value* bias = fields.take("logit_bias");
  if (bias == nullptr) return std::nullopt;
  if (!bias->is_object())
    return invalid_type("logit_bias", "an object of token id to bias", kind_name(*bias));
  for (const auto& member : bias->get_object()) {
    const std::string_view key = member.key();
    const std::string param = format("logit_bias[{}]", key.substr(0, 32));
    int32_t token = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token);
    if (error != std::errc() || end != key.data() + key.size()) {
      return invalid_value(param, format("{}: the key is no token id; take ids from /tokenize", param));
    }
    if (!member.value().is_number()) return invalid_type(param, "a number", kind_name(member.value()));
    out->emplace_back(token, static_cast<float>(member.value().to_number<double>()));
  }
  return std::nullopt;
}

Fault parse_stream(Fields& fields, Call* call) {
  TESSERA_RETURN_IF_FAULT(fields.take_bool("stream", &call->stream));
  const json::value* options = fields.take("stream_options");
  if (options == nullptr) return std::nullopt;
  if (!options->is_object()) return invalid_type("stream_options", "an object", kind_name(*options));
  if (!call->stream) {
    return invalid_value("stream_options",
                         "stream_options: only allowed with stream: true; set it or leave this out");
  }
  Fields inner(options->get_object(), "stream_options.");
  TESSERA_RETURN_IF_FAULT(inner.take_bool("include_usage", &call->include_usage));
  return inner.finish();
}

// The same idea under two names: vLLM's and llama.cpp's. Both at once is a fault.
Fault parse_repetition(Fields& fields, engine::SamplingParams* sampling) {
  if (fields.has("repetition_penalty") && fields.has("repeat_penalty")) {
    return invalid_value("repeat_penalty",
                         "repeat_penalty: the same as repetition_penalty, which is there too; send one");
  }
  TESSERA_RETURN_IF_FAULT(fields.take_float("repetition_penalty", &sampling->repetition_penalty));
  return fields.take_float("repeat_penalty", &sampling->repetition_penalty);
}

Fault parse_choices(Fields& fields, const CallRules& rules, Call* call) {
  TESSERA_RETURN_IF_FAULT(fields.take_int("n", 1, rules.limits.max_n, &call->n));
  int best_of = call->n;
  TESSERA_RETURN_IF_FAULT(fields.take_int("best_of", kMinInt, kMaxInt, &best_of));
  if (best_of != call->n) {
    return invalid_value(
        "best_of", format("best_of: {} is not allowed: it must equal n, {}; leave it out", best_of, call->n));
  }
  return std::nullopt;
}

Fault parse_salt(Fields& fields, Call* call) {
  TESSERA_RETURN_IF_FAULT(fields.take_string("cache_salt", &call->cache_salt));
  if (fields.has("cache_salt") && call->cache_salt.empty()) {
    return invalid_value("cache_salt", "cache_salt: \"\" is not allowed: it must not be empty; leave it out");
  }
  if (call->cache_salt.size() > kMaxSaltBytes) {
    return invalid_value("cache_salt", format("cache_salt: {} bytes, but at most {} are allowed; shorten it",
                                              call->cache_salt.size(), kMaxSaltBytes));
  }
  return std::nullopt;
}

}  // namespace

Fault check_model(Fields& fields, const std::string& served) {
  std::string model = served;
  TESSERA_RETURN_IF_FAULT(fields.take_string("model", &model));
  if (model == served) return std::nullopt;
  return ApiError{
      .status = 404,
      .code = "model_not_found",
      .param = "model",
      .message = format("model: \"{}\" does not exist; \"{}\" is served here", model.substr(0, 64), served)};
}

Fault parse_shared(Fields& fields, const CallRules& rules, Call* call) {
  engine::SamplingParams& sampling = call->sampling;
  TESSERA_RETURN_IF_FAULT(check_model(fields, rules.model));
  TESSERA_RETURN_IF_FAULT(parse_choices(fields, rules, call));
  TESSERA_RETURN_IF_FAULT(parse_stream(fields, call));
  TESSERA_RETURN_IF_FAULT(fields.take_int("min_tokens", kMinInt, kMaxInt, &sampling.min_tokens));
  TESSERA_RETURN_IF_FAULT(fields.take_float("temperature", &sampling.temperature));
  TESSERA_RETURN_IF_FAULT(fields.take_int("top_k", kMinInt, kMaxInt, &sampling.top_k));
  TESSERA_RETURN_IF_FAULT(fields.take_float("top_p", &sampling.top_p));
  TESSERA_RETURN_IF_FAULT(fields.take_float("min_p", &sampling.min_p));
  TESSERA_RETURN_IF_FAULT(parse_repetition(fields, &sampling));
  TESSERA_RETURN_IF_FAULT(fields.take_float("presence_penalty", &sampling.presence_penalty));
  TESSERA_RETURN_IF_FAULT(fields.take_float("frequency_penalty", &sampling.frequency_penalty));
  TESSERA_RETURN_IF_FAULT(parse_bias(fields, &sampling.logit_bias));
  uint64_t seed = 0;
  bool seeded = false;
  TESSERA_RETURN_IF_FAULT(fields.take_uint64("seed", &seed, &seeded));
  if (seeded) sampling.seed = seed;
  TESSERA_RETURN_IF_FAULT(parse_stop(fields, &sampling.stop));
  TESSERA_RETURN_IF_FAULT(fields.take_ids("stop_token_ids", &sampling.stop_token_ids));
  TESSERA_RETURN_IF_FAULT(
      fields.take_bool("include_stop_str_in_output", &sampling.include_stop_str_in_output));
  TESSERA_RETURN_IF_FAULT(fields.take_bool("ignore_eos", &sampling.ignore_eos));
  TESSERA_RETURN_IF_FAULT(fields.take_bool("return_token_ids", &call->return_token_ids));
  TESSERA_RETURN_IF_FAULT(parse_salt(fields, call));
  fields.ignore({"user", "metadata", "store"});
  return std::nullopt;
}

Fault check_sampling(const Fields& fields, const CallRules& rules, const Call& call) {
  const Status status = engine::validate(call.sampling, rules.limits);
  if (status.ok()) return std::nullopt;
  ApiError error = from_status(status);
  const auto rename = [&](std::string_view from, std::string_view to) {
    if (error.param != from) return;
    if (error.message.starts_with(from)) error.message.replace(0, from.size(), to);
    error.param = to;
  };
  if (fields.has("max_completion_tokens")) rename("max_tokens", "max_completion_tokens");
  if (fields.has("repeat_penalty")) rename("repetition_penalty", "repeat_penalty");
  if (call.chat) rename("logprobs", "top_logprobs");
  return error;
}

}  // namespace tessera::server
