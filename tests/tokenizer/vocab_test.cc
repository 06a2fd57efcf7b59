// Every inconsistency of a vocabulary is refused in one line that names it.
#include <gtest/gtest.h>

#include <functional>

#include "tests/tokenizer/vocab_golden.h"
#include "tokenizer/pre_tokenizer.h"

namespace tessera::tokenizer {
namespace {

VocabSpec small() {
  VocabSpec spec;
  spec.model = "gpt2";
  spec.pre = "gpt-2";
  spec.tokens = {"a", "b", "ab", "<|end|>"};
  spec.token_types = {1, 1, 1, 3};
  spec.merges = {"a b"};
  return spec;
}

struct BadVocab {
  const char* name;
  std::function<void(VocabSpec&)> spoil;
  const char* message;  // a part of it
};

TEST(BadVocab, IsRefusedInOneLine) {
  ASSERT_TRUE(Tokenizer::create(small()).ok());
  const BadVocab cases[] = {
      {"unknown model", [](VocabSpec& s) { s.model = "llama"; }, "known: gpt2"},
      {"unknown pre-tokenizer", [](VocabSpec& s) { s.pre = "deepseek-llm"; }, "known: gpt-2, smollm"},
      {"no tokens", [](VocabSpec& s) { s = {.model = "gpt2", .pre = "gpt-2"}; }, "empty"},
      {"duplicate token", [](VocabSpec& s) { s.tokens[3] = "a"; }, "'a' is both token 0 and token 3"},
      {"too few types", [](VocabSpec& s) { s.token_types.pop_back(); }, "3 entries for 4 tokens"},
      {"type out of range", [](VocabSpec& s) { s.token_types[1] = 7; }, "token 1 has type 7"},
      {"type zero", [](VocabSpec& s) { s.token_types[1] = 0; }, "token 1 has type 0"},
      {"bos out of range", [](VocabSpec& s) { s.bos_id = 4; }, "bos_token_id: 4"},
      {"eos negative", [](VocabSpec& s) { s.eos_id = -2; }, "eos_token_id: -2"},
      {"unk out of range", [](VocabSpec& s) { s.unk_id = 1 << 30; }, "unknown_token_id"},
      {"pad out of range", [](VocabSpec& s) { s.pad_id = 99; }, "padding_token_id: 99"},
      {"add_bos without bos", [](VocabSpec& s) { s.add_bos = true; }, "add_bos_token"},
      {"add_eos without eos", [](VocabSpec& s) { s.add_eos = true; }, "add_eos_token"},
      {"merge without space", [](VocabSpec& s) { s.merges[0] = "ab"; }, "not two tokens"},
      {"empty merge", [](VocabSpec& s) { s.merges[0] = ""; }, "not two tokens"},
      {"merge ends in space", [](VocabSpec& s) { s.merges[0] = "a "; }, "not two tokens"},
      {"merge of unknown left", [](VocabSpec& s) { s.merges[0] = "x b"; }, "'x', which is no token"},
      {"merge of unknown right", [](VocabSpec& s) { s.merges[0] = "a y"; }, "'y', which is no token"},
      {"merge to unknown", [](VocabSpec& s) { s.merges[0] = "b a"; }, "'ba', which is no token"},
      {"merge twice", [](VocabSpec& s) { s.merges.push_back("a b"); }, "is there twice"},
      {"byte token not hex", [](VocabSpec& s) { s.tokens[3] = "<0xZZ>", s.token_types[3] = 6; }, "<0xHH>"},
      {"byte token negative", [](VocabSpec& s) { s.tokens[3] = "<0x-1>", s.token_types[3] = 6; }, "<0xHH>"},
      {"byte token too long", [](VocabSpec& s) { s.tokens[3] = "<0x001>", s.token_types[3] = 6; }, "<0xHH>"},
      {"byte token twice",
       [](VocabSpec& s) {
         s.tokens = {"<0x0a>", "<0x0A>", "ab", "b"}, s.token_types = {6, 6, 1, 1}, s.merges = {};
       },
       "repeats byte <0x0A>"},
      {"control token too long", [](VocabSpec& s) { s.tokens[3] = std::string(2000, 'x'); }, "2000 bytes"},
      {"name with newlines", [](VocabSpec& s) { s.pre = "a\nb"; }, "known"},
      {"token with newlines", [](VocabSpec& s) { s.tokens[0] = s.tokens[1] = "\n\xff"; }, "'\\x0a\\xff'"},
  };
  for (const BadVocab& bad : cases) {
    VocabSpec spec = small();
    bad.spoil(spec);
    const auto made = Tokenizer::create(spec);
    ASSERT_FALSE(made.ok()) << bad.name;
    const std::string& message = made.status().message();
    EXPECT_NE(message.find(bad.message), std::string::npos) << bad.name << ": " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << bad.name;
    EXPECT_LT(message.size(), 300u) << bad.name;
  }
}

TEST(Vocab, ByteTokensDecodeToTheirByte) {
  VocabSpec spec = small();
  spec.tokens[3] = "<0xE4>";
  spec.token_types[3] = 6;
  EXPECT_EQ(make_tokenizer(spec)->token_bytes(3), "\xe4");
}

TEST(PreTokenizer, EveryKnownNameIsFound) {
  for (const std::string_view name : pre_tokenizer_names()) EXPECT_TRUE(find_pre_tokenizer(name).ok());
}

}  // namespace
}  // namespace tessera::tokenizer
