#include "tokenizer/tokenizer.h"

#include "core/check.h"
#include "core/format.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/subword.h"
#include "tokenizer/vocab.h"

namespace tessera::tokenizer {

Result<std::unique_ptr<SubwordModel>> make_subword_model(const VocabSpec& spec, const Vocab& vocab) {
  if (spec.model == "gpt2") return make_byte_bpe(spec, vocab);
  return unsupported(format("tokenizer.ggml.model: unknown model {}; known: gpt2", quoted(spec.model)));
}

Tokenizer::Tokenizer() = default;
Tokenizer::~Tokenizer() = default;

Result<std::unique_ptr<Tokenizer>> Tokenizer::create(VocabSpec spec) {
  std::unique_ptr<Tokenizer> made(new Tokenizer);
  made->spec_ = std::move(spec);
  const VocabSpec& kept = made->spec_;
  TESSERA_ASSIGN_OR_RETURN(made->pre_, find_pre_tokenizer(kept.pre));
  TESSERA_ASSIGN_OR_RETURN(Vocab vocab, Vocab::create(kept));
  TESSERA_ASSIGN_OR_RETURN(made->model_, make_subword_model(kept, vocab));
  TESSERA_ASSIGN_OR_RETURN(AddedTokens added, AddedTokens::create(kept));
  made->added_ = std::make_unique<AddedTokens>(std::move(added));
  made->vocab_ = std::make_unique<Vocab>(std::move(vocab));
  made->bytes_.reserve(kept.tokens.size());
  for (int32_t id = 0; id < made->size(); ++id) {
    const std::string& spelling = kept.tokens[id];
    switch (made->type(id)) {
      case TokenType::normal:
        made->bytes_.push_back(made->model_->token_bytes(spelling));
        break;
      case TokenType::byte:
        made->bytes_.emplace_back(1, static_cast<char>(parse_byte_token(spelling)));
        break;
      default:
        made->bytes_.push_back(spelling);
    }
  }
  return made;
}

TokenType Tokenizer::type(int32_t id) const {
  TESSERA_CHECK(is_valid(id));
  return spec_.token_types.empty() ? TokenType::normal : static_cast<TokenType>(spec_.token_types[id]);
}

int32_t Tokenizer::find(std::string_view token) const {
  return vocab_->find(token);
}

const std::string& Tokenizer::token_bytes(int32_t id) const {
  TESSERA_CHECK(is_valid(id));
  return bytes_[id];
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options, size_t* left_out) const {
  const TextSpan all{0, text.size()};
  return encode_spans(text, {&all, options.parse_special ? size_t{1} : size_t{0}}, options.add_special,
                      left_out);
}

std::vector<int32_t> Tokenizer::encode_spans(std::string_view text, std::span<const TextSpan> trusted,
                                             bool add_special, size_t* left_out) const {
  TESSERA_CHECK(text.size() < size_t{1} << 31);  // symbols are counted in int32
  std::vector<TextSpan> apart;                   // touching neighbours joined
  for (const TextSpan& span : trusted) {
    TESSERA_CHECK(span.begin <= span.end && span.end <= text.size());
    TESSERA_CHECK(apart.empty() || apart.back().end <= span.begin);
    if (!apart.empty() && apart.back().end == span.begin) {
      apart.back().end = span.end;
    } else {
      apart.push_back(span);
    }
  }
  std::vector<int32_t> ids;
  size_t missing = 0, span = 0;
  if (add_special && spec_.add_bos) ids.push_back(spec_.bos_id);
  for (size_t from = 0; from < text.size();) {
    const AddedTokens::Match match = added_->find(text, from, apart, &span);
    const std::string_view plain = text.substr(0, match.id >= 0 ? match.begin : text.size());
    for (size_t begin = from; begin < plain.size();) {
      const size_t end = pre_->next(plain, begin);
      missing += model_->encode_piece(plain.substr(begin, end - begin), ids);
      begin = end;
    }
    if (match.id >= 0) ids.push_back(match.id);
    from = match.id >= 0 ? match.end : text.size();
  }
  if (add_special && spec_.add_eos) ids.push_back(spec_.eos_id);
  if (left_out != nullptr) *left_out = missing;
  return ids;
}

Result<std::string> Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string text;
  Utf8Repairer repairer;
  for (const int32_t id : ids) {
    if (!is_valid(id)) {
      return invalid_argument(format("token {} is not in [0, {}), the vocabulary's range", id, size()),
                              "tokens");
    }
    if (!(skip_special && is_control(id))) repairer.push(bytes_[id], text);
  }
  repairer.finish(text);
  return text;
}

std::string StreamDecoder::push(int32_t id) {
  std::string text;
  if (!(skip_special_ && tokenizer_->is_control(id))) repairer_.push(tokenizer_->token_bytes(id), text);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  repairer_.finish(text);
  return text;
}

}  // namespace tessera::tokenizer
