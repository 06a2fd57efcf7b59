// Any bytes as the body of a request. The first byte chooses the route; the rest is parsed as the server
// parses it. A fault names a field in one line of valid UTF-8; a call that passes keeps what the engine is
// promised.
#include <cstdlib>

#include "core/utf8.h"
#include "server/call.h"
#include "server/json_value.h"

namespace {

using namespace tessera;
using namespace tessera::server;

// Assertions in every build: a broken promise is a crash for the fuzzer.
void require(bool condition) {
  if (!condition) std::abort();
}

void require_answerable(const ApiError& error) {
  require(error.status >= 400 && error.status < 500);
  require(!error.code.empty() && !error.message.empty());
  require(error.message.size() < 1000);
  const std::string body = error_body(error);
  require(is_utf8(body) && body.find('\n') == std::string::npos);
  boost::json::value value;
  require(!parse_json(body, {}, &value));
}

void require_valid(const Call& call, const CallRules& rules) {
  require(engine::validate(call.sampling, rules.limits).ok());
  require(call.n >= 1 && call.n <= rules.limits.max_n);
  require(call.chat ? !call.messages.empty() : !call.prompts.empty());
  require(call.prompts.size() * static_cast<size_t>(call.n) <= static_cast<size_t>(rules.limits.max_n));
  require(call.cache_salt.size() <= 256);
  for (const PromptInput& prompt : call.prompts) {
    if (const auto* text = std::get_if<std::string>(&prompt)) {
      require(!text->empty() && is_utf8(*text));
      continue;
    }
    for (const int32_t id : std::get<std::vector<int32_t>>(prompt))
      require(id >= 0 && id < rules.limits.vocab_size);
  }
  for (const engine::ChatMessage& message : call.messages)
    require(is_utf8(message.content) && is_utf8(message.name));
  for (const std::string& stop : call.sampling.stop) require(is_utf8(stop));
}

Fault parse(char route, const boost::json::object& body, const CallRules& rules) {
  if (route == 't') {
    TokenizeCall call;
    const Fault fault = parse_tokenize(body, rules, &call);
    if (!fault) require(is_utf8(call.text));
    return fault;
  }
  if (route == 'd') {
    std::vector<int32_t> tokens;
    const Fault fault = parse_detokenize(body, rules, &tokens);
    for (const int32_t id : tokens) require(fault || (id >= 0 && id < rules.limits.vocab_size));
    return fault;
  }
  Call call;
  const Fault fault = route == 'm' ? parse_chat(body, rules, &call) : parse_completion(body, rules, &call);
  if (!fault) require_valid(call, rules);
  return fault;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const CallRules rules{.limits = {.vocab_size = 1000, .max_model_len = 4096}, .model = "fake-model"};
  const std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  boost::json::value value;
  Fault fault = parse_json(body, {.depth = 64, .values = 10'000}, &value);
  if (!fault) {
    require(is_utf8(body));
    if (value.is_object()) fault = parse(static_cast<char>(data[0]), value.get_object(), rules);
  }
  if (fault) require_answerable(*fault);
  return 0;
}
