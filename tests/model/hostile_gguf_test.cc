// Bad model files: one line that names what is wrong, in time, in little memory.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <set>

#include "model/model_file.h"
#include "tests/model/hostile_corpus.h"
#include "tests/support/memory_file.h"
#include "tests/support/memory_meter.h"

namespace tessera::model {
namespace {

using testing::GgufWriter;
using testing::HostileFile;
using testing::MemoryFile;
using testing::MemoryMeter;

// Of this thread's own time: the machine may be busy with other tests.
constexpr double kMaxSeconds = 0.25;

double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Outcome {
  Status status;
  double seconds = 0;
  int64_t peak_bytes = 0;
};

Outcome load(const std::string& bytes, uint64_t size = 0) {
  Outcome outcome;
  auto file = std::make_unique<MemoryFile>(bytes, size);
  const double start = thread_seconds();
  outcome.peak_bytes = MemoryMeter::peak_during([&] {
    auto gguf = GgufFile::parse(std::move(file), "hostile.gguf");
    if (!gguf.ok()) {
      outcome.status = gguf.status();
      return;
    }
    const auto model = read_model(std::move(gguf).value());
    outcome.status = model.status();
  });
  outcome.seconds = thread_seconds() - start;
  return outcome;
}

// What every refusal owes: the kind of error, one short line that begins with the file's name.
void expect_clean_refusal(const Status& status, const std::string& which) {
  ASSERT_FALSE(status.ok()) << which << " was accepted";
  EXPECT_TRUE(status.code() == StatusCode::bad_file || status.code() == StatusCode::unsupported) << which;
  const std::string& message = status.message();
  EXPECT_EQ(message.rfind("hostile.gguf: ", 0), 0u) << which << ": " << message;
  EXPECT_LE(message.size(), 300u) << which;
  for (char c : message) EXPECT_GE(static_cast<uint8_t>(c), 0x20) << which << ": " << message;
  EXPECT_TRUE(valid_utf8(message)) << which;
}

std::string without_digits(std::string text) {
  std::erase_if(text, [](char c) { return c >= '0' && c <= '9'; });
  return text;
}

// The last tensor's entry ends with its name, rank, one extent, type and offset.
size_t header_bytes(const std::string& small_model) {
  return small_model.find("output_norm.weight") + std::string("output_norm.weight").size() + 4 + 8 + 4 + 8;
}

TEST(HostileGguf, EveryHandMadeFileIsRefusedByName) {
  std::set<std::string> messages;
  for (const HostileFile& file : testing::HostileCorpus::make()) {
    const Outcome outcome = load(file.bytes, file.size);
    expect_clean_refusal(outcome.status, file.name);
    EXPECT_NE(outcome.status.message().find(file.message), std::string::npos)
        << file.name << "\n  expected: " << file.message << "\n  found:    " << outcome.status.message();
    EXPECT_LT(outcome.seconds, kMaxSeconds) << file.name;
    EXPECT_LE(outcome.peak_bytes, static_cast<int64_t>(file.bytes.size()) + (128 << 10)) << file.name;
    messages.insert(without_digits(outcome.status.message()));
  }
  std::printf("%zu distinct messages, digits aside\n", messages.size());
  EXPECT_GE(messages.size(), 60u);
}

TEST(HostileGguf, TheUnchangedSmallModelIsAccepted) {
  const Outcome outcome = load(testing::small_llama().build());
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.message();
}

TEST(HostileGguf, TruncatedAtEveryByte) {
  const std::string whole = testing::small_llama().build();
  for (size_t size = 0; size < whole.size(); ++size) {
    const Outcome outcome = load(whole.substr(0, size));
    expect_clean_refusal(outcome.status, "truncated to " + std::to_string(size));
    ASSERT_LE(outcome.peak_bytes, static_cast<int64_t>(size) + (128 << 10)) << size;
    ASSERT_LT(outcome.seconds, kMaxSeconds) << size;
  }
}

TEST(HostileGguf, EveryBitOfTheHeaderFlippedEitherLoadsOrIsRefusedCleanly) {
  const std::string whole = testing::small_llama().build();
  const size_t header = header_bytes(whole);
  size_t refused = 0;
  // Behind the header lie weights and padding, all treated alike.
  for (size_t byte = 0; byte < whole.size(); byte += byte < header ? 1 : 37) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = whole;
      flipped[byte] = static_cast<char>(flipped[byte] ^ (1 << bit));
      const Outcome outcome = load(flipped);
      const std::string which = "bit " + std::to_string(bit) + " of byte " + std::to_string(byte);
      ASSERT_LE(outcome.peak_bytes, static_cast<int64_t>(whole.size()) + (128 << 10)) << which;
      ASSERT_LT(outcome.seconds, kMaxSeconds) << which;
      if (outcome.status.ok()) continue;
      ++refused;
      expect_clean_refusal(outcome.status, which);
    }
  }
  // What may change unseen is text: the chat template, the tokens, the model's name, a few free numbers.
  EXPECT_GT(refused, header * 8 / 2);
}

TEST(HostileGguf, EveryByteOfTheHeaderSetToItsExtremes) {
  const std::string whole = testing::small_llama().build();
  for (size_t byte = 0; byte < header_bytes(whole); ++byte) {
    for (int value : {0x00, 0x7f, 0x80, 0xff}) {
      std::string changed = whole;
      changed[byte] = static_cast<char>(value);
      const Outcome outcome = load(changed);
      const std::string which = "byte " + std::to_string(byte) + " = " + std::to_string(value);
      ASSERT_LE(outcome.peak_bytes, static_cast<int64_t>(whole.size()) + (128 << 10)) << which;
      if (!outcome.status.ok()) expect_clean_refusal(outcome.status, which);
    }
  }
}

TEST(HostileGguf, ManySmallThingsStayWithinTheFilesSize) {
  // Each list is built so that its elements are as small in the file as they can be.
  GgufWriter strings;
  strings.strs("k", std::vector<std::string>(200'000));
  GgufWriter arrays;
  std::string nested = testing::le<uint32_t>(testing::kArray) + testing::le<uint64_t>(200'000);
  for (int i = 0; i < 200'000; ++i) nested += testing::le<uint32_t>(testing::kU8) + testing::le<uint64_t>(0);
  arrays.raw("k", testing::kArray, nested);
  GgufWriter keys;
  for (int i = 0; i < 4096; ++i) keys.raw(format("{:x}", i), testing::kU8, "x");
  GgufWriter tensors;
  for (int i = 0; i < 60'000; ++i) tensors.tensor(format("{:x}", i), DType::f32, {8});
  // The constant of gguf.h's first invariant: records of keys and tensors, while they are built.
  constexpr int64_t kConstant = 8 << 20;
  for (const GgufWriter* writer : {&strings, &arrays, &keys, &tensors}) {
    const std::string bytes = writer->build();
    const Outcome outcome = load(bytes);
    expect_clean_refusal(outcome.status, "many");
    EXPECT_NE(outcome.status.message().find("general.architecture"), std::string::npos)
        << outcome.status.message();
    EXPECT_LE(outcome.peak_bytes, static_cast<int64_t>(bytes.size()) + kConstant);
    std::printf("%zu bytes: %.1f ms, %lld bytes of memory\n", bytes.size(), outcome.seconds * 1e3,
                static_cast<long long>(outcome.peak_bytes));
  }
}

TEST(HostileGguf, AHeaderEndsAtItsLimit) {
  // One array fills the header up to its last byte; the next key would begin beyond.
  const uint64_t before = 24 + 8 + 1 + 4 + 4 + 8;
  const uint64_t count = GgufFile::kMaxHeaderBytes - before;
  const std::string bytes = "GGUF" + testing::le<uint32_t>(3) + testing::le<uint64_t>(0) +
                            testing::le<uint64_t>(2) + testing::gguf_string("k") +
                            testing::le<uint32_t>(testing::kArray) + testing::le<uint32_t>(testing::kU8) +
                            testing::le(count);
  ASSERT_EQ(bytes.size(), before);
  const uint64_t size = uint64_t{1} << 40;
  const Outcome outcome = load(bytes, size);
  expect_clean_refusal(outcome.status, "limit");
  EXPECT_NE(
      outcome.status.message().find("byte 67108864: the name of key 1: its length ends beyond the 67108864"),
      std::string::npos)
      << outcome.status.message();
  EXPECT_LE(outcome.peak_bytes, static_cast<int64_t>(GgufFile::kMaxHeaderBytes) + (128 << 10));
}

// Gives zeros, or 0xff, from the n-th read on: a file that is replaced while it is read.
class ChangingFile final : public File {
 public:
  ChangingFile(std::string bytes, int reads, int value)
      : file_(std::move(bytes)), reads_(reads), value_(value) {}
  uint64_t size() const override { return file_.size(); }
  Status read(uint64_t offset, std::span<std::byte> out) override {
    if (reads_-- > 0) return file_.read(offset, out);
    std::memset(out.data(), value_, out.size());
    return {};
  }
  bool changed() const { return reads_ < 0; }

 private:
  MemoryFile file_;
  int reads_;
  int value_;
};

TEST(HostileGguf, AFileThatChangesUnderTheReaderIsRefusedOrRead) {
  GgufWriter writer = testing::small_llama();
  writer.strs("long",
              std::vector<std::string>(9000, "four"));  // longer than the reader's window, so read twice
  const std::string bytes = writer.build();
  for (int value : {0x00, 0xff}) {
    bool changed = true;
    for (int reads = 0; changed; ++reads) {
      ASSERT_LT(reads, 1000);
      auto file = std::make_unique<ChangingFile>(bytes, reads, value);
      ChangingFile* watched = file.get();
      auto gguf = GgufFile::parse(std::move(file), "hostile.gguf");
      changed = !gguf.ok() || watched->changed();
      if (!gguf.ok()) expect_clean_refusal(gguf.status(), "changed at read " + std::to_string(reads));
    }
  }
}

TEST(HostileGguf, EveryFailedAllocationIsAStatus) {
  const std::string bytes = testing::small_llama().build();
  const std::string name = "a file name that needs memory of its own.gguf";
  for (int64_t allocations = 0;; ++allocations) {
    ASSERT_LT(allocations, 10'000);
    auto file = std::make_unique<MemoryFile>(bytes);
    MemoryMeter::until_failure = allocations;
    auto gguf = GgufFile::parse(std::move(file), name);
    Status status = gguf.status();
    if (gguf.ok()) status = read_model(std::move(gguf).value()).status();
    const bool failed = MemoryMeter::until_failure < 0;
    MemoryMeter::until_failure = -1;
    if (!failed) {
      EXPECT_TRUE(status.ok()) << status.message();
      std::printf("%lld allocations\n", static_cast<long long>(allocations));
      break;
    }
    ASSERT_EQ(status.code(), StatusCode::resource_exhausted) << allocations << ": " << status.message();
  }
}

class HostilePaths : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("tessera_hostile_" + std::to_string(getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  Status open(const std::string& path) {
    const double start = thread_seconds();
    const Status status = open_model(path).status();
    EXPECT_LT(thread_seconds() - start, kMaxSeconds) << path;
    EXPECT_EQ(status.message().find('\n'), std::string::npos) << path;
    EXPECT_EQ(status.message().rfind(path, 0), 0u) << status.message();
    return status;
  }
  std::filesystem::path folder_;
};

TEST_F(HostilePaths, WhatIsNotAFileIsRefusedWithoutBeingRead) {
  const std::string fifo = folder_ / "fifo";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  for (const std::string& path :
       {folder_.string(), fifo, std::string("/dev/zero"), std::string("/dev/null")}) {
    const Status status = open(path);
    EXPECT_EQ(status.code(), StatusCode::bad_file) << path;
    EXPECT_NE(status.message().find("is not a regular file"), std::string::npos) << status.message();
  }
}

TEST_F(HostilePaths, MissingFilesAndLoopsOfLinksAreNotFound) {
  const std::string loop = folder_ / "loop";
  std::filesystem::create_symlink(loop, loop);
  for (const std::string& path :
       {loop, (folder_ / "none.gguf").string(), (folder_ / "none" / "x").string()}) {
    EXPECT_EQ(open(path).code(), StatusCode::not_found) << path;
  }
}

TEST_F(HostilePaths, AFileCutShortWhileOpenIsAnErrorAndNotASignal) {
  const std::string path = folder_ / "model.gguf";
  const std::string bytes = testing::small_llama().build();
  std::ofstream(path, std::ios::binary) << bytes;
  auto model = open_model(path);
  ASSERT_TRUE(model.ok()) << model.status().message();
  std::filesystem::resize_file(path, bytes.size() / 2);
  const GgufTensor& last = *model->gguf->find_tensor("output_norm.weight");
  std::string data(last.bytes, '\0');
  const Status status = model->gguf->read(last, 0, std::as_writable_bytes(std::span(data)));
  EXPECT_EQ(status.code(), StatusCode::bad_file);
  EXPECT_NE(status.message().find("ends at byte " + std::to_string(last.offset)), std::string::npos)
      << status.message();
}

}  // namespace
}  // namespace tessera::model
