// ModelConfig: what a model is, as data. The graph is built from it and from nothing else; a new family is a
// mapping from its file's keys to this struct and a table of its tensors' names.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/gguf.h"
#include "tessera/status.h"

namespace tessera::model {

enum class StackKind : uint8_t { decoder };
enum class NormKind : uint8_t { rms };
enum class Activation : uint8_t { silu };

// Which two elements of a head are turned together by pair i of dims/2: (2i, 2i+1), or (i, i + dims/2).
enum class RopeKind : uint8_t { interleaved, rotate_half };

// Pair i turns by position / scale * base^(-2i/dims) / factors[i].
// Source: RoFormer (Su et al. 2021), eq. 15; linear scaling as in Chen et al. 2023.
struct RopeConfig {
  RopeKind kind = RopeKind::interleaved;
  int dims = 0;  // of each head, from its first element; even, at most head_dim
  float base = 10000.0f;
  float scale = 1.0f;          // linear scaling of positions; 1: none
  std::vector<float> factors;  // [dims / 2], each positive; empty: all 1
};

// A run of equal layers: norm, attention, residual, norm, feed-forward, residual (with pre_norm).
struct StackConfig {
  StackKind kind = StackKind::decoder;
  bool causal = true;
  bool pre_norm = true;
  NormKind norm = NormKind::rms;
  float norm_eps = 1e-5f;
  int layers = 0;
  int width = 0;
  int heads = 0;
  int kv_heads = 0;  // divides heads
  int head_dim = 0;
  float attention_scale = 0;  // of q.k before the softmax
  RopeConfig rope;
  std::vector<int> windows;  // [layers]: a token sees itself and windows[l] - 1 tokens before it; 0: all
  bool qk_norm = false;
  bool qkv_bias = false;
  Activation activation = Activation::silu;
  bool gated = true;  // down(activation(gate(x)) * up(x)); false: down(activation(up(x)))
  int ffn_width = 0;
};

struct ModelConfig {
  std::string architecture;  // "llama"
  std::string name;          // general.name; may be empty
  int vocab_size = 0;
  int context_length = 0;  // as trained
  bool tied_head = false;  // the head is the embedding
  std::vector<StackConfig> stacks;

  // Elements that the cache keeps for one token: K and V of all layers.
  int64_t kv_elements_per_token() const;
};

// Where the weights are: names of tensors of the file, each checked to be there with the shape behind it.
// Matrices are [outputs, inputs] of any supported dtype; norms are f32.
struct LayerTensors {
  std::string attn_norm;    // [width]
  std::string q;            // [heads * head_dim, width]
  std::string k;            // [kv_heads * head_dim, width]
  std::string v;            // [kv_heads * head_dim, width]
  std::string attn_output;  // [width, heads * head_dim]
  std::string ffn_norm;     // [width]
  std::string gate;         // [ffn_width, width]
  std::string up;           // [ffn_width, width]
  std::string down;         // [width, ffn_width]
};
struct TensorNames {
  std::string embedding;             // [vocab_size, width]
  std::vector<LayerTensors> layers;  // [layers]
  std::string output_norm;           // [width]
  std::string head;                  // [vocab_size, width]; the embedding when it is tied
};

struct ModelLayout {
  ModelConfig config;
  TensorNames tensors;
};

// Maps general.architecture's keys and tensors; everything is validated against the tensors' shapes before it
// is used for anything. Known architectures: llama. Errors: bad_file (a key or tensor is missing, has the
// wrong type, shape or value), unsupported (an unknown architecture, an unknown key of the architecture, or a
// tensor that it has no place for: each could change what the model computes, so none is skipped).
Result<ModelLayout> layout_from_gguf(const GgufFile& gguf);

}  // namespace tessera::model
