// The vocabulary of the default model, read out of its GGUF file. Skipped, visibly, where the file is absent.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "model/gguf.h"
#include "tests/tokenizer/vocab_golden.h"

namespace tessera::tokenizer {
namespace {

// TESSERA_MODEL, or where scripts/get-model puts it; "" if there is neither.
std::string model_path() {
  if (const char* given = std::getenv("TESSERA_MODEL")) return given;
  const char *cache = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
  const std::string folder = cache != nullptr ? cache : home != nullptr ? std::string(home) + "/.cache" : "";
  const std::string path = folder + "/tessera/models/SmolLM2-135M-Instruct.Q4_1.gguf";
  std::error_code error;
  return std::filesystem::is_regular_file(path, error) ? path : "";
}

std::vector<std::string> strings(const model::GgufFile& file, const char* key) {
  const auto list = file.get_strings(key);
  if (!list.ok()) throw std::runtime_error(list.status().message());
  std::vector<std::string> out;
  for (size_t i = 0; i < (*list)->size(); ++i) out.emplace_back((**list)[i]);
  return out;
}

TEST(SmolLM2, MatchesHuggingFace) {
  const std::string path = model_path();
  if (path.empty()) {
    GTEST_SKIP()
        << "no model: set TESSERA_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf or run scripts/get-model smollm2";
  }
  const auto file = model::GgufFile::open(path);
  ASSERT_TRUE(file.ok()) << file.status().message();
  VocabSpec spec;
  spec.model = (*file)->get<std::string_view>("tokenizer.ggml.model").value();
  spec.pre = (*file)->get<std::string_view>("tokenizer.ggml.pre").value();
  spec.tokens = strings(**file, "tokenizer.ggml.tokens");
  spec.token_types = (*file)->get_array<int32_t>("tokenizer.ggml.token_type").value();
  spec.merges = strings(**file, "tokenizer.ggml.merges");
  const auto tokenizer = make_tokenizer(std::move(spec));
  expect_golden(*tokenizer, load_golden("smollm2.json"));
}

}  // namespace
}  // namespace tessera::tokenizer
