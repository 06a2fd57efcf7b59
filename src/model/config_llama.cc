#include "model/config_llama.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "core/format.h"

namespace tessera::model {
namespace {

// Beyond these a number cannot be meant; they keep products of two in 64 bits.
constexpr uint32_t kMaxWidth = 1u << 24;
constexpr uint32_t kMaxContext = 1u << 27;

constexpr const char* kTensorsOfLayer[] = {"attn_norm", "attn_q",   "attn_k", "attn_v",  "attn_output",
                                           "ffn_norm",  "ffn_gate", "ffn_up", "ffn_down"};

class LlamaReader {
 public:
  explicit LlamaReader(const GgufFile& gguf) : gguf_(gguf) {}

  Result<ModelLayout> read() {
    TESSERA_RETURN_IF_ERROR(read_keys());
    TESSERA_RETURN_IF_ERROR(refuse_unknown_keys());
    TESSERA_RETURN_IF_ERROR(read_tensors());
    TESSERA_RETURN_IF_ERROR(refuse_unknown_tensors());
    return std::move(layout_);
  }

 private:
  Status fail(const std::string& text) const { return gguf_.error(text); }
  Status not_here(const std::string& text) const { return unsupported(gguf_.file_name() + ": " + text); }

  std::string key(const char* name) {
    std::string full = std::string("llama.") + name;
    known_keys_.insert(full);
    return full;
  }

  // A whole number from `least` to `most`.
  Status number(const char* name, uint32_t least, uint32_t most, int* out) {
    const std::string full = key(name);
    TESSERA_ASSIGN_OR_RETURN(const uint32_t value, gguf_.get<uint32_t>(full));
    if (value < least || value > most) {
      return fail(format("{} is {}, expected {} to {}", full, value, least, most));
    }
    *out = static_cast<int>(value);
    return {};
  }
  Status optional_number(const char* name, uint32_t least, uint32_t most, int fallback, int* out) {
    *out = fallback;
    return gguf_.has(key(name)) ? number(name, least, most, out) : Status();
  }
  Status positive(const char* name, float fallback, float* out) {
    const std::string full = key(name);
    TESSERA_ASSIGN_OR_RETURN(*out, gguf_.get_or<float>(full, fallback));
    if (!(*out > 0 && std::isfinite(*out)))
      return fail(format("{} is {}, expected a finite number above 0", full, *out));
    return {};
  }

  Status read_keys() {
    ModelConfig& config = layout_.config;
    StackConfig& stack = config.stacks.emplace_back();
    config.architecture = "llama";
    TESSERA_ASSIGN_OR_RETURN(config.name, gguf_.get_or<std::string_view>("general.name", ""));
    TESSERA_RETURN_IF_ERROR(number("block_count", 1, kMaxWidth, &stack.layers));
    // Every layer has its tensors, so their number bounds the layers before anything is sized by them.
    const size_t tensors = gguf_.tensors().size();
    if (static_cast<size_t>(stack.layers) > tensors / std::size(kTensorsOfLayer)) {
      return fail(format("llama.block_count is {}, but {} tensors are too few for {} in each layer",
                         stack.layers, tensors, std::size(kTensorsOfLayer)));
    }
    TESSERA_RETURN_IF_ERROR(number("context_length", 1, kMaxContext, &config.context_length));
    TESSERA_RETURN_IF_ERROR(number("embedding_length", 1, kMaxWidth, &stack.width));
    TESSERA_RETURN_IF_ERROR(number("feed_forward_length", 1, kMaxWidth, &stack.ffn_width));
    TESSERA_RETURN_IF_ERROR(read_heads(&stack));
    const std::string eps = key("attention.layer_norm_rms_epsilon");
    TESSERA_ASSIGN_OR_RETURN(stack.norm_eps, gguf_.get<float>(eps));
    if (!(stack.norm_eps > 0 && stack.norm_eps < 1)) {
      return fail(format("{} is {}, expected more than 0 and less than 1", eps, stack.norm_eps));
    }
    TESSERA_RETURN_IF_ERROR(read_rope(&stack));
    int window = 0;
    TESSERA_RETURN_IF_ERROR(optional_number("attention.sliding_window", 1, kMaxContext, 0, &window));
    stack.windows.assign(static_cast<size_t>(stack.layers), window);
    return read_experts();
  }

  Status read_heads(StackConfig* stack) {
    TESSERA_RETURN_IF_ERROR(number("attention.head_count", 1, kMaxWidth, &stack->heads));
    TESSERA_RETURN_IF_ERROR(
        optional_number("attention.head_count_kv", 1, kMaxWidth, stack->heads, &stack->kv_heads));
    if (stack->heads % stack->kv_heads != 0) {
      return fail(
          format("llama.attention.head_count is {}, not a multiple of llama.attention.head_count_kv, {}",
                 stack->heads, stack->kv_heads));
    }
    if (!gguf_.has("llama.attention.key_length") && stack->width % stack->heads != 0) {
      return fail(format("llama.embedding_length is {}, not a multiple of llama.attention.head_count, {}",
                         stack->width, stack->heads));
    }
    TESSERA_RETURN_IF_ERROR(
        optional_number("attention.key_length", 1, kMaxWidth, stack->width / stack->heads, &stack->head_dim));
    int value_length = 0;
    TESSERA_RETURN_IF_ERROR(
        optional_number("attention.value_length", 1, kMaxWidth, stack->head_dim, &value_length));
    if (value_length != stack->head_dim) {
      return not_here(format("llama.attention.value_length is {}, expected the length of keys, {}",
                             value_length, stack->head_dim));
    }
    stack->attention_scale = 1.0f / std::sqrt(static_cast<float>(stack->head_dim));
    return {};
  }

  Status read_rope(StackConfig* stack) {
    RopeConfig& rope = stack->rope;
    rope.kind =
        RopeKind::interleaved;  // the converter permutes q and k of this family to pairs that lie together
    TESSERA_RETURN_IF_ERROR(
        optional_number("rope.dimension_count", 2, kMaxWidth, stack->head_dim, &rope.dims));
    if (rope.dims % 2 != 0 || rope.dims > stack->head_dim) {
      return fail(format("llama.rope.dimension_count is {}, expected an even number up to the head's {}",
                         rope.dims, stack->head_dim));
    }
    TESSERA_RETURN_IF_ERROR(positive("rope.freq_base", 10000.0f, &rope.base));
    const std::string scaling_key = key("rope.scaling.type");
    TESSERA_ASSIGN_OR_RETURN(const std::string_view scaling,
                             gguf_.get_or<std::string_view>(scaling_key, "none"));
    if (scaling == "none") return {};
    if (scaling != "linear") {
      return not_here(format("{} is {}; known: none, linear", scaling_key, quote_text(scaling)));
    }
    return positive("rope.scaling.factor", 1.0f, &rope.scale);
  }

  Status read_experts() {
    for (const char* name : {"expert_count", "expert_used_count"}) {
      int count = 0;
      TESSERA_RETURN_IF_ERROR(optional_number(name, 0, kMaxWidth, 0, &count));
      if (count != 0)
        return not_here(format("llama.{} is {}; mixtures of experts are not supported", name, count));
    }
    return {};
  }

  // A key that is not known may change what the model computes.
  Status refuse_unknown_keys() {
    key("vocab_size");
    for (const std::string_view name : gguf_.keys()) {
      if (name.starts_with("llama.") && !known_keys_.contains(std::string(name))) {
        return not_here(format("key '{}' is not known for this architecture", name));
      }
    }
    return {};
  }

  Result<const GgufTensor*> tensor(const std::string& name, std::initializer_list<int64_t> shape) {
    const GgufTensor* found = gguf_.find_tensor(name);
    GgufTensor wanted;
    for (int64_t extent : shape) wanted.shape[static_cast<size_t>(wanted.rank++)] = extent;
    if (found == nullptr) {
      return fail(format("tensor '{}' of shape {} is missing", name, wanted.shape_text()));
    }
    if (found->rank != wanted.rank || found->shape != wanted.shape) {
      return fail(
          format("tensor '{}' has shape {}, expected {}", name, found->shape_text(), wanted.shape_text()));
    }
    used_.insert(name);
    return found;
  }
  Status matrix(std::string name, int64_t rows, int64_t columns, std::string* out) {
    const auto found = tensor(name, {rows, columns});
    *out = std::move(name);
    return found.status();
  }
  Status vector(std::string name, int64_t count, std::string* out) {
    TESSERA_ASSIGN_OR_RETURN(const GgufTensor* found, tensor(name, {count}));
    if (found->dtype != DType::f32) {
      return fail(format("tensor '{}' is {}, expected f32", name, tessera::name(found->dtype)));
    }
    *out = std::move(name);
    return {};
  }

  Status read_tensors() {
    ModelConfig& config = layout_.config;
    StackConfig& stack = config.stacks[0];
    TensorNames& names = layout_.tensors;
    const int64_t width = stack.width;
    TESSERA_RETURN_IF_ERROR(read_vocab_size());
    TESSERA_RETURN_IF_ERROR(matrix("token_embd.weight", config.vocab_size, width, &names.embedding));
    for (int layer = 0; layer < stack.layers; ++layer) TESSERA_RETURN_IF_ERROR(read_layer(layer));
    TESSERA_RETURN_IF_ERROR(vector("output_norm.weight", width, &names.output_norm));
    config.tied_head = gguf_.find_tensor("output.weight") == nullptr;
    if (config.tied_head) {
      names.head = names.embedding;
    } else {
      TESSERA_RETURN_IF_ERROR(matrix("output.weight", config.vocab_size, width, &names.head));
    }
    return read_rope_factors(&stack.rope);
  }

  Status read_vocab_size() {
    const GgufTensor* embedding = gguf_.find_tensor("token_embd.weight");
    if (embedding == nullptr) return fail("tensor 'token_embd.weight' is missing");
    const int64_t rows = embedding->rank == 2 ? embedding->shape[0] : 0;
    if (rows < 1 || rows > kMaxWidth) {
      return fail(format("tensor 'token_embd.weight' has shape {}, expected 1 to {} rows of {}",
                         embedding->shape_text(), kMaxWidth, layout_.config.stacks[0].width));
    }
    int stated = 0;
    TESSERA_RETURN_IF_ERROR(optional_number("vocab_size", 1, kMaxWidth, static_cast<int>(rows), &stated));
    if (stated != rows) {
      return fail(format("llama.vocab_size is {}, but tensor 'token_embd.weight' has {} rows", stated, rows));
    }
    layout_.config.vocab_size = stated;
    return {};
  }

  Status read_layer(int layer) {
    const StackConfig& stack = layout_.config.stacks[0];
    const int64_t width = stack.width;
    const int64_t q_width = int64_t{stack.heads} * stack.head_dim;
    const int64_t kv_width = int64_t{stack.kv_heads} * stack.head_dim;
    const auto name = [&](int i) { return format("blk.{}.{}.weight", layer, kTensorsOfLayer[i]); };
    LayerTensors& names = layout_.tensors.layers.emplace_back();
    TESSERA_RETURN_IF_ERROR(vector(name(0), width, &names.attn_norm));
    TESSERA_RETURN_IF_ERROR(matrix(name(1), q_width, width, &names.q));
    TESSERA_RETURN_IF_ERROR(matrix(name(2), kv_width, width, &names.k));
    TESSERA_RETURN_IF_ERROR(matrix(name(3), kv_width, width, &names.v));
    TESSERA_RETURN_IF_ERROR(matrix(name(4), width, q_width, &names.attn_output));
    TESSERA_RETURN_IF_ERROR(vector(name(5), width, &names.ffn_norm));
    TESSERA_RETURN_IF_ERROR(matrix(name(6), stack.ffn_width, width, &names.gate));
    TESSERA_RETURN_IF_ERROR(matrix(name(7), stack.ffn_width, width, &names.up));
    return matrix(name(8), width, stack.ffn_width, &names.down);
  }

  // Llama 3.1 and later: one divisor for each frequency.
  Status read_rope_factors(RopeConfig* rope) {
    const char* name = "rope_freqs.weight";
    if (gguf_.find_tensor(name) == nullptr) return {};
    std::string ignored;
    TESSERA_RETURN_IF_ERROR(vector(name, rope->dims / 2, &ignored));
    rope->factors.resize(static_cast<size_t>(rope->dims / 2));
    TESSERA_RETURN_IF_ERROR(
        gguf_.read(*gguf_.find_tensor(name), 0, std::as_writable_bytes(std::span(rope->factors))));
    for (float factor : rope->factors) {
      if (!(factor > 0 && std::isfinite(factor))) {
        return fail(format("tensor '{}' has the value {}, expected finite numbers above 0", name, factor));
      }
    }
    return {};
  }

  Status refuse_unknown_tensors() const {
    for (const GgufTensor& tensor : gguf_.tensors()) {
      if (!used_.contains(tensor.name)) {
        return not_here(format("tensor '{}' has no place in architecture llama with {} layers", tensor.name,
                               layout_.config.stacks[0].layers));
      }
    }
    return {};
  }

  const GgufFile& gguf_;
  ModelLayout layout_;
  std::set<std::string> known_keys_;
  std::set<std::string> used_;
};

}  // namespace

Result<ModelLayout> llama_layout(const GgufFile& gguf) {
  return LlamaReader(gguf).read();
}

}  // namespace tessera::model
