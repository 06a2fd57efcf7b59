// Small Llama models as GGUF files: a complete set of keys, tensors and a byte-level vocabulary, weights from
// a seed.
#pragma once

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "tests/support/gguf_writer.h"

namespace tessera::testing {

struct TinyLlama {
  uint32_t layers = 2;
  uint32_t width = 64;
  uint32_t heads = 4;
  uint32_t kv_heads = 2;
  uint32_t head_dim = 16;
  uint32_t ffn_width = 96;
  uint32_t context_length = 512;
  uint32_t window = 0;  // sliding window; 0: no key
  bool tied_head = true;
  bool byte_vocabulary = true;  // 256 bytes and 3 specials; false: 4 tokens, for small files
  DType dtype = DType::f32;     // of the matrices
  uint64_t seed = 1;

  static constexpr const char* kChatTemplate =
      "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
      "'<|im_end|>' "
      "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

  // GPT-2's printable stand-ins for the 256 bytes, in the order of the bytes.
  static std::vector<std::string> byte_tokens() {
    std::vector<std::string> tokens;
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable =
          (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
      const uint32_t point = printable ? byte : next++;
      if (point < 0x80) {
        tokens.push_back(std::string(1, static_cast<char>(point)));
      } else {
        tokens.push_back({static_cast<char>(0xc0 | (point >> 6)), static_cast<char>(0x80 | (point & 0x3f))});
      }
    }
    return tokens;
  }

  std::vector<std::string> tokens() const {
    std::vector<std::string> list = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    if (!byte_vocabulary) return list.push_back("a"), list;
    for (std::string& token : byte_tokens()) list.push_back(std::move(token));
    return list;
  }

  // Uniform values whose rows have a norm of about 1, so that activations keep their size through the layers.
  std::string matrix(uint64_t rows, uint64_t columns, uint64_t stream) const {
    std::mt19937_64 random(seed * 1000 + stream);
    const float limit = std::sqrt(3.0f / static_cast<float>(columns));
    const auto uniform = [&] { return static_cast<float>(random() >> 40) * 0x1p-23f - 1.0f; };
    std::string data;
    if (!info(dtype).quantized) {
      for (uint64_t i = 0; i < rows * columns; ++i) {
        const float value = limit * uniform();
        data += dtype == DType::f32   ? le(value)
                : dtype == DType::f16 ? le(f32_to_f16(value))
                                      : le(f32_to_bf16(value));
      }
      return data;
    }
    const bool bytes = dtype == DType::q8_0;
    for (uint64_t block = 0; block < rows * columns / 32; ++block) {
      const float scale = limit / (bytes ? 127.0f : 8.0f) * (1.0f + 0.5f * uniform());
      data += le(f32_to_f16(scale));
      if (dtype == DType::q4_1) data += le(f32_to_f16(-7.5f * scale));
      for (int i = 0; i < (bytes ? 32 : 16); ++i) data += static_cast<char>(random() >> 56);
    }
    return data;
  }

  GgufWriter writer() const {
    GgufWriter w;
    w.str("general.architecture", "llama").str("general.name", "tiny");
    w.u32("llama.block_count", layers).u32("llama.context_length", context_length);
    w.u32("llama.embedding_length", width).u32("llama.feed_forward_length", ffn_width);
    w.u32("llama.attention.head_count", heads).u32("llama.attention.head_count_kv", kv_heads);
    w.u32("llama.attention.key_length", head_dim).u32("llama.attention.value_length", head_dim);
    w.u32("llama.rope.dimension_count", head_dim).f32("llama.rope.freq_base", 10000.0f);
    w.f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
    if (window > 0) w.u32("llama.attention.sliding_window", window);
    const std::vector<std::string> vocabulary = tokens();
    std::vector<int32_t> types(vocabulary.size(), 1);
    for (size_t i = 0; i < 3; ++i) types[i] = 3;
    w.u32("llama.vocab_size", static_cast<uint32_t>(vocabulary.size()));
    w.str("tokenizer.ggml.model", "gpt2").str("tokenizer.ggml.pre", "smollm");
    w.strs("tokenizer.ggml.tokens", vocabulary).i32s("tokenizer.ggml.token_type", types);
    w.strs("tokenizer.ggml.merges", {});
    w.u32("tokenizer.ggml.bos_token_id", 1).u32("tokenizer.ggml.eos_token_id", 2);
    w.boolean("tokenizer.ggml.add_bos_token", false);
    w.str("tokenizer.chat_template", kChatTemplate);

    uint64_t stream = 0;
    const auto add = [&](std::string name, uint64_t rows, uint64_t columns) {
      w.tensor(std::move(name), dtype, {rows, columns}, matrix(rows, columns, ++stream));
    };
    const auto norm = [&](std::string name) {
      std::string data;
      for (uint32_t i = 0; i < width; ++i) data += le(1.0f + 0.01f * static_cast<float>(i % 7));
      w.tensor(std::move(name), DType::f32, {width}, data);
    };
    add("token_embd.weight", vocabulary.size(), width);
    for (uint32_t layer = 0; layer < layers; ++layer) {
      const std::string prefix = "blk." + std::to_string(layer) + ".";
      norm(prefix + "attn_norm.weight");
      add(prefix + "attn_q.weight", heads * head_dim, width);
      add(prefix + "attn_k.weight", kv_heads * head_dim, width);
      add(prefix + "attn_v.weight", kv_heads * head_dim, width);
      add(prefix + "attn_output.weight", width, heads * head_dim);
      norm(prefix + "ffn_norm.weight");
      add(prefix + "ffn_gate.weight", ffn_width, width);
      add(prefix + "ffn_up.weight", ffn_width, width);
      add(prefix + "ffn_down.weight", width, ffn_width);
    }
    norm("output_norm.weight");
    if (!tied_head) add("output.weight", vocabulary.size(), width);
    return w;
  }
};

}  // namespace tessera::testing
