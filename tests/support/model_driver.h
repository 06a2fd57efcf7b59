// Drives an Executor the way a runner does, with block tables of its own; for tests.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "model/cpu_executor.h"

namespace tessera::test {

// The default model's file, or "" when TESSERA_MODEL is not set (scripts/test sets it).
inline std::string default_model_path() {
  const char* path = std::getenv("TESSERA_MODEL");
  return path == nullptr ? "" : path;
}

struct TestSequence {
  std::vector<int32_t> blocks;
  std::vector<int32_t> tokens;  // whose K/V are in the blocks
};

class ModelDriver {
 public:
  ModelDriver(const model::ModelFile& file, model::CpuExecutorOptions options, int threads)
      : pool_({.threads = threads}), max_rows_(options.max_rows) {
    auto executor = model::create_cpu_executor(file, options, pool_);
    if (!executor.ok()) throw std::runtime_error(executor.status().message());
    executor_ = std::move(executor).value();
  }

  model::Executor& executor() { return *executor_; }
  int32_t new_block() {
    if (next_block_ >= executor_->num_blocks()) throw std::runtime_error("the test's pool is too small");
    return next_block_++;
  }
  void free_all() { next_block_ = 0; }
  // Gives back `block` and all that were taken after it.
  void free_from(int32_t block) { next_block_ = block; }

  // Gives `sequence` the whole blocks of another one's first `tokens` tokens by reference, and a copy of the
  // rows of the block that is shared in part.
  void share(const TestSequence& from, int tokens, TestSequence* to) {
    const int whole = tokens / 64;
    to->blocks.assign(from.blocks.begin(), from.blocks.begin() + whole);
    to->tokens.assign(from.tokens.begin(), from.tokens.begin() + tokens);
    if (tokens % 64 != 0) {
      to->blocks.push_back(new_block());
      copies_.push_back({from.blocks[static_cast<size_t>(whole)], to->blocks.back(), 0, tokens % 64});
    }
  }

  // The same with copies of all blocks.
  void copy(const TestSequence& from, int tokens, TestSequence* to) {
    to->tokens.assign(from.tokens.begin(), from.tokens.begin() + tokens);
    for (int first = 0; first < tokens; first += 64) {
      to->blocks.push_back(new_block());
      copies_.push_back(
          {from.blocks[static_cast<size_t>(first / 64)], to->blocks.back(), 0, std::min(64, tokens - first)});
    }
  }

  struct Feed {
    TestSequence* sequence;
    std::span<const int32_t> tokens;
  };
  // One step with rows of several sequences; the logits of the last row of each, [feeds][vocab].
  std::vector<float> step(const std::vector<Feed>& feeds, bool every_row = false) {
    std::vector<int32_t> tokens, logit_rows;
    std::vector<model::SequenceRows> parts;
    for (const Feed& feed : feeds) {
      const int first = static_cast<int>(feed.sequence->tokens.size());
      const int rows = static_cast<int>(feed.tokens.size());
      while (static_cast<int>(feed.sequence->blocks.size()) * 64 < first + rows) {
        feed.sequence->blocks.push_back(new_block());
      }
      parts.push_back({static_cast<int32_t>(tokens.size()), rows, first, feed.sequence->blocks.data()});
      for (const int32_t token : feed.tokens) {
        if (every_row) logit_rows.push_back(static_cast<int32_t>(tokens.size()));
        tokens.push_back(token);
      }
      if (!every_row) logit_rows.push_back(static_cast<int32_t>(tokens.size()) - 1);
      feed.sequence->tokens.insert(feed.sequence->tokens.end(), feed.tokens.begin(), feed.tokens.end());
    }
    std::vector<float> logits(logit_rows.size() * static_cast<size_t>(executor_->vocab_size()));
    executor_->forward({.tokens = tokens, .sequences = parts, .copies = copies_, .logit_rows = logit_rows},
                       logits.data());
    copies_.clear();
    return logits;
  }

  // Feeds tokens in chunks; the last row's logits.
  std::vector<float> prefill(TestSequence* sequence, std::span<const int32_t> tokens, int chunk) {
    std::vector<float> logits;
    for (size_t first = 0; first < tokens.size(); first += static_cast<size_t>(chunk)) {
      const size_t count = std::min(tokens.size() - first, static_cast<size_t>(chunk));
      logits = step({{sequence, tokens.subspan(first, count)}});
    }
    return logits;
  }
  // Feeds tokens in steps of at most max_rows; every row's logits, [tokens][vocab].
  std::vector<float> all_logits(TestSequence* sequence, std::span<const int32_t> tokens) {
    std::vector<float> logits;
    for (size_t first = 0; first < tokens.size(); first += static_cast<size_t>(max_rows_)) {
      const size_t count = std::min(tokens.size() - first, static_cast<size_t>(max_rows_));
      const std::vector<float> part = step({{sequence, tokens.subspan(first, count)}}, true);
      logits.insert(logits.end(), part.begin(), part.end());
    }
    return logits;
  }

 private:
  ThreadPool pool_;
  int max_rows_;
  std::unique_ptr<model::Executor> executor_;
  std::vector<model::BlockCopy> copies_;
  int32_t next_block_ = 0;
};

}  // namespace tessera::test
