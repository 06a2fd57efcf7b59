// What `tessera inspect` says about a model file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/model_file.h"

namespace tessera::model {

struct TensorTypeSum {
  DType dtype = DType::f32;
  int64_t tensors = 0;
  int64_t elements = 0;
  int64_t bytes = 0;
};

// A tensor with values that are NaN or infinite. A block with such a scale counts with all of its elements.
struct NonFiniteTensor {
  std::string name;
  int64_t values = 0;
};

struct Inspection {
  std::string path;
  uint64_t file_bytes = 0;
  std::string sha256;
  uint32_t gguf_version = 0;
  ModelConfig config;
  int64_t parameters = 0;            // elements of all tensors
  std::vector<TensorTypeSum> types;  // most bytes first
  std::string tokenizer, pre_tokenizer;
  int64_t merges = 0;
  int32_t bos = -1, eos = -1;
  bool chat_template = false;
  bool checked = false;  // whether the weights were read for non_finite
  std::vector<NonFiniteTensor> non_finite;
};

// Opens and validates the file, and reads all of it once for the hash; with `check_weights` once more, in
// pieces of 1 MiB. Errors as open_model.
Result<Inspection> inspect(const std::string& path, bool check_weights, FileSystem& files = system_files());

// NaN and infinite values of a tensor.
Result<int64_t> count_non_finite(const GgufFile& gguf, const GgufTensor& tensor);

// A table for people, and one JSON object; both end with a newline.
std::string inspection_text(const Inspection& inspection);
std::string inspection_json(const Inspection& inspection);

}  // namespace tessera::model
