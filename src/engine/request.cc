// The ranges of what a client may ask for. Every comparison is written so that NaN fails.
//
// The bounds are the OpenAI API's where it has them; where it has none they keep one request from costing
// what a hundred do (16 stop strings, 1,024 biases), or keep float32 arithmetic finite (temperature,
// penalty).
#include "engine/request.h"

#include "core/format.h"

namespace tessera::engine {
namespace {

constexpr float kMinTemperature = 1e-3f;  // below it logits / temperature may overflow; 0 is greedy
constexpr float kMaxTemperature = 2.0f;
constexpr float kMinRepetition = 0.01f;
constexpr float kMaxRepetition = 10.0f;
constexpr int kMaxLogprobs = 20;
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 256;
constexpr size_t kMaxStopTokens = 64;
constexpr size_t kMaxBiases = 1024;
constexpr float kMaxBias = 100.0f;

template <typename T>
Status outside(const char* field, T value, const std::string& limit, const char* remedy) {
  return invalid_argument(format("{}: {} is not allowed: it must be {}; {}", field, value, limit, remedy),
                          field);
}

Status check_range(const char* field, float value, float low, float high) {
  if (value >= low && value <= high) return {};
  return outside(field, value, format("between {} and {}", low, high),
                 "send a value inside, or leave it out");
}

Status check_token(const char* field, int32_t token, const Limits& limits) {
  if (token >= 0 && token < limits.vocab_size) return {};
  return outside(field, token, format("a token id from 0 to {}", limits.vocab_size - 1),
                 "take ids from /tokenize");
}

Status check_stops(const SamplingParams& params, const Limits& limits) {
  if (params.stop.size() > kMaxStops) {
    return outside("stop", format("{} strings", params.stop.size()), format("at most {} strings", kMaxStops),
                   "send fewer");
  }
  for (const std::string& text : params.stop) {
    if (text.empty()) return outside("stop", "\"\"", "a string of at least 1 byte", "remove the empty one");
    if (text.size() > kMaxStopBytes) {
      return outside("stop", format("a string of {} bytes", text.size()),
                     format("at most {} bytes", kMaxStopBytes), "shorten it");
    }
  }
  if (params.stop_token_ids.size() > kMaxStopTokens) {
    return outside("stop_token_ids", format("{} ids", params.stop_token_ids.size()),
                   format("at most {} ids", kMaxStopTokens), "send fewer");
  }
  for (const int32_t token : params.stop_token_ids) {
    TESSERA_RETURN_IF_ERROR(check_token("stop_token_ids", token, limits));
  }
  return {};
}

Status check_biases(const SamplingParams& params, const Limits& limits) {
  if (params.logit_bias.size() > kMaxBiases) {
    return outside("logit_bias", format("{} entries", params.logit_bias.size()),
                   format("at most {} entries", kMaxBiases), "send fewer");
  }
  for (const auto& [token, bias] : params.logit_bias) {
    TESSERA_RETURN_IF_ERROR(check_token("logit_bias", token, limits));
    TESSERA_RETURN_IF_ERROR(check_range("logit_bias", bias, -kMaxBias, kMaxBias));
  }
  return {};
}

}  // namespace

Status validate(const SamplingParams& params, const Limits& limits) {
  if (params.max_tokens < 1) return outside("max_tokens", params.max_tokens, "at least 1", "raise it");
  if (params.min_tokens < 0 || params.min_tokens > params.max_tokens) {
    return outside("min_tokens", params.min_tokens, format("between 0 and max_tokens, {}", params.max_tokens),
                   "lower it or raise max_tokens");
  }
  if (params.temperature != 0.0f) {
    if (!(params.temperature >= kMinTemperature && params.temperature <= kMaxTemperature)) {
      return outside("temperature", params.temperature,
                     format("0 or between {} and {}", kMinTemperature, kMaxTemperature), "use 0 for greedy");
    }
  }
  if (params.top_k < -1) return outside("top_k", params.top_k, "at least -1", "use 0 or -1 to switch it off");
  if (!(params.top_p > 0.0f && params.top_p <= 1.0f)) {
    return outside("top_p", params.top_p, "above 0 and at most 1", "use 1 to switch it off");
  }
  TESSERA_RETURN_IF_ERROR(check_range("min_p", params.min_p, 0.0f, 1.0f));
  TESSERA_RETURN_IF_ERROR(
      check_range("repetition_penalty", params.repetition_penalty, kMinRepetition, kMaxRepetition));
  TESSERA_RETURN_IF_ERROR(check_range("presence_penalty", params.presence_penalty, -2.0f, 2.0f));
  TESSERA_RETURN_IF_ERROR(check_range("frequency_penalty", params.frequency_penalty, -2.0f, 2.0f));
  for (const auto& [field, value] :
       {std::pair{"logprobs", params.logprobs}, std::pair{"prompt_logprobs", params.prompt_logprobs}}) {
    if (value < -1 || value > kMaxLogprobs) {
      return outside(field, value, format("between 0 and {}", kMaxLogprobs), "lower it");
    }
  }
  TESSERA_RETURN_IF_ERROR(check_stops(params, limits));
  return check_biases(params, limits);
}

const char* name(FinishReason reason) {
  switch (reason) {
    case FinishReason::none:
      return "none";
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::cancelled:
      return "abort";
    case FinishReason::error:
      return "error";
  }
  return "none";
}

}  // namespace tessera::engine
