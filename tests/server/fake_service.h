// FakeService: an engine without a model, for tests of the server.
//
// Deterministic: sample i's token j is a function of the prompt, i and j alone. One thread makes one token
// for each sample in each step. Bytes are tokens 0..255, specials 256.., words " w300".. the rest; text of a
// prompt is its bytes behind one <bos>. Knobs hold, fail or refuse requests; everything submitted and
// cancelled is kept.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "core/format.h"
#include "engine/service.h"

namespace tessera::server {

class FakeService final : public engine::Service {
  template <typename F>
  void set(F&& change) {
    {
      const std::lock_guard lock(mutex_);
      change();
    }
    wake_.notify_all();
    text_wake_.notify_all();
  }
  template <typename F>
  auto get(F&& read) const {
    const std::lock_guard lock(mutex_);
    return read();
  }

 public:
  static constexpr int32_t kBos = 256, kTurn = 257, kEnd = 258;
  static constexpr int32_t kFirstWord = 300;
  static constexpr uint64_t kDrawnSeed = (uint64_t{1} << 53) - 1;

  struct Options {
    int vocab_size = 1000;
    int max_model_len = 4096;
    int step_us = 0;  // pause between steps
    int max_queued = 1024;
  };

  FakeService() : FakeService(Options{}) {}
  explicit FakeService(Options options) : options_(options) {
    card_ = {.id = "fake-model",
             .path = "/nowhere/fake-model.gguf",
             .architecture = "fake",
             .vocab_size = options_.vocab_size,
             .max_model_len = options_.max_model_len,
             .created = 1'700'000'000};
    thread_ = std::thread([this] { run(); });
  }
  ~FakeService() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

  // ---- what the tests expect

  static int32_t token_at(const std::vector<int32_t>& prompt, int sample, int index) {
    uint64_t hash = 1469598103934665603ull;
    for (const int32_t token : prompt) hash = (hash ^ static_cast<uint64_t>(token)) * 1099511628211ull;
    hash = (hash ^ static_cast<uint64_t>(sample * 131 + index)) * 1099511628211ull;
    return kFirstWord + static_cast<int32_t>((hash >> 20) % 600);
  }
  static std::string text_of(int32_t token) {
    if (token < 256) return std::string(1, static_cast<char>(token));
    return token < kFirstWord ? "" : format(" w{}", token);
  }
  static std::vector<int32_t> prompt_of(std::string_view text) {
    std::vector<int32_t> ids = {kBos};
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  static std::string expected(const std::vector<int32_t>& prompt, int sample, int count) {
    std::string out;
    for (int i = 0; i < count; ++i) out += text_of(token_at(prompt, sample, i));
    return out;
  }

  // ---- knobs

  // Samples stop short of this many tokens until release(). Cancelling still works.
  void hold_after(int tokens) {
    set([&] { hold_after_ = tokens; });
  }
  void release() {
    set([&] { hold_after_ = -1; });
  }
  void fail_after(int tokens) {
    set([&] { fail_after_ = tokens; });
  }  // -1: never
  void set_full(bool full) {
    set([&] { full_ = full; });
  }
  void hold_text(bool hold) {
    set([&] { hold_text_ = hold; });
  }  // tokenize() of "@slow..." waits meanwhile

  // ---- records

  std::vector<engine::Request> submitted() const {
    return get([&] { return submitted_; });
  }
  std::set<std::string> cancelled() const {
    return get([&] { return cancelled_; });
  }
  int running() const {
    return get([&] { return static_cast<int>(active_.size()); });
  }
  // Waits for a condition over the records; false after 10 s.
  template <typename F>
  bool wait_until(F&& condition) const {
    for (int i = 0; i < 10'000; ++i) {
      if (condition(*this)) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }

  // ---- Service

  const engine::ModelCard& card() const override { return card_; }
  engine::Limits limits() const override {
    return {.vocab_size = options_.vocab_size, .max_model_len = options_.max_model_len};
  }
  // The byte 0x01 is not in the vocabulary.
  Result<engine::EncodedText> tokenize(std::string_view text, bool add_special,
                                       bool parse_special) const override {
    if (text.starts_with("@slow")) {
      std::unique_lock lock(mutex_);
      text_wake_.wait(lock, [this] { return !hold_text_; });
    }
    if (text.starts_with("@untokenizable"))
      return invalid_argument("prompt: cannot be tokenised; change it", "prompt");
    engine::EncodedText encoded;
    std::vector<int32_t>& ids = encoded.tokens;
    if (add_special) ids.push_back(kBos);
    for (size_t i = 0; i < text.size(); ++i) {
      static constexpr std::string_view kEndText = "<|im_end|>";
      if (parse_special && text.substr(i).starts_with(kEndText)) {
        ids.push_back(kEnd);
        i += kEndText.size() - 1;
      } else if (text[i] == '\1') {
        ++encoded.left_out;
      } else {
        ids.push_back(static_cast<unsigned char>(text[i]));
      }
    }
    return encoded;
  }
  Result<std::string> detokenize(const std::vector<int32_t>& tokens) const override {
    std::string out;
    for (const int32_t token : tokens) out += text_of(token);
    return out;
  }
  std::string token_bytes(int32_t token) const override { return text_of(token); }
  Result<engine::EncodedText> render_chat(const std::vector<engine::ChatMessage>& messages,
                                          bool add_generation_prompt) const override {
    std::vector<int32_t> ids;
    const auto append = [&](const std::string& text) {
      for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    };
    for (const engine::ChatMessage& message : messages) {
      if (message.content == "@raise") return invalid_argument("messages: the template refused them");
      ids.push_back(kTurn);
      append(message.role + (message.name.empty() ? "" : ":" + message.name) + "\n" + message.content);
      ids.push_back(kEnd);
    }
    if (add_generation_prompt) {
      ids.push_back(kTurn);
      append("assistant\n");
    }
    return engine::EncodedText{.tokens = std::move(ids)};
  }

  Status submit(engine::Request request, engine::OutputSink sink) override {
    TESSERA_RETURN_IF_ERROR(engine::validate(request.sampling, limits()));
    {
      const std::lock_guard lock(mutex_);
      if (full_ || static_cast<int>(active_.size()) >= options_.max_queued) {
        ++metrics_.rejected;
        return resource_exhausted("the queue is full; try again later");
      }
      submitted_.push_back(request);
      Active active{.request = std::move(request), .sink = std::move(sink)};
      active.samples.resize(active.request.n);
      active.max_tokens = std::min(active.request.sampling.max_tokens,
                                   options_.max_model_len - static_cast<int>(active.request.prompt.size()));
      metrics_.prompt_tokens += active.request.prompt.size();
      active_.emplace(active.request.id, std::move(active));
    }
    wake_.notify_all();
    return {};
  }
  void cancel(const std::string& id) override {
    {
      const std::lock_guard lock(mutex_);
      const auto found = active_.find(id);
      if (found == active_.end()) return;
      found->second.cancelled = true;
      cancelled_.insert(id);
    }
    wake_.notify_all();
  }
  engine::MetricsSnapshot metrics() const override {
    return get([&] {
      engine::MetricsSnapshot snapshot = metrics_;
      snapshot.requests_running = static_cast<int>(active_.size());
      snapshot.kv_blocks_total = 64;
      snapshot.kv_blocks_free = 32;
      snapshot.kv_blocks_cached = 16;
      snapshot.kv_blocks_referenced = 16;
      snapshot.time_to_first_token = {.bounds = {0.1, 1}, .counts = {1, 2, 3}, .sum = 4.5, .count = 6};
      return snapshot;
    });
  }
  void drain(int) override {}

 private:
  struct Sample {
    int tokens = 0;
    std::string held;  // text that may become a stop string
    bool done = false;
  };
  struct Active {
    engine::Request request;
    engine::OutputSink sink;
    std::vector<Sample> samples;
    int max_tokens = 0;
    bool cancelled = false;
  };

  bool can_step(const Active& active) const {
    if (active.cancelled) return true;
    return std::any_of(active.samples.begin(), active.samples.end(), [&](const Sample& sample) {
      return !sample.done && (hold_after_ < 0 || sample.tokens < hold_after_);
    });
  }

  // Text of `sample.held` up to what may still become a stop string; sets *stop when one is complete.
  static std::string certain_text(Sample& sample, const engine::SamplingParams& params, std::string* stop) {
    std::string& held = sample.held;
    for (const std::string& text : params.stop) {
      const size_t at = held.find(text);
      if (at == std::string::npos) continue;
      *stop = text;
      return held.substr(0, at + (params.include_stop_str_in_output ? text.size() : 0));
    }
    size_t keep = 0;
    for (const std::string& text : params.stop) {
      for (size_t n = std::min(held.size(), text.size() - 1); n > keep; --n) {
        if (held.compare(held.size() - n, n, text, 0, n) == 0) keep = n;
      }
    }
    std::string out = held.substr(0, held.size() - keep);
    held.erase(0, out.size());
    return out;
  }

  engine::Output step_sample(Active& active, int index) {
    const engine::SamplingParams& params = active.request.sampling;
    Sample& sample = active.samples[index];
    engine::Output output{.index = index};
    output.prompt_tokens = static_cast<int>(active.request.prompt.size());
    output.cached_tokens = output.prompt_tokens / 2;
    const int32_t token = token_at(active.request.prompt, index, sample.tokens++);
    output.tokens = {token};
    output.completion_tokens = sample.tokens;
    output.seed = params.seed.value_or(kDrawnSeed);
    ++metrics_.generation_tokens;
    if (params.logprobs >= 0) {
      engine::TokenLogprobs entry{.chosen = {token, -0.5f}};
      for (int i = 0; i < params.logprobs; ++i) entry.top.push_back({(token + i) % 1000, -0.5f - i});
      output.logprobs = {entry};
    }
    if (params.prompt_logprobs >= 0 && sample.tokens == 1) {
      std::vector<engine::TokenLogprobs> entries;
      for (size_t i = 1; i < active.request.prompt.size(); ++i) {
        const int32_t next = active.request.prompt[i];
        engine::TokenLogprobs entry{.chosen = {next, -1.5f}};
        for (int t = 0; t < params.prompt_logprobs; ++t) entry.top.push_back({next + t, -1.5f - t});
        entries.push_back(std::move(entry));
      }
      output.prompt_logprobs = std::make_shared<const std::vector<engine::TokenLogprobs>>(std::move(entries));
    }
    sample.held += text_of(token);
    std::string stop;
    output.text = certain_text(sample, params, &stop);
    const auto& ids = params.stop_token_ids;
    if (fail_after_ >= 0 && sample.tokens > fail_after_) {
      output.finish = engine::FinishReason::error;
      output.error =
          Status(StatusCode::internal, "a logit is not finite; the model's weights may be damaged");
    } else if (!stop.empty()) {
      output.finish = engine::FinishReason::stop;
      output.stop_reason = stop;
    } else if (std::find(ids.begin(), ids.end(), token) != ids.end()) {
      output.finish = engine::FinishReason::stop;
      output.stop_reason = std::to_string(token);
    } else if (sample.tokens >= active.max_tokens) {
      output.finish = engine::FinishReason::length;
      output.text += sample.held;
    }
    sample.done = output.finish != engine::FinishReason::none;
    return output;
  }

  std::vector<engine::Output> step(Active& active) {
    std::vector<engine::Output> outputs;
    for (int i = 0; i < active.request.n; ++i) {
      Sample& sample = active.samples[i];
      if (sample.done) continue;
      if (active.cancelled) {
        engine::Output output{.index = i, .finish = engine::FinishReason::cancelled};
        sample.done = true;
        outputs.push_back(std::move(output));
      } else if (hold_after_ < 0 || sample.tokens < hold_after_) {
        outputs.push_back(step_sample(active, i));
      }
    }
    const bool last =
        std::all_of(active.samples.begin(), active.samples.end(), [](auto& s) { return s.done; });
    if (last && !outputs.empty()) outputs.back().last = true;
    return outputs;
  }

  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      const auto ready = [this] {
        return std::any_of(active_.begin(), active_.end(),
                           [this](auto& entry) { return can_step(entry.second); });
      };
      wake_.wait(lock, [&] { return stop_ || ready(); });
      if (stop_) return;
      std::vector<std::pair<engine::OutputSink, std::vector<engine::Output>>> news;
      for (auto entry = active_.begin(); entry != active_.end();) {
        std::vector<engine::Output> outputs = step(entry->second);
        const bool last = !outputs.empty() && outputs.back().last;
        if (!outputs.empty()) news.emplace_back(entry->second.sink, std::move(outputs));
        entry = last ? active_.erase(entry) : std::next(entry);
      }
      lock.unlock();
      for (auto& [sink, outputs] : news) sink(std::move(outputs));
      news.clear();
      if (options_.step_us > 0) std::this_thread::sleep_for(std::chrono::microseconds(options_.step_us));
      lock.lock();
    }
  }

  const Options options_;
  engine::ModelCard card_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  mutable std::condition_variable text_wake_;
  std::map<std::string, Active> active_;
  std::vector<engine::Request> submitted_;
  std::set<std::string> cancelled_;
  engine::MetricsSnapshot metrics_;
  int hold_after_ = -1;
  int fail_after_ = -1;
  bool full_ = false;
  bool hold_text_ = false;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace tessera::server
