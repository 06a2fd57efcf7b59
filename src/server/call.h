// Call: a parsed /v1/completions or /v1/chat/completions, before anything is tokenised.
#pragma once

#include <boost/json/object.hpp>
#include <string>
#include <variant>
#include <vector>

#include "engine/request.h"
#include "engine/service.h"
#include "server/api_error.h"

namespace tessera::server {

// A prompt as the client gave it: text, or token ids.
using PromptInput = std::variant<std::string, std::vector<int32_t>>;

struct Call {
  bool chat = false;
  // Completions: one engine request for each prompt, each with its own n choices.
  std::vector<PromptInput> prompts;
  bool echo = false;
  bool prompt_only = false;  // max_tokens 0: the one token that the engine draws is left out of the answer
  // Chat.
  std::vector<engine::ChatMessage> messages;
  bool add_generation_prompt = true;

  engine::SamplingParams sampling;
  int n = 1;
  bool stream = false;
  bool include_usage = false;
  bool return_token_ids = false;
  std::string cache_salt;
};

struct CallRules {
  engine::Limits limits;
  std::string model;  // the only name that `model` may hold
};

// Each takes the body's object apart; every field is applied or a fault.
Fault parse_completion(const boost::json::object& body, const CallRules& rules, Call* call);
Fault parse_chat(const boost::json::object& body, const CallRules& rules, Call* call);

// The `messages` array alone (also of /tokenize).
Fault parse_messages(const boost::json::value& value, std::vector<engine::ChatMessage>* out);
// `model`: absent, or the served name; else 404.
class Fields;
Fault check_model(Fields& fields, const std::string& served);

struct TokenizeCall {
  std::string text;
  bool chat = false;
  std::vector<engine::ChatMessage> messages;
  bool add_generation_prompt = true;
  bool add_special = true;
  bool parse_special = false;
};
Fault parse_tokenize(const boost::json::object& body, const CallRules& rules, TokenizeCall* call);
Fault parse_detokenize(const boost::json::object& body, const CallRules& rules, std::vector<int32_t>* tokens);

}  // namespace tessera::server
