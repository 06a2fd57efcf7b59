// The files behind the goldens, read as a model: configuration, vocabulary, and the ids of the goldens'
// prompts.
#include <gtest/gtest.h>

#include <cstdlib>

#include "model/model_file.h"
#include "tests/support/golden.h"
#include "tokenizer/tokenizer.h"

namespace tessera {
namespace {

using test::Golden;
using test::GoldenCase;

std::string golden_path(const std::string& file) {
  return TESSERA_SOURCE_DIR "/tests/goldens/" + file;
}

model::ModelFile open(const std::string& path) {
  Result<model::ModelFile> file = model::open_model(path);
  if (!file.ok()) throw std::runtime_error(file.status().message());
  return std::move(*file);
}

std::unique_ptr<tokenizer::Tokenizer> tokenizer_of(const model::ModelFile& file) {
  tokenizer::VocabSpec spec;
  spec.model = file.vocab.kind;
  spec.pre = file.vocab.pre;
  for (size_t i = 0; i < file.vocab.tokens->size(); ++i) spec.tokens.emplace_back((*file.vocab.tokens)[i]);
  for (size_t i = 0; i < file.vocab.merges->size(); ++i) spec.merges.emplace_back((*file.vocab.merges)[i]);
  spec.token_types = file.vocab.types;
  spec.bos_id = file.vocab.bos;
  spec.eos_id = file.vocab.eos;
  Result<std::unique_ptr<tokenizer::Tokenizer>> made = tokenizer::Tokenizer::create(std::move(spec));
  if (!made.ok()) throw std::runtime_error(made.status().message());
  return std::move(*made);
}

void expect_tokens(const tokenizer::Tokenizer& tokenizer, const GoldenCase& c, std::string_view tensor) {
  SCOPED_TRACE(c.name());
  const std::vector<int32_t> expected(c.i32(tensor).begin(), c.i32(tensor).end());
  EXPECT_EQ(tokenizer.encode(c.text("text"), {.parse_special = true}), expected);
  const Result<std::string> text = tokenizer.decode(expected);
  ASSERT_TRUE(text.ok()) << text.status().message();
  EXPECT_EQ(*text, c.text("text"));
}

TEST(TinyLlama, TheConfigurationIsWhatTheScriptWrote) {
  for (const char* name : {"tiny_llama_f32.gguf", "tiny_llama_mixed.gguf"}) {
    SCOPED_TRACE(name);
    const model::ModelFile file = open(golden_path(name));
    ASSERT_EQ(file.config.stacks.size(), 1u);
    const model::StackConfig& stack = file.config.stacks[0];
    EXPECT_EQ(file.config.vocab_size, 320);
    EXPECT_FALSE(file.config.tied_head);
    EXPECT_EQ(stack.layers, 2);
    EXPECT_EQ(stack.width, 32);
    EXPECT_EQ(stack.heads, 4);
    EXPECT_EQ(stack.kv_heads, 2);
    EXPECT_EQ(stack.head_dim, 40);
    EXPECT_EQ(stack.rope.dims, 40);
    EXPECT_EQ(stack.rope.base, 5000.0f);
    EXPECT_EQ(stack.windows, (std::vector<int>{48, 48}));
    EXPECT_EQ(stack.ffn_width, 96);
  }
}

TEST(TinyLlama, TheGoldensBelongToTheCommittedFiles) {
  const Golden golden = Golden::load("tiny_llama");
  for (const char* name : {"f32", "mixed"}) {
    const GoldenCase& c = golden.at(name);
    const Result<std::unique_ptr<File>> file = system_files().open(golden_path(c.text("file")));
    ASSERT_TRUE(file.ok()) << file.status().message();
    const Result<std::string> sha256 = sha256_file(**file);
    ASSERT_TRUE(sha256.ok()) << sha256.status().message();
    EXPECT_EQ(*sha256, c.text("file_sha256")) << name;
  }
}

TEST(TinyLlama, TextsBecomeTheTokensOfTheTrainedVocabulary) {
  const model::ModelFile file = open(golden_path("tiny_llama_f32.gguf"));
  const std::unique_ptr<tokenizer::Tokenizer> tokenizer = tokenizer_of(file);
  int texts = 0;
  const Golden golden = Golden::load("tiny_llama");
  for (const GoldenCase& c : golden.cases()) {
    if (!c.has("ids")) continue;
    expect_tokens(*tokenizer, c, "ids");
    ++texts;
  }
  EXPECT_EQ(texts, 4);
}

TEST(SmolLM2, TextsBecomeThePromptsOfTheGoldens) {
  const char* path = std::getenv("TESSERA_MODEL");
  if (path == nullptr) GTEST_SKIP() << "no model: TESSERA_MODEL=$(scripts/get-model smollm2)";
  const model::ModelFile file = open(path);
  const std::unique_ptr<tokenizer::Tokenizer> tokenizer = tokenizer_of(file);
  const Golden golden = Golden::load("smollm2_logits");
  for (const GoldenCase& c : golden.cases()) expect_tokens(*tokenizer, c, "prompt");
}

}  // namespace
}  // namespace tessera
