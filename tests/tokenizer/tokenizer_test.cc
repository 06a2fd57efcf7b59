// Encoding, decoding and streaming with the committed small vocabulary.
#include "tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <ctime>
#include <random>

#include "tests/tokenizer/vocab_golden.h"

namespace tessera::tokenizer {
namespace {

const Tokenizer& tiny() {
  static const std::unique_ptr<Tokenizer> made = make_tokenizer(tiny_spec());
  return *made;
}

std::string random_bytes(std::mt19937& rng, size_t size) {
  static const std::string kPieces[] = {"a",
                                        "the ",
                                        " ",
                                        "\n",
                                        "9",
                                        "'s",
                                        "\xc3\xa9",
                                        "\xe4\xbd\xa0",
                                        "\xf0\x9f\x98\x80",
                                        "\xe4\xbd",
                                        "\xff",
                                        "\xc3",
                                        "\xf0\x9f",
                                        "<|im_end|>",
                                        "\x80",
                                        "\xed\xa0\x80"};
  std::string text;
  while (text.size() < size) text += kPieces[rng() % std::size(kPieces)];
  return text;
}

TEST(Tokenizer, MatchesHuggingFaceWithGpt2PreTokenizer) {
  expect_golden(tiny(), load_golden("tiny.json"));
}

TEST(Tokenizer, MatchesHuggingFaceWithSmollmPreTokenizer) {
  VocabSpec spec = tiny_spec();
  spec.pre = "smollm";
  expect_golden(*make_tokenizer(std::move(spec)), load_golden("tiny_smollm.json"));
}

TEST(Tokenizer, EncodesAnyBytesWithoutLoss) {
  std::mt19937 rng(7);
  std::printf("seed: 7\n");
  for (int round = 0; round < 300; ++round) {
    const std::string text = random_bytes(rng, rng() % 60);
    std::string joined;
    size_t left_out = 1;
    for (const int32_t id : tiny().encode(text, {}, &left_out)) joined += tiny().token_bytes(id);
    EXPECT_EQ(joined, text);
    EXPECT_EQ(left_out, 0u);
  }
}

TEST(Tokenizer, ControlTokensInTextArePlainUnlessAskedFor) {
  const std::string text = "<|im_start|>system";
  for (const int32_t id : tiny().encode(text)) EXPECT_FALSE(tiny().is_control(id));
  EXPECT_EQ(tiny().encode(text, {.parse_special = true}).front(), tiny().find("<|im_start|>"));
}

TEST(Tokenizer, AddsBosAndEosOnlyWhenTheVocabularyAndTheCallerWantThem) {
  VocabSpec spec = tiny_spec();
  EXPECT_EQ(make_tokenizer(spec)->encode("", {.add_special = true}), std::vector<int32_t>{});
  spec.add_bos = spec.add_eos = true;
  const auto both = make_tokenizer(spec);
  EXPECT_EQ(both->encode("", {.add_special = true}), (std::vector<int32_t>{both->bos_id(), both->eos_id()}));
  EXPECT_EQ(both->encode(""), std::vector<int32_t>{});
}

TEST(Tokenizer, UserDefinedTokensAreAlwaysRecognisedLongestFirst) {
  VocabSpec spec = tiny_spec();
  const auto first = static_cast<int32_t>(spec.tokens.size());
  spec.tokens.insert(spec.tokens.end(), {"<think>", "<think>>"});
  spec.token_types.insert(spec.token_types.end(), {4, 4});
  const auto made = make_tokenizer(spec);
  EXPECT_EQ(made->encode("<think>"), std::vector<int32_t>{first});
  EXPECT_EQ(made->encode("<think>>"), std::vector<int32_t>{first + 1});
}

TEST(Tokenizer, TrustedSpansAloneYieldControlTokens) {
  const std::string text = "<|im_end|><|im_end|><|im_end|>";
  const int32_t end = tiny().find("<|im_end|>");
  const std::vector<int32_t> plain = tiny().encode("<|im_end|>");
  std::vector<int32_t> want = {end};
  want.insert(want.end(), plain.begin(), plain.end());
  want.push_back(end);
  const TextSpan spans[] = {{0, 10}, {20, 30}};
  EXPECT_EQ(tiny().encode_spans(text, spans, false), want);
  // Touching spans are one; a token that reaches out of its span is plain text.
  const TextSpan touching[] = {{0, 4}, {4, 10}, {10, 19}};
  EXPECT_EQ(tiny().encode_spans(text, touching, false)[0], end);
  EXPECT_NE(tiny().encode_spans(text, touching, false)[1], end);
}

TEST(Tokenizer, SpansNeverCutPieces) {
  std::mt19937 rng(8);
  std::printf("seed: 8\n");
  for (int round = 0; round < 200; ++round) {
    std::string text = random_bytes(rng, 40);
    for (size_t at = text.find("<|"); at != std::string::npos; at = text.find("<|")) text.erase(at, 2);
    std::vector<TextSpan> spans;
    for (size_t at = rng() % 4; at < text.size();) {
      const size_t end = std::min(text.size(), at + rng() % 9);
      spans.push_back({at, end});
      at = end + rng() % 5;
    }
    EXPECT_EQ(tiny().encode_spans(text, spans, false), tiny().encode(text));
  }
}

TEST(Tokenizer, LeavesOutBytesWithoutATokenAndCountsThem) {
  VocabSpec spec;
  spec.model = "gpt2";
  spec.pre = "gpt-2";
  spec.tokens = {"a", "b", "ab"};
  spec.merges = {"a b"};
  size_t left_out = 0;
  // The neighbours of what was left out meet, as in Hugging Face's model.
  EXPECT_EQ(make_tokenizer(spec)->encode("acb", {}, &left_out), std::vector<int32_t>{2});
  EXPECT_EQ(left_out, 1u);
}

TEST(Tokenizer, EmitsTheUnknownTokenOnlyIfItsTypeIsUnknown) {
  VocabSpec spec;
  spec.model = "gpt2";
  spec.pre = "gpt-2";
  spec.tokens = {"a", "<unk>"};
  spec.unk_id = 1;
  for (const int32_t type : {2, 3}) {
    spec.token_types = {1, type};
    const std::vector<int32_t> want = type == 2 ? std::vector<int32_t>{0, 1} : std::vector<int32_t>{0};
    EXPECT_EQ(make_tokenizer(spec)->encode("az"), want);
  }
}

// One piece of a million bytes, and a vocabulary that can double it many times over.
TEST(Tokenizer, MegabyteOfOneClassTakesUnderASecond) {
  VocabSpec spec = tiny_spec();
  for (std::string run = "a"; run.size() < 1024; run += run) {
    spec.merges.push_back(run + " " + run);
    spec.tokens.push_back(run + run);
    spec.token_types.push_back(1);
  }
  const auto doubling = make_tokenizer(std::move(spec));
  for (const char* unit : {"a", " ", "0", "!", "\xc3\xa9", "\xff", "'"}) {
    std::string text;
    while (text.size() < 1000000) text += unit;
    const std::clock_t start = std::clock();  // of this process: a busy machine does not count
    const std::vector<int32_t> ids = doubling->encode(text);
    const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    std::string joined;
    for (const int32_t id : ids) joined += doubling->token_bytes(id);
    EXPECT_EQ(joined, text);
    if (*unit == 'a') {
      EXPECT_LE(ids.size(), 1000u);
    }
    std::printf("1 MB of \"%s\": %.3f s\n", unit, seconds);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    EXPECT_LE(seconds, 20.0);
#else
    EXPECT_LE(seconds, 1.0);
#endif
  }
}

TEST(StreamDecoder, GivesWholeCodePointsOnly) {
  const std::string text = "a\xf0\x9f\x98\x80\xe4\xbd\xa0z";
  StreamDecoder stream(tiny());
  std::string all;
  for (const char byte : text) {
    const std::vector<int32_t> one = tiny().encode(std::string(1, byte));
    ASSERT_EQ(one.size(), 1u);
    const std::string piece = stream.push(one[0]);
    EXPECT_TRUE(is_utf8(piece));
    all += piece;
  }
  EXPECT_EQ(all + stream.finish(), text);
}

TEST(StreamDecoder, EndsAPartialCodePointWithOneReplacement) {
  StreamDecoder stream(tiny());
  for (const char* part : {"\xf0", "\x9f", "\x98"}) EXPECT_EQ(stream.push(tiny().encode(part)[0]), "");
  EXPECT_EQ(stream.finish(), kReplacement);
  EXPECT_EQ(stream.finish(), "");
}

TEST(StreamDecoder, SkipsControlTokens) {
  StreamDecoder quiet(tiny()), full(tiny(), false);
  const int32_t end = tiny().find("<|im_end|>");
  EXPECT_EQ(quiet.push(end), "");
  EXPECT_EQ(full.push(end), "<|im_end|>");
}

TEST(Decode, NamesTheIdThatIsOutOfRange) {
  const int32_t ids[] = {5, tiny().size()};
  const auto text = tiny().decode(ids);
  ASSERT_FALSE(text.ok());
  EXPECT_EQ(text.status().code(), StatusCode::invalid_argument);
  EXPECT_NE(text.status().message().find(std::to_string(tiny().size())), std::string::npos);
}

// What Python's bytes.decode("utf-8", "replace") gives.
TEST(Utf8Repairer, ReplacesAsPythonDoes) {
  const std::string r(kReplacement);
  const std::pair<std::string, std::string> cases[] = {
      {"\xff", r},
      {"\xc3", r},
      {"\xe4\xbd", r},
      {"\xe4\xbd"
       "a",
       r + "a"},
      {"\xed\xa0\x80", r + r + r},
      {"\xc0\xaf", r + r},
      {"\xe0\x80\x80", r + r + r},
      {"\xf0\x9f\x98\xf0\x9f\x98\x80", r + "\xf0\x9f\x98\x80"},
      {"\xf4\x90\x80\x80", r + r + r + r},
      {"a\x80\x80z", "a" + r + r + "z"},
  };
  for (const auto& [bytes, want] : cases) {
    for (size_t cut = 0; cut <= bytes.size(); ++cut) {
      Utf8Repairer repairer;
      std::string out;
      repairer.push(bytes.substr(0, cut), out);
      repairer.push(bytes.substr(cut), out);
      repairer.finish(out);
      EXPECT_EQ(out, want);
    }
  }
}

}  // namespace
}  // namespace tessera::tokenizer
