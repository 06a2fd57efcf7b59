// `tessera inspect` as a process: exit code, what it prints and where, time and memory. TESSERA_BINARY names
// another program to test than the one with this subcommand alone.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "core/format.h"
#include "tests/model/hostile_corpus.h"

namespace tessera {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kMeasured = false;  // a sanitizer's shadow memory and slowness are not the program's
#else
constexpr bool kMeasured = true;
#endif
constexpr double kMaxCpuSeconds = 0.25;
constexpr int64_t kMaxResidentBytes = int64_t{64} << 20;  // and the file's own size
constexpr rlim_t kAddressSpace = rlim_t{1} << 30;

struct Outcome {
  int exit_code = -1;  // -1: a signal ended it
  std::string out, err;
  double cpu_seconds = 0;
  int64_t resident_bytes = 0;
};

class InspectCli : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("tessera_inspect_" + std::to_string(getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string write(const std::string& name, const std::string& bytes, uint64_t size = 0) {
    const std::string path = folder_ / name;
    std::ofstream(path, std::ios::binary) << bytes;
    if (size > 0) std::filesystem::resize_file(path, size);
    return path;
  }

  static std::string slurp(const std::filesystem::path& path) {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  Outcome run(std::vector<std::string> arguments) {
    const std::string out = folder_ / "stdout", err = folder_ / "stderr";
    const char* other = std::getenv("TESSERA_BINARY");
    std::string binary = other != nullptr ? other : TESSERA_INSPECT_BINARY, command = "inspect";
    std::vector<char*> argv = {binary.data(), command.data()};
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    const pid_t child = fork();
    if (child == 0) {
      const rlimit limit{kAddressSpace, kAddressSpace};
      if (kMeasured) setrlimit(RLIMIT_AS, &limit);
      dup2(open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
      dup2(open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
      execv(argv[0], argv.data());
      _exit(127);
    }
    Outcome result;
    int status = 0;
    rusage usage{};
    wait4(child, &status, 0, &usage);
    result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    result.out = slurp(out);
    result.err = slurp(err);
    const auto seconds = [](const timeval& t) {
      return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
    };
    result.cpu_seconds = seconds(usage.ru_utime) + seconds(usage.ru_stime);
    result.resident_bytes = int64_t{usage.ru_maxrss} << 10;
    return result;
  }

  // Exit 2, one line on standard error, nothing on standard output.
  void expect_refusal(const Outcome& result, const std::string& which, int64_t file_bytes) {
    EXPECT_EQ(result.exit_code, 2) << which;
    EXPECT_EQ(result.out, "") << which;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << which << ": " << result.err;
    EXPECT_EQ(result.err.back(), '\n') << which;
    if (!kMeasured) return;
    EXPECT_LT(result.cpu_seconds, kMaxCpuSeconds) << which;
    EXPECT_LE(result.resident_bytes, kMaxResidentBytes + file_bytes) << which;
  }

  std::filesystem::path folder_;
};

TEST_F(InspectCli, HostileFilesEndWithExitCode2AndOneLine) {
  const std::vector<testing::HostileFile> corpus = testing::HostileCorpus::make();
  for (size_t i = 0; i < corpus.size(); ++i) {
    // Every third, and every sparse one: those are about memory.
    if (i % 3 != 0 && corpus[i].size == 0) continue;
    const std::string path = write("hostile.gguf", corpus[i].bytes, corpus[i].size);
    const Outcome result = run({path});
    expect_refusal(result, corpus[i].name, static_cast<int64_t>(corpus[i].bytes.size()));
    EXPECT_NE(result.err.find(corpus[i].message), std::string::npos) << corpus[i].name << ": " << result.err;
  }
}

TEST_F(InspectCli, PathsThatAreNotModelsEndWithExitCode2AndOneLine) {
  const std::string fifo = folder_ / "fifo";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  const std::string missing = folder_ / "two\nlines.gguf";
  for (const std::string& path : {folder_.string(), fifo, std::string("/dev/zero"), missing}) {
    expect_refusal(run({path}), path, 0);
  }
}

TEST_F(InspectCli, AGoodFileIsDescribedOnStandardOutput) {
  const std::string path = write("good.gguf", testing::TinyLlama{}.writer().build());
  const Outcome text = run({path, "--check"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_EQ(text.err, "");
  EXPECT_NE(text.out.find("architecture"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("all finite"), std::string::npos) << text.out;
  const Outcome json = run({path, "--json"});
  EXPECT_EQ(json.exit_code, 0) << json.err;
  EXPECT_EQ(boost::json::parse(json.out).at("architecture").as_string(), "llama");
}

TEST_F(InspectCli, WeightsThatAreNotNumbersFailTheCheckAndNothingElse) {
  testing::GgufWriter writer = testing::TinyLlama{}.writer();
  writer.find_tensor("output_norm.weight")->data.replace(0, 4, testing::le(NAN));
  const std::string path = write("nan.gguf", writer.build());
  EXPECT_EQ(run({path}).exit_code, 0);
  const Outcome checked = run({path, "--check"});
  EXPECT_EQ(checked.exit_code, 2);
  EXPECT_NE(checked.err.find("output_norm.weight"), std::string::npos) << checked.err;
  EXPECT_EQ(std::count(checked.err.begin(), checked.err.end(), '\n'), 1) << checked.err;
}

TEST_F(InspectCli, UnknownFlagsAreRefused) {
  const Outcome result = run({"--verbose", "x.gguf"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(result.out, "");
}

}  // namespace
}  // namespace tessera
