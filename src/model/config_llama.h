// The Llama family in GGUF: RMSNorm, rotary positions, grouped heads, SwiGLU, no biases.
#pragma once

#include "model/config.h"

namespace tessera::model {

Result<ModelLayout> llama_layout(const GgufFile& gguf);

}  // namespace tessera::model
