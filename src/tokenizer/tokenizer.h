// Tokenizer: text to ids and back, for one vocabulary.
//
// A vocabulary comes as plain data (VocabSpec, e.g. out of a GGUF file) and is checked whole before use:
// every inconsistency is a bad_file Status that names the token or merge. A Tokenizer is immutable and
// thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/status.h"
#include "tokenizer/unicode.h"

namespace tessera::tokenizer {

// GGUF's tokenizer.ggml.token_type.
enum class TokenType : int32_t {
  normal = 1,
  unknown = 2,
  control = 3,
  user_defined = 4,
  unused = 5,
  byte = 6
};

// Field names in messages are GGUF's (tokenizer.ggml.*).
struct VocabSpec {
  std::string model;                 // the subword model: "gpt2" (byte-level BPE)
  std::string pre;                   // the pre-tokenizer: "gpt-2", "smollm"
  std::vector<std::string> tokens;   // index = id; at most 2^24, all different
  std::vector<int32_t> token_types;  // TokenType each; empty: all normal
  std::vector<std::string> merges;   // "left right", best first
  int32_t bos_id = -1;               // -1: none
  int32_t eos_id = -1;
  int32_t unk_id = -1;  // emitted for text without a token, if its type is `unknown`
  int32_t pad_id = -1;
  bool add_bos = false;  // encode() with add_special puts bos in front
  bool add_eos = false;  // ... and eos at the end
};

struct EncodeOptions {
  bool add_special = false;    // add bos and eos as the vocabulary wants them
  bool parse_special = false;  // recognise control tokens written out in the text
};

// Part of a text, in bytes [begin, end).
struct TextSpan {
  size_t begin = 0, end = 0;
};

class SubwordModel;
class PreTokenizer;
class AddedTokens;
class Vocab;

class Tokenizer {
 public:
  static Result<std::unique_ptr<Tokenizer>> create(VocabSpec spec);
  ~Tokenizer();

  // The ids of `text`. Control tokens in the text are plain text unless options.parse_special; user-defined
  // tokens are part of the ordinary vocabulary and always recognised (leftmost, longest first). Bytes for
  // which the vocabulary has neither a token nor an unknown token are left out, as Hugging Face does, and
  // counted in *left_out (may be null). The text need not be UTF-8: every byte counts. Time O(n log n).
  // REQUIRES: text.size() < 2^31.
  std::vector<int32_t> encode(std::string_view text, EncodeOptions options = {},
                              size_t* left_out = nullptr) const;

  // As encode(), but control tokens are recognised only where they lie wholly inside one of `trusted`
  // (ascending, disjoint, within the text; neighbours that touch count as one). A text without any control
  // token in a trusted span gets the ids of encode(text): spans never cut pieces.
  std::vector<int32_t> encode_spans(std::string_view text, std::span<const TextSpan> trusted,
                                    bool add_special, size_t* left_out = nullptr) const;

  // UTF-8: bytes that are none become U+FFFD as in Python's errors="replace". An id out of range is
  // invalid_argument. With skip_special, control tokens give no text.
  Result<std::string> decode(std::span<const int32_t> ids, bool skip_special = false) const;

  // The bytes that a token stands for, perhaps part of a code point; a control token's is its name.
  // REQUIRES: is_valid(id).
  const std::string& token_bytes(int32_t id) const;
  TokenType type(int32_t id) const;  // REQUIRES: is_valid(id)
  bool is_control(int32_t id) const { return type(id) == TokenType::control; }
  bool is_valid(int32_t id) const { return id >= 0 && id < size(); }
  // The id of the token spelt exactly so in the vocabulary; -1 if there is none.
  int32_t find(std::string_view token) const;

  int32_t size() const { return static_cast<int32_t>(spec_.tokens.size()); }
  int32_t bos_id() const { return spec_.bos_id; }
  int32_t eos_id() const { return spec_.eos_id; }
  int32_t pad_id() const { return spec_.pad_id; }
  const VocabSpec& spec() const { return spec_; }

 private:
  Tokenizer();
  VocabSpec spec_;
  const PreTokenizer* pre_ = nullptr;
  std::unique_ptr<Vocab> vocab_;  // its keys point into spec_.tokens
  std::unique_ptr<SubwordModel> model_;
  std::unique_ptr<AddedTokens> added_;
  std::vector<std::string> bytes_;  // of each id
};

// Streaming decode: what was pushed so far, always whole code points. Not thread-safe; one for each sequence.
// The concatenation of all results equals decode() of all ids, however the caller cuts them.
class StreamDecoder {
 public:
  // `tokenizer` must outlive this.
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}
  // The text that is certain after this token, perhaps none. REQUIRES: tokenizer.is_valid(id).
  std::string push(int32_t id);
  // The rest at the end of the sequence: "" or one U+FFFD for a code point that never became whole.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  Utf8Repairer repairer_;
};

}  // namespace tessera::tokenizer
