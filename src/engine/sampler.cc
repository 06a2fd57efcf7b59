#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/check.h"
#include "core/philox.h"

namespace tessera::engine {
namespace {

// Integer passes, because the compiler may vectorise those and must not reorder float comparisons.
int32_t bits_of(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Finite floats in the order of signed integers; both zeros are one value.
int32_t order_of(float value) {
  const int32_t bits = bits_of(value + 0.0f);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

int32_t argmax(std::span<const float> logits) {
  int32_t best = INT32_MIN;
  for (const float value : logits) best = std::max(best, order_of(value));
  for (size_t i = 0; i < logits.size(); ++i) {
    if (order_of(logits[i]) == best) return static_cast<int32_t>(i);
  }
  return -1;
}

void fill_logprobs(std::span<const float> logits, int top, SamplerScratch& scratch, TokenLogprobs* out,
                   double* log_normaliser) {
  const float peak = logits[static_cast<size_t>(argmax(logits))];
  double sum = 0.0;
  for (const float value : logits) sum += std::exp(static_cast<double>(value - peak));
  *log_normaliser = static_cast<double>(peak) + std::log(sum);
  std::vector<int32_t>& ids = scratch.candidates;
  ids.resize(logits.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  const auto higher = [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x > y || (x == y && a < b);
  };
  const size_t count = std::min<size_t>(static_cast<size_t>(top), ids.size());
  std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count), ids.end(), higher);
  for (size_t i = 0; i < count; ++i) {
    const double value = logits[static_cast<size_t>(ids[i])];
    out->top.push_back({ids[i], static_cast<float>(value - *log_normaliser)});
  }
}

void apply_penalties(const SampleInput& input, SamplerScratch& scratch) {
  const SamplingParams& params = *input.params;
  std::span<float> logits = input.logits;
  // counts: bit 31 = seen in the prompt, low bits = times in the output.
  std::vector<uint32_t>& counts = scratch.counts;
  counts.assign(logits.size(), 0);
  for (const int32_t token : input.prompt) counts[static_cast<size_t>(token)] |= 0x80000000u;
  for (const int32_t token : input.output) ++counts[static_cast<size_t>(token)];
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] == 0) continue;
    float& logit = logits[i];
    if (params.repetition_penalty != 1.0f) {
      logit = logit > 0.0f ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    }
    const uint32_t times = counts[i] & 0x7fffffffu;
    if (times != 0) {
      logit -= params.frequency_penalty * static_cast<float>(times);
      logit -= params.presence_penalty;
    }
  }
}

double uniform(const SampleInput& input) {
  const auto words = philox4x32({input.token_index, input.stream, 0x73616d70u, 0},
                                {static_cast<uint32_t>(input.seed), static_cast<uint32_t>(input.seed >> 32)});
  // 53 bits in [0, 1).
  const uint64_t wide = (uint64_t{words[0]} << 21) ^ (words[1] >> 11);
  return static_cast<double>(wide) * 0x1p-53;
}

// Draws from `ids` (in their order) with weights `weight`.
int32_t draw(std::span<const int32_t> ids, std::span<const float> weight, double u) {
  double total = 0.0;
  for (const int32_t id : ids) total += weight[static_cast<size_t>(id)];
  const double target = u * total;
  double sum = 0.0;
  for (const int32_t id : ids) {
    sum += weight[static_cast<size_t>(id)];
    if (sum > target) return id;
  }
  // Rounding may leave the sum a hair under the target: the last id with weight.
  for (size_t i = ids.size(); i-- > 0;) {
    if (weight[static_cast<size_t>(ids[i])] > 0.0f) return ids[i];
  }
  return -1;
}

int32_t draw_filtered(const SampleInput& input, SamplerScratch& scratch) {
  const SamplingParams& params = *input.params;
  const std::span<const float> logits = input.logits;
  const size_t vocab = logits.size();
  const float peak = logits[static_cast<size_t>(argmax(logits))];
  const float inverse_temperature = 1.0f / params.temperature;

  std::vector<float>& weight = scratch.probabilities;
  weight.resize(vocab);
  for (size_t i = 0; i < vocab; ++i) weight[i] = std::exp((logits[i] - peak) * inverse_temperature);

  // The best token has weight 1, so min_p is a bound on the weight itself.
  const bool filter_k = params.top_k > 0 && static_cast<size_t>(params.top_k) < vocab;
  const bool filter_p = params.top_p < 1.0f;
  std::vector<int32_t>& ids = scratch.candidates;
  ids.clear();
  for (size_t i = 0; i < vocab; ++i) {
    if (weight[i] >= params.min_p && weight[i] > 0.0f) ids.push_back(static_cast<int32_t>(i));
  }
  if (!filter_k && !filter_p) return draw(ids, weight, uniform(input));

  const auto likelier = [&](int32_t a, int32_t b) {
    const float x = weight[static_cast<size_t>(a)], y = weight[static_cast<size_t>(b)];
    return x > y || (x == y && a < b);
  };
  if (filter_k && ids.size() > static_cast<size_t>(params.top_k)) {
    const auto middle = ids.begin() + params.top_k;
    std::nth_element(ids.begin(), middle, ids.end(), likelier);
    ids.erase(middle, ids.end());
  }
  if (filter_p) {
    // top_p is a share of what min_p and top_k left.
    double kept = 0.0;
    for (const int32_t id : ids) kept += weight[static_cast<size_t>(id)];
    // Tokens lighter than (1 - top_p) * kept / count sum to less than (1 - top_p) * kept, so the nucleus lies
    // among the others and only those are sorted.
    const double floor = (1.0 - params.top_p) * kept / static_cast<double>(ids.size()) * (1.0 - 1e-6);
    std::erase_if(ids, [&](int32_t id) { return weight[static_cast<size_t>(id)] < floor; });
    std::sort(ids.begin(), ids.end(), likelier);
    const double target = static_cast<double>(params.top_p) * kept;
    double sum = 0.0;
    size_t count = 0;
    while (count < ids.size() && sum < target) sum += weight[static_cast<size_t>(ids[count++])];
    ids.resize(std::max<size_t>(count, 1));
  } else {
    std::sort(ids.begin(), ids.end());
  }
  return draw(ids, weight, uniform(input));
}

}  // namespace

bool any_nonfinite(std::span<const float> logits) {
  int32_t bad = 0;
  for (const float value : logits) bad |= (bits_of(value) & 0x7f800000) == 0x7f800000 ? 1 : 0;
  return bad != 0;
}

bool needs_history(const SamplingParams& params) {
  return params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
         params.frequency_penalty != 0.0f;
}

TokenLogprobs log_probabilities(std::span<const float> logits, int32_t token, int top,
                                SamplerScratch& scratch) {
  TokenLogprobs result;
  double log_normaliser = 0.0;
  fill_logprobs(logits, top, scratch, &result, &log_normaliser);
  const double value = logits[static_cast<size_t>(token)];
  result.chosen = {token, static_cast<float>(value - log_normaliser)};
  return result;
}

SampleResult sample(const SampleInput& input, SamplerScratch& scratch) {
  TESSERA_CHECK(input.params != nullptr && !input.logits.empty());
  const SamplingParams& params = *input.params;
  SampleResult result;
  if (any_nonfinite(input.logits)) {
    result.nonfinite = true;
    return result;
  }
  std::vector<float> raw;
  double log_normaliser = 0.0;
  if (params.logprobs >= 0) {
    fill_logprobs(input.logits, params.logprobs, scratch, &result.logprobs, &log_normaliser);
    raw.assign(input.logits.begin(), input.logits.end());
  }

  for (const auto& [token, bias] : params.logit_bias) input.logits[static_cast<size_t>(token)] += bias;
  if (needs_history(params)) apply_penalties(input, scratch);
  // Far below any finite score, and finite, so that the difference to the peak stays a number.
  for (const int32_t token : input.banned) input.logits[static_cast<size_t>(token)] = -1e30f;

  // Below 1e-5 (vLLM's bound) the softmax is the arg-max in f32, and its reciprocal may overflow.
  result.token = params.temperature < 1e-5f ? argmax(input.logits) : draw_filtered(input, scratch);
  if (params.logprobs >= 0) {
    const double chosen = raw[static_cast<size_t>(result.token)];
    result.logprobs.chosen = {result.token, static_cast<float>(chosen - log_normaliser)};
  }
  return result;
}

}  // namespace tessera::engine
