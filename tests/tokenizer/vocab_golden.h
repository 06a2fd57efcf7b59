// Reads the goldens of tests/tokenizer/golden (made by tools/make_tokenizer_goldens.py) and builds
// tokenizers.
#pragma once

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <memory>
#include <string>
#include <vector>

#include "core/fs.h"
#include "tokenizer/tokenizer.h"

namespace tessera::tokenizer {

inline boost::json::value load_golden(const std::string& file) {
  const auto text = read_text_file(TESSERA_SOURCE_DIR "/tests/tokenizer/golden/" + file, 4 << 20);
  if (!text.ok()) throw std::runtime_error(text.status().message());
  return boost::json::parse(*text);
}

inline std::vector<int32_t> ids_of(const boost::json::value& list) {
  return boost::json::value_to<std::vector<int32_t>>(list);
}

// The committed vocabulary of a few hundred merges.
inline VocabSpec tiny_spec() {
  const auto golden = load_golden("tiny.json");
  const boost::json::value& vocab = golden.at("vocab");
  VocabSpec spec;
  spec.model = "gpt2";
  spec.pre = "gpt-2";
  spec.tokens = boost::json::value_to<std::vector<std::string>>(vocab.at("tokens"));
  spec.token_types = ids_of(vocab.at("token_types"));
  spec.merges = boost::json::value_to<std::vector<std::string>>(vocab.at("merges"));
  spec.bos_id = static_cast<int32_t>(vocab.at("bos_id").as_int64());
  spec.eos_id = static_cast<int32_t>(vocab.at("eos_id").as_int64());
  return spec;
}

inline std::unique_ptr<Tokenizer> make_tokenizer(VocabSpec spec) {
  auto made = Tokenizer::create(std::move(spec));
  if (!made.ok()) throw std::runtime_error(made.status().message());
  return std::move(*made);
}

// Every case of a golden: ids without and with control tokens recognised, and texts of decoded ids.
inline void expect_golden(const Tokenizer& tokenizer, const boost::json::value& golden) {
  for (const boost::json::value& entry : golden.at("cases").as_array()) {
    const std::string text(entry.at("text").as_string());
    const std::vector<int32_t> plain = ids_of(entry.at("ids"));
    EXPECT_EQ(tokenizer.encode(text), plain) << "text: " << entry.at("text");
    const auto* parsed = entry.as_object().if_contains("parsed");
    EXPECT_EQ(tokenizer.encode(text, {.parse_special = true}), parsed ? ids_of(*parsed) : plain)
        << "text: " << entry.at("text");
  }
  for (const boost::json::value& entry : golden.at("decode").as_array()) {
    const std::vector<int32_t> ids = ids_of(entry.at("ids"));
    for (const bool skip : {false, true}) {
      const std::string want(entry.at(skip ? "skipped" : "text").as_string());
      const auto text = tokenizer.decode(ids, skip);
      ASSERT_TRUE(text.ok());
      EXPECT_EQ(*text, want) << "ids: " << entry.at("ids");
      StreamDecoder stream(tokenizer, skip);
      std::string streamed;
      for (const int32_t id : ids) streamed += stream.push(id);
      EXPECT_EQ(streamed + stream.finish(), want) << "ids: " << entry.at("ids");
    }
  }
}

}  // namespace tessera::tokenizer
