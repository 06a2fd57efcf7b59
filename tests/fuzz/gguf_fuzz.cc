// Any bytes as a model file: they load, and then keep the promises of gguf.h, or are refused in one line.
#include <algorithm>
#include <cstdlib>

#include "model/inspect.h"
#include "tests/support/memory_file.h"

namespace {

using namespace tessera;

// Assertions in every build: a broken promise is a crash for the fuzzer.
void require(bool condition) {
  if (!condition) std::abort();
}

void require_clean(const Status& status) {
  require(status.code() == StatusCode::bad_file || status.code() == StatusCode::unsupported);
  require(status.message().size() <= 400 && model::valid_utf8(status.message()));
  require(std::none_of(status.message().begin(), status.message().end(),
                       [](char c) { return static_cast<uint8_t>(c) < 0x20; }));
}

void require_cover(const model::GgufFile& gguf) {
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (const model::GgufTensor& tensor : gguf.tensors()) {
    require(tensor.offset % gguf.alignment() == 0 && tensor.bytes > 0);
    require(tensor.offset + tensor.bytes <= gguf.file().size());
    require(gguf.find_tensor(tensor.name) == &tensor);
    ranges.push_back({tensor.offset, tensor.offset + tensor.bytes});
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i) require(ranges[i - 1].second <= ranges[i].first);
  for (std::string_view key : gguf.keys()) require(gguf.has(key));
}

void require_consistent(const model::ModelFile& model) {
  const model::ModelConfig& config = model.config;
  const model::StackConfig& stack = config.stacks.at(0);
  require(stack.heads % stack.kv_heads == 0 && stack.rope.dims <= stack.head_dim);
  require(static_cast<int>(model.tensors.layers.size()) == stack.layers);
  require(static_cast<int>(stack.windows.size()) == stack.layers);
  require(model.vocab.tokens->size() == static_cast<size_t>(config.vocab_size));
  require(model.vocab.types.size() == static_cast<size_t>(config.vocab_size));
  require(model.vocab.bos < config.vocab_size && model.vocab.eos < config.vocab_size);
  for (const model::GgufTensor& tensor : model.gguf->tensors()) {
    require(model::count_non_finite(*model.gguf, tensor).ok());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string bytes(reinterpret_cast<const char*>(data), size);
  auto gguf = model::GgufFile::parse(std::make_unique<testing::MemoryFile>(std::move(bytes)), "fuzz");
  if (!gguf.ok()) {
    require_clean(gguf.status());
    return 0;
  }
  require_cover(**gguf);
  const auto model = model::read_model(std::move(gguf).value());
  if (!model.ok()) {
    require_clean(model.status());
    return 0;
  }
  require_consistent(*model);
  return 0;
}
