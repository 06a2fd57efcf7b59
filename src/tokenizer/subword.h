// The abstract subword model. To add SentencePiece or WordPiece: one file with a subclass, and a line in
// make_subword_model().
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"
#include "tokenizer/vocab.h"

namespace tessera::tokenizer {

class SubwordModel {
 public:
  virtual ~SubwordModel() = default;
  // Appends the ids of one piece of the pre-tokenizer. Returns how many bytes had no token. Thread-safe.
  virtual size_t encode_piece(std::string_view piece, std::vector<int32_t>& ids) const = 0;
  // The bytes that the token of this spelling stands for.
  virtual std::string token_bytes(std::string_view spelling) const = 0;
};

// By VocabSpec::model; an unknown one is `unsupported` and lists the known ones. `vocab` is only used during
// the call.
Result<std::unique_ptr<SubwordModel>> make_subword_model(const VocabSpec& spec, const Vocab& vocab);

// One for each model's file.
Result<std::unique_ptr<SubwordModel>> make_byte_bpe(const VocabSpec& spec, const Vocab& vocab);

}  // namespace tessera::tokenizer
