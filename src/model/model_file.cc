#include "model/model_file.h"

#include <cmath>
#include <new>

#include "core/format.h"

namespace tessera::model {
namespace {

constexpr size_t kMaxTemplateBytes = size_t{1} << 20;

Status refuse_splits(const GgufFile& gguf) {
  TESSERA_ASSIGN_OR_RETURN(const uint16_t parts, gguf.get_or<uint16_t>("split.count", 0));
  if (parts > 1) {
    return unsupported(
        format("{}: split.count is {}; join the parts into one file", gguf.file_name(), parts));
  }
  return {};
}

Status check_size(const GgufFile& gguf, const char* key, size_t found, int expected) {
  if (found == static_cast<size_t>(expected)) return {};
  return gguf.error(format("{} has {} entries, but the embedding has {} rows", key, found, expected));
}

Result<int32_t> token_id(const GgufFile& gguf, const char* key, int vocab_size) {
  if (!gguf.has(key)) return -1;
  TESSERA_ASSIGN_OR_RETURN(const uint32_t id, gguf.get<uint32_t>(key));
  if (id >= static_cast<uint32_t>(vocab_size)) {
    return gguf.error(format("{} is {}, expected a token from 0 to {}", key, id, vocab_size - 1));
  }
  return static_cast<int32_t>(id);
}

Status read_token_types(const GgufFile& gguf, int vocab_size, VocabData* vocab) {
  constexpr const char* kKey = "tokenizer.ggml.token_type";
  vocab->types.assign(static_cast<size_t>(vocab_size), 1);
  if (!gguf.has(kKey)) return {};
  TESSERA_ASSIGN_OR_RETURN(const uint64_t count, gguf.array_size(kKey));
  TESSERA_RETURN_IF_ERROR(check_size(gguf, kKey, count, vocab_size));
  TESSERA_ASSIGN_OR_RETURN(vocab->types, gguf.get_array<int32_t>(kKey));
  for (size_t id = 0; id < vocab->types.size(); ++id) {
    if (vocab->types[id] < 1 || vocab->types[id] > 6) {
      return gguf.error(format("{}[{}] is {}, expected 1 to 6", kKey, id, vocab->types[id]));
    }
  }
  return {};
}

Status read_scores(const GgufFile& gguf, int vocab_size, VocabData* vocab) {
  constexpr const char* kKey = "tokenizer.ggml.scores";
  if (!gguf.has(kKey)) return {};
  TESSERA_ASSIGN_OR_RETURN(const uint64_t count, gguf.array_size(kKey));
  TESSERA_RETURN_IF_ERROR(check_size(gguf, kKey, count, vocab_size));
  TESSERA_ASSIGN_OR_RETURN(vocab->scores, gguf.get_array<float>(kKey));
  for (size_t id = 0; id < vocab->scores.size(); ++id) {
    if (!std::isfinite(vocab->scores[id])) {
      return gguf.error(format("{}[{}] is {}, expected a finite number", kKey, id, vocab->scores[id]));
    }
  }
  return {};
}

Result<VocabData> read_vocab(const GgufFile& gguf, int vocab_size) {
  VocabData vocab;
  TESSERA_ASSIGN_OR_RETURN(vocab.kind, gguf.get<std::string_view>("tokenizer.ggml.model"));
  TESSERA_ASSIGN_OR_RETURN(vocab.pre, gguf.get_or<std::string_view>("tokenizer.ggml.pre", ""));
  TESSERA_ASSIGN_OR_RETURN(vocab.tokens, gguf.get_strings("tokenizer.ggml.tokens"));
  TESSERA_RETURN_IF_ERROR(check_size(gguf, "tokenizer.ggml.tokens", vocab.tokens->size(), vocab_size));
  TESSERA_RETURN_IF_ERROR(read_token_types(gguf, vocab_size, &vocab));
  TESSERA_RETURN_IF_ERROR(read_scores(gguf, vocab_size, &vocab));
  if (gguf.has("tokenizer.ggml.merges")) {
    TESSERA_ASSIGN_OR_RETURN(vocab.merges, gguf.get_strings("tokenizer.ggml.merges"));
  }
  const std::pair<const char*, int32_t*> ids[] = {
      {"tokenizer.ggml.bos_token_id", &vocab.bos},
      {"tokenizer.ggml.eos_token_id", &vocab.eos},
      {"tokenizer.ggml.eot_token_id", &vocab.eot},
      {"tokenizer.ggml.unknown_token_id", &vocab.unknown},
      {"tokenizer.ggml.padding_token_id", &vocab.padding},
      {"tokenizer.ggml.seperator_token_id", &vocab.separator},
  };  // "seperator" is how the format spells it
  for (const auto& [key, id] : ids) {
    TESSERA_ASSIGN_OR_RETURN(*id, token_id(gguf, key, vocab_size));
  }
  const std::pair<const char*, std::optional<bool>*> flags[] = {
      {"tokenizer.ggml.add_bos_token", &vocab.add_bos},
      {"tokenizer.ggml.add_eos_token", &vocab.add_eos},
      {"tokenizer.ggml.add_space_prefix", &vocab.add_space_prefix},
  };
  for (const auto& [key, flag] : flags) {
    if (!gguf.has(key)) continue;
    TESSERA_ASSIGN_OR_RETURN(*flag, gguf.get<bool>(key));
  }
  return vocab;
}

Result<ModelFile> read_all(std::unique_ptr<GgufFile> gguf) {
  ModelFile model;
  TESSERA_RETURN_IF_ERROR(refuse_splits(*gguf));
  TESSERA_ASSIGN_OR_RETURN(ModelLayout layout, layout_from_gguf(*gguf));
  model.config = std::move(layout.config);
  model.tensors = std::move(layout.tensors);
  TESSERA_ASSIGN_OR_RETURN(model.vocab, read_vocab(*gguf, model.config.vocab_size));
  TESSERA_ASSIGN_OR_RETURN(const std::string_view chat_template,
                           gguf->get_or<std::string_view>("tokenizer.chat_template", ""));
  if (chat_template.size() > kMaxTemplateBytes) {
    return gguf->error(format("tokenizer.chat_template has {} bytes, the limit is {}", chat_template.size(),
                              kMaxTemplateBytes));
  }
  model.chat_template = chat_template;
  model.gguf = std::move(gguf);
  return model;
}

}  // namespace

Result<ModelFile> open_model(const std::string& path, FileSystem& files) {
  TESSERA_ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> gguf, GgufFile::open(path, files));
  return read_model(std::move(gguf));
}

Result<ModelFile> read_model(std::unique_ptr<GgufFile> gguf) {
  std::string name;
  try {
    name = gguf->file_name();
    return read_all(std::move(gguf));
  } catch (const std::bad_alloc&) {
    return resource_exhausted(name + ": no memory for the model's description");
  }
}

}  // namespace tessera::model
