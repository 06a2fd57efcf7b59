// Rotary position embedding. Source: Su et al., "RoFormer", 2021, equation 34.
#pragma once

#include <cstdint>
#include <span>

#include "core/buffer.h"
#include "core/context.h"
#include "ops/rows.h"
#include "tessera/status.h"

namespace tessera::ops {

enum class RopeScaling : uint8_t {
  none,
  linear,  // angles divided by `factor`
};

enum class RopeStyle : uint8_t {
  half,         // pairs (i, i + dims / 2): Hugging Face, GPT-NeoX
  interleaved,  // pairs (2i, 2i + 1): the paper, and Llama weights in GGUF
};

struct RopeConfig {
  int dims = 0;  // rotated elements of a head, even, <= head_dim; the rest pass unchanged
  float base = 10000.0f;
  RopeStyle style = RopeStyle::half;
  RopeScaling scaling = RopeScaling::none;
  float factor = 1.0f;  // of linear scaling
  int64_t max_positions = 0;
};

// cos and sin of every position, computed once: 4 dims bytes a position. Angles are rounded as in the models'
// own training code: frequency f32(1 / base^(2i/dims)), angle f32(position * frequency), then cos and sin of
// that angle to f32. Immutable, so any number of threads may read it.
class RopeTable {
 public:
  RopeTable() = default;
  // Errors: invalid_argument naming the field of RopeConfig; resource_exhausted.
  static Result<RopeTable> create(const RopeConfig& config);
  const RopeConfig& config() const { return config_; }
  // cos [dims / 2] and then sin [dims / 2] of a position. REQUIRES: 0 <= position < max_positions.
  const float* at(int64_t position) const { return storage_.as<float>() + position * config_.dims; }

 private:
  RopeConfig config_;
  Buffer storage_;
};

// Rotates in place x[r] = [heads][head_dim] by positions[r]. REQUIRES: x.rows <= positions.size(), every
// position in the table, dims <= head_dim. Each pair: (a cos - b sin, a sin + b cos), as fma(a, cos, -(b
// sin)), fma(b, cos, a sin).
void rope(Context& context, const RopeTable& table, RowsView x, int heads, int head_dim,
          std::span<const int32_t> positions);

}  // namespace tessera::ops
