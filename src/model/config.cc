#include "model/config.h"

#include "core/format.h"
#include "model/config_llama.h"

namespace tessera::model {

int64_t ModelConfig::kv_elements_per_token() const {
  int64_t sum = 0;
  for (const StackConfig& stack : stacks) {
    sum += int64_t{2} * stack.layers * stack.kv_heads * stack.head_dim;
  }
  return sum;
}

Result<ModelLayout> layout_from_gguf(const GgufFile& gguf) {
  TESSERA_ASSIGN_OR_RETURN(const std::string_view architecture,
                           gguf.get<std::string_view>("general.architecture"));
  if (architecture == "llama") return llama_layout(gguf);
  return unsupported(
      format("{}: general.architecture is {}; known: llama", gguf.file_name(), quote_text(architecture)));
}

}  // namespace tessera::model
