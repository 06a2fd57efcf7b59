// Rotary position embedding (Su et al., "RoFormer", 2021, equation 34), forward and backward.
//
// The first rotary_dim elements of a head are pairs (a, b); at position p pair i turns by p * frequency[i]:
//   (a cos - b sin, a sin + b cos), computed as fma(a, cos, -(b sin)), fma(b, cos, a sin) in f32 and rounded
//   once.
// Elements from rotary_dim on pass unchanged. Backward is the transposed map: the same with -sin.
// Frequencies follow Hugging Face transformers' ROPE_INIT_FUNCTIONS, in f32 like theirs, so that models keep
// the angles that they were trained with.
#pragma once

#include <cstdint>
#include <vector>

#include "tessera/attention.h"
#include "tessera/context.h"
#include "tessera/dtype.h"
#include "tessera/status.h"

namespace tessera::attention {

enum class RopeStyle : uint8_t {
  half,         // pairs (i, i + rotary_dim / 2): Hugging Face, GPT-NeoX; flash-attn's interleaved=False
  interleaved,  // pairs (2i, 2i + 1): the paper, GPT-J; flash-attn's interleaved=True
};

enum class RopeScaling : uint8_t {
  none,
  linear,       // frequencies / factor (position interpolation)
  ntk,          // base * factor^(dim / (dim - 2)), whatever the length
  dynamic_ntk,  // the same with factor * seqlen / original - (factor - 1), past `original` positions only
  yarn,         // Peng et al. 2023: high frequencies stay, low ones / factor, a ramp between; scales cos, sin
  llama3,       // Llama 3.1: the same three bands by wavelength
};

struct RopeConfig {
  uint32_t struct_size = sizeof(RopeConfig);
  int rotary_dim = 0;  // even, 2 to 65536
  double base = 10000.0;
  RopeStyle style = RopeStyle::half;
  RopeScaling scaling = RopeScaling::none;
  double factor = 1.0;  // above 0; at least 1 for all but linear
  // Positions that the model was trained for: dynamic_ntk (max_position_embeddings), yarn and llama3
  // (original_max_position_embeddings).
  int64_t original_max_positions = 0;
  int64_t seqlen = 0;  // dynamic_ntk: tokens of the longest sequence now
  // yarn. attention_factor multiplies cos and sin; 0: 0.1 ln(factor) + 1, or the quotient of that with mscale
  // and with mscale_all_dim when both are given.
  double beta_fast = 32.0, beta_slow = 1.0;
  double attention_factor = 0.0, mscale = 0.0, mscale_all_dim = 0.0;
  bool truncate = true;  // the ramp's ends to whole pairs
  // llama3
  double low_freq_factor = 1.0, high_freq_factor = 4.0;
};

struct RopeFrequencies {
  std::vector<float> frequency;    // [rotary_dim / 2] radians a position
  float attention_scaling = 1.0f;  // what cos and sin are multiplied by
};

// Errors: invalid_argument naming the field of RopeConfig, its value and the limit.
Result<RopeFrequencies> rope_frequencies(const RopeConfig& config);

// cos and sin of positions 0 to positions - 1, [positions][rotary_dim / 2] each, in f32: of the f32 product
// position * frequency, times attention_scaling. Immutable, so any number of threads may read it. Takes 4 *
// rotary_dim bytes a position.
class RopeTable {
 public:
  RopeTable() = default;
  // Errors: those of rope_frequencies(); resource_exhausted.
  static Result<RopeTable> create(const RopeConfig& config, int64_t positions);
  const RopeConfig& config() const { return config_; }
  int64_t positions() const { return positions_; }
  const float* cos() const { return cos_.data(); }
  const float* sin() const { return sin_.data(); }

 private:
  RopeConfig config_;
  int64_t positions_ = 0;
  std::vector<float> cos_, sin_;
};

// How to rotate: style and a table, one of RopeTable or the caller's own.
struct Rotary {
  RopeStyle style = RopeStyle::half;
  int rotary_dim = 0;  // even, at least 2, at most head_dim
  // [positions][rotary_dim / 2] at position * row_stride elements; f32, f16 or bf16.
  const void* cos = nullptr;
  const void* sin = nullptr;
  DType dtype = DType::f32;
  int64_t positions = 0;
  int64_t row_stride = 0;  // 0: rotary_dim / 2
};

// Points into the table, which must outlive it.
Rotary rotary(const RopeTable& table);

// The rows to rotate. Row t of batch b stands at positions[b * positions_batch_stride + t] when positions is
// given (with cu_seqlens: positions[row]), else at (offsets ? offsets[b] : offset) + t.
struct RopeProblem {
  uint32_t struct_size = sizeof(RopeProblem);
  int64_t batch = 1;
  int64_t seqlen = 0;  // not read with cu_seqlens
  int heads = 0;
  int head_dim = 0;          // at most 1024
  DType dtype = DType::f32;  // of x and out: f32, f16 or bf16
  Rotary rotary;
  const int32_t* positions = nullptr;
  int64_t positions_batch_stride = 0;  // 0: the same positions in every batch
  const int32_t* offsets = nullptr;    // [batch]
  int64_t offset = 0;
  const int32_t* cu_seqlens = nullptr;  // [batch + 1] rising from 0: rows of all sequences, no batch axis
  int64_t total = 0;  // with cu_seqlens: its last entry, needed on a device; on the CPU it may be left 0
};

// out = x rotated. out may be x, with the same strides. Moves x once in and once out; rows are divided over
// the context's threads. Errors: invalid_argument naming the field; a position outside the table is found
// before anything is written.
Status rope_forward(Context& context, const RopeProblem& problem, const Strided<const void*>& x,
                    const Strided<void*>& out);

// dx = gradient of rope_forward's x from dout, its result's.
Status rope_backward(Context& context, const RopeProblem& problem, const Strided<const void*>& dout,
                     const Strided<void*>& dx);

}  // namespace tessera::attention
