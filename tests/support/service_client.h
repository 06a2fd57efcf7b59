// Sends requests to a Service and waits for whole answers; for tests.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/service.h"

namespace tessera::test {

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;  // of the chosen and then the top ones of each token, in order
  std::vector<engine::TokenLogprobs> prompt_logprobs;
  std::string text;
  engine::FinishReason finish = engine::FinishReason::none;
  Status error;
  int cached_tokens = 0;
  uint64_t seed = 0;

  // Equal tokens and bit-equal log-probabilities. Each is a function of the whole row of logits, so they
  // stand for it.
  bool same_bits(const Answer& other) const {
    return tokens == other.tokens && logprobs.size() == other.logprobs.size() &&
           std::memcmp(logprobs.data(), other.logprobs.data(), logprobs.size() * sizeof(float)) == 0;
  }
};

// One request on its way. Thread-safe.
class Pending {
 public:
  explicit Pending(int n) : answers_(static_cast<size_t>(n)) {}
  void take(std::vector<engine::Output>&& outputs) {
    const std::lock_guard lock(mutex_);
    for (engine::Output& output : outputs) {
      Answer& answer = answers_[static_cast<size_t>(output.index)];
      answer.tokens.insert(answer.tokens.end(), output.tokens.begin(), output.tokens.end());
      for (const engine::TokenLogprobs& entry : output.logprobs) {
        answer.logprobs.push_back(entry.chosen.logprob);
        for (const engine::TokenLogprob& top : entry.top) answer.logprobs.push_back(top.logprob);
      }
      if (output.prompt_logprobs != nullptr) answer.prompt_logprobs = *output.prompt_logprobs;
      answer.text += output.text;
      answer.cached_tokens = output.cached_tokens;
      answer.seed = output.seed;
      if (output.finish != engine::FinishReason::none) {
        answer.finish = output.finish;
        answer.error = output.error;
      }
      if (output.last) last_ = true;
    }
    changed_.notify_all();
  }
  // Waits for the end.
  const std::vector<Answer>& wait() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, std::chrono::minutes(10), [&] { return last_; })) {
      ADD_FAILURE() << "no answer within ten minutes";
    }
    return answers_;
  }
  // Waits until sample 0 has this many tokens, or the end.
  void wait_for(size_t tokens) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::minutes(10),
                      [&] { return last_ || answers_[0].tokens.size() >= tokens; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Answer> answers_;
  bool last_ = false;
};

class ServiceClient {
 public:
  explicit ServiceClient(engine::ServiceOptions options) {
    auto service = engine::load_service(options);
    if (!service.ok()) throw std::runtime_error(service.status().message());
    service_ = std::move(service).value();
  }
  engine::Service& service() { return *service_; }

  // Greedy, with the 20 best log-probabilities of each token, and no early end.
  static engine::Request request(std::vector<int32_t> prompt, int tokens) {
    engine::Request request;
    request.prompt = std::move(prompt);
    request.sampling.max_tokens = tokens;
    request.sampling.temperature = 0;
    request.sampling.logprobs = 20;
    request.sampling.ignore_eos = true;
    return request;
  }
  std::shared_ptr<Pending> send(engine::Request request) {
    if (request.id.empty()) request.id = "test-" + std::to_string(++sent_);
    auto pending = std::make_shared<Pending>(request.n);
    const Status status = service_->submit(
        std::move(request),
        [pending](std::vector<engine::Output>&& outputs) { pending->take(std::move(outputs)); });
    if (!status.ok()) throw std::runtime_error(status.message());
    return pending;
  }
  Answer ask(std::vector<int32_t> prompt, int tokens) {
    return send(request(std::move(prompt), tokens))->wait()[0];
  }

 private:
  std::unique_ptr<engine::Service> service_;
  int sent_ = 0;
};

// `count` token ids that depend on `stream` alone.
inline std::vector<int32_t> test_tokens(int count, int stream, int vocab) {
  uint64_t state = 88172645463325252ull + static_cast<uint64_t>(stream) * 7919;
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t& token : tokens) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    token = static_cast<int32_t>(state % static_cast<uint64_t>(vocab));
  }
  return tokens;
}

}  // namespace tessera::test
