// Law 1 on the real model: the logits of a row are the same bits whatever comes with it, however its prompt
// was cut, on however many threads, and whether its K and V are its own, copied or shared.
#include <gtest/gtest.h>

#include <cstdio>
#include <map>

#include "core/philox.h"
#include "simd/isa.h"
#include "tests/support/model_driver.h"

namespace tessera::test {
namespace {

using Hash = uint64_t;

// FNV-1a over the bits of a row of logits.
Hash hash_row(const float* row, size_t count) {
  Hash hash = 1469598103934665603ull;
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, row + i, sizeof bits);
    hash = (hash ^ bits) * 1099511628211ull;
  }
  return hash;
}

class RowInvariance : public testing::Test {
 protected:
  void SetUp() override {
    const std::string path = default_model_path();
    if (path.empty()) GTEST_SKIP() << "TESSERA_MODEL is not set; scripts/test sets it";
    auto file = model::open_model(path);
    ASSERT_TRUE(file.ok()) << file.status().message();
    file_ = std::make_unique<model::ModelFile>(std::move(file).value());
    vocab_ = static_cast<size_t>(file_->config.vocab_size);
    // The scalar level computes some 20 tokens a second: it gets the short contexts.
    if (*simd::requested_isa() == simd::Isa::scalar) {
      contexts_ = {63, 64, 65};
      row_counts_ = {1, 2, 3, 6, 9};
      chunks_ = {17, 64};
      std::printf("scalar level: contexts to 65, 9 rows at most\n");
    }
    for (int i = 0; i <= contexts_.back(); ++i) {
      const auto words = philox4x32({static_cast<uint32_t>(i), 0, 0, 0}, {11, 12});
      tokens_.push_back(static_cast<int32_t>(words[0] % vocab_));
    }
  }

  model::CpuExecutorOptions options(int blocks) const {
    model::CpuExecutorOptions options;
    options.num_blocks = blocks;
    options.max_rows = 256;
    return options;
  }

  // The row at position c (c keys before it) for each context, with the prompt cut into chunks.
  std::map<int, Hash> by_chunks(ModelDriver& driver, int chunk, TestSequence* sequence) {
    std::map<int, Hash> hashes;
    size_t next = 0;
    for (const int context : contexts_) {
      // Chunks end where they would in a longer prompt, except that each context's row ends one.
      while (static_cast<int>(next) <= context) {
        const size_t count =
            std::min<size_t>(static_cast<size_t>(chunk), static_cast<size_t>(context) + 1 - next);
        const std::vector<float> logits = driver.step({{sequence, std::span(tokens_).subspan(next, count)}});
        next += count;
        if (static_cast<int>(next) == context + 1) hashes[context] = hash_row(logits.data(), vocab_);
      }
    }
    return hashes;
  }

  std::unique_ptr<model::ModelFile> file_;
  size_t vocab_ = 0;
  std::vector<int> contexts_ = {63, 64, 65, 511, 512, 513, 1100};
  std::vector<int> row_counts_ = {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 65};
  std::vector<int> chunks_ = {1, 17, 64, 200};
  std::vector<int32_t> tokens_;
};

TEST_F(RowInvariance, AnyChunkAndAnyNumberOfThreads) {
  std::map<int, Hash> expected;
  for (const int threads : {1, 2}) {
    for (const int chunk : chunks_) {
      ModelDriver driver(*file_, options(24), threads);
      TestSequence sequence;
      const auto hashes = by_chunks(driver, chunk, &sequence);
      if (expected.empty()) expected = hashes;
      EXPECT_EQ(hashes, expected) << "chunks of " << chunk << " on " << threads << " threads";
    }
  }
}

TEST_F(RowInvariance, AnyNumberOfRowsSharedOrCopiedInOnePhaseOrTwo) {
  for (const int threads : {1, 2}) {
    for (const bool two_phase : {true, false}) {
      model::CpuExecutorOptions chosen = options(460);
      chosen.two_phase = two_phase;
      ModelDriver driver(*file_, chosen, threads);
      TestSequence master;
      const auto expected = by_chunks(driver, 200, &master);
      const int32_t kept = driver.new_block();
      for (const int context : contexts_) {
        for (const int rows : row_counts_) {
          for (const bool copied : {false, true}) {
            if (copied && rows > 17) continue;  // memory
            driver.free_from(kept);
            std::vector<TestSequence> sequences(static_cast<size_t>(rows));
            std::vector<ModelDriver::Feed> feeds;
            // The row under test stands in the middle; the others share prefixes of other lengths.
            const int tested = rows / 2;
            for (int i = 0; i < rows; ++i) {
              const int length =
                  i == tested ? context : std::min(contexts_.back(), 1 + (i * 97) % (context + 1));
              TestSequence& sequence = sequences[static_cast<size_t>(i)];
              if (copied) {
                driver.copy(master, length, &sequence);
              } else {
                driver.share(master, length, &sequence);
              }
              feeds.push_back({&sequence, std::span(tokens_).subspan(static_cast<size_t>(length), 1)});
            }
            const std::vector<float> logits = driver.step(feeds);
            ASSERT_EQ(hash_row(logits.data() + static_cast<size_t>(tested) * vocab_, vocab_),
                      expected.at(context))
                << "context " << context << ", " << rows << " rows, " << threads << " threads, "
                << (copied ? "copied" : "shared") << (two_phase ? ", two phases" : ", one phase");
          }
        }
      }
    }
  }
}

// A prompt row and decode rows of other sequences in one step.
TEST_F(RowInvariance, ChunksOfPromptsBesideDecodeRows) {
  ModelDriver driver(*file_, options(64), 2);
  TestSequence alone;
  const auto expected = by_chunks(driver, 64, &alone);
  TestSequence mixed, other;
  driver.prefill(&other, std::span(tokens_).first(40), 40);
  size_t next = 0;
  for (const int context : contexts_) {
    while (static_cast<int>(next) <= context) {
      const size_t count = std::min<size_t>(50, static_cast<size_t>(context) + 1 - next);
      const std::vector<float> logits = driver.step({{&other, std::span(tokens_).subspan(next % 60, 1)},
                                                     {&mixed, std::span(tokens_).subspan(next, count)}});
      next += count;
      if (static_cast<int>(next) == context + 1) {
        EXPECT_EQ(hash_row(logits.data() + vocab_, vocab_), expected.at(context)) << "context " << context;
      }
    }
  }
}

}  // namespace
}  // namespace tessera::test
