// Sampler: one row of logits to one token.
//
// Order of the steps, as vLLM has it: logit_bias and bans, repetition, presence and frequency penalties,
// temperature, then min_p, top_k and top_p on what remains, then one draw by inverse CDF. Log-probabilities
// are of the raw logits, before any of it.
//
// Invariants:
//  1. A pure function of its input: the random number is Philox(seed; stream, token index), so the token does
//  not
//     depend on the batch, the step or the thread (law 1).
//  2. Greedy ties, and ties in every sorted list, go to the lowest id.
//  3. A row with a NaN or an infinity is never sampled: `nonfinite` is set and no token is given.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/request.h"

namespace tessera::engine {

struct SampleInput {
  std::span<float> logits;  // [vocab]; overwritten
  const SamplingParams* params = nullptr;
  uint64_t seed = 0;
  uint32_t stream = 0;              // the sample's index among n
  uint32_t token_index = 0;         // of the token to be drawn, counted from the first generated one
  std::span<const int32_t> prompt;  // read only when needs_history(params)
  std::span<const int32_t> output;
  std::span<const int32_t> banned;  // ids that may not come now (ends of text before min_tokens)
};

struct SampleResult {
  int32_t token = -1;
  bool nonfinite = false;
  TokenLogprobs logprobs;  // filled when params->logprobs >= 0
};

// True when a row holds a NaN or an infinity.
bool any_nonfinite(std::span<const float> logits);
// True when the penalties need the tokens so far.
bool needs_history(const SamplingParams& params);

// Scratch that one thread reuses between rows.
struct SamplerScratch {
  std::vector<float> probabilities;
  std::vector<int32_t> candidates;
  std::vector<uint32_t> counts;
};

// Of `token` and the `top` likeliest, from raw logits [vocab]. REQUIRES: all finite.
TokenLogprobs log_probabilities(std::span<const float> logits, int32_t token, int top,
                                SamplerScratch& scratch);

SampleResult sample(const SampleInput& input, SamplerScratch& scratch);

}  // namespace tessera::engine
