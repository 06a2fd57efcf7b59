// ModelFile: a GGUF file with all that is read from it as plain, validated data.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/gguf.h"

namespace tessera::model {

// The keys tokenizer.ggml.*, validated for size and range; what the strings mean is the tokenizer's business.
struct VocabData {
  std::string kind;                    // tokenizer.ggml.model: "gpt2" is byte-level BPE
  std::string pre;                     // tokenizer.ggml.pre: the pre-tokenizer's name; may be empty
  const StringList* tokens = nullptr;  // [vocab_size] strings, by id; owned by the GgufFile
  std::vector<int32_t>
      types;                  // [vocab_size] 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
  std::vector<float> scores;  // [vocab_size], or empty
  const StringList* merges = nullptr;  // "left right" by rank; null when the file has none
  // Ids in [0, vocab_size), or -1 where the file names none.
  int32_t bos = -1, eos = -1, eot = -1, unknown = -1, padding = -1, separator = -1;
  // What the file says; without the key the kind of tokenizer decides.
  std::optional<bool> add_bos, add_eos, add_space_prefix;
};

struct ModelFile {
  std::unique_ptr<GgufFile> gguf;
  ModelConfig config;
  TensorNames tensors;
  VocabData vocab;
  std::string chat_template;  // Jinja source; empty when the file has none
};

// Errors as GgufFile::open and layout_from_gguf; also unsupported for one part of a split model and
// resource_exhausted when memory is out.
Result<ModelFile> open_model(const std::string& path, FileSystem& files = system_files());
// From a parsed file.
Result<ModelFile> read_model(std::unique_ptr<GgufFile> gguf);

}  // namespace tessera::model
