// What a client asks of the engine and what it hears back. Plain data, used by the server and the command
// line.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tessera/status.h"

namespace tessera::engine {

// Names and meanings follow vLLM's SamplingParams and the OpenAI API. validate() checks every range.
struct SamplingParams {
  int max_tokens = 16;              // >= 1; the engine lowers it to what the context leaves
  int min_tokens = 0;               // no stop token, stop string or end before this many
  float temperature = 1.0f;         // 0: greedy (arg-max, ties to the lowest id)
  int top_k = 0;                    // 0 or -1: off
  float top_p = 1.0f;               // (0, 1]
  float min_p = 0.0f;               // [0, 1]
  float repetition_penalty = 1.0f;  // > 0, over prompt and output (llama.cpp's repeat_penalty)
  float presence_penalty = 0.0f;    // [-2, 2], over the output
  float frequency_penalty = 0.0f;   // [-2, 2], over the output
  std::vector<std::pair<int32_t, float>> logit_bias;  // (token id, [-100, 100])
  std::optional<uint64_t> seed;                       // absent: the engine draws one, see Output::seed
  int logprobs = -1;                                  // -1: none; 0..20: the chosen token's and the top k
  // The same for every token of the prompt but the first. Its rows are computed even when they are cached.
  int prompt_logprobs = -1;
  std::vector<std::string> stop;  // strings that end the answer and are cut from it
  std::vector<int32_t> stop_token_ids;
  bool include_stop_str_in_output = false;
  bool ignore_eos = false;
};

struct Limits {  // what a SamplingParams is checked against
  int vocab_size = 0;
  int max_model_len = 0;
  int max_n = 128;
};
// NaN-safe. The Status names the field (as the OpenAI API spells it), its value, the limit and the remedy.
Status validate(const SamplingParams& params, const Limits& limits);

struct Request {
  std::string id;               // unique among running requests; the server makes it
  std::vector<int32_t> prompt;  // >= 1 token
  SamplingParams sampling;
  int n = 1;               // parallel samples; sample i uses Philox stream i of the seed
  std::string tenant;      // derived from the API key by the server; "" when there are none
  std::string cache_salt;  // narrows sharing within the tenant
};

enum class FinishReason : uint8_t { none, stop, length, cancelled, error };
const char* name(FinishReason reason);  // "stop", "length", "abort", "error"

struct TokenLogprob {
  int32_t token = -1;
  float logprob = 0.0f;
};
struct TokenLogprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;  // descending; ties to the lowest id
};

// One piece of news about one sample. Text is whole code points; text that may become a stop string is held
// back.
struct Output {
  int index = 0;                        // sample 0..n-1
  std::vector<int32_t> tokens;          // new ones
  std::vector<TokenLogprobs> logprobs;  // one for each of `tokens` when asked for
  // With a sample's first token, when asked for: entry i is of prompt token i + 1. The samples share it.
  std::shared_ptr<const std::vector<TokenLogprobs>> prompt_logprobs;
  std::string text;  // newly certain text
  FinishReason finish = FinishReason::none;
  std::string stop_reason;  // the stop string or the stop token's id that ended it, if any
  Status error;             // not ok only with FinishReason::error
  uint64_t seed = 0;  // of the request, or the one below 2^53 that was drawn for it: sent back with the same
                      // request it gives the same tokens
  // Counted so far; cached_tokens is the part of the prompt whose K/V came out of the cache.
  int prompt_tokens = 0;
  int cached_tokens = 0;
  int completion_tokens = 0;  // of this sample
  bool last = false;          // the request's last output: every sample has finished
};

// Called on the engine's thread, in order, never after `last`. Must not block and must not throw.
using OutputSink = std::function<void(std::vector<Output>&&)>;

}  // namespace tessera::engine
