#include "tokenizer/pre_tokenizer.h"

#include "core/format.h"
#include "tokenizer/vocab.h"

namespace tessera::tokenizer {
namespace {

struct Entry {
  std::string_view name;
  const PreTokenizer& (*get)();
};
constexpr Entry kEntries[] = {
    {"gpt-2", gpt2_pre_tokenizer},
    {"smollm", smollm_pre_tokenizer},
};

}  // namespace

std::vector<std::string_view> pre_tokenizer_names() {
  std::vector<std::string_view> names;
  for (const Entry& entry : kEntries) names.push_back(entry.name);
  return names;
}

Result<const PreTokenizer*> find_pre_tokenizer(std::string_view name) {
  for (const Entry& entry : kEntries) {
    if (entry.name == name) return &entry.get();
  }
  std::string known;
  for (const std::string_view each : pre_tokenizer_names())
    known += known.empty() ? each : format(", {}", each);
  return unsupported(format("tokenizer.ggml.pre: unknown pre-tokenizer {}; known: {}", quoted(name), known));
}

}  // namespace tessera::tokenizer
