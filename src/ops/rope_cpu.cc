#include <cmath>

#include "core/format.h"
#include "ops/cpu/kernels.h"
#include "ops/rope.h"
#include "tessera/rope.h"

namespace tessera::ops {

Result<RopeTable> RopeTable::create(const RopeConfig& config) {
  constexpr int64_t kMaxPositions = int64_t{1} << 28;
  if (config.dims < 2 || config.dims % 2 != 0 || config.dims > 65536) {
    return invalid_argument(format("rope: dims is {}, must be even and 2 to 65536", config.dims), "dims");
  }
  if (!(config.base > 1.0f) || !std::isfinite(config.base)) {
    return invalid_argument(format("rope: base is {}, must be a finite number above 1", config.base), "base");
  }
  if (config.scaling == RopeScaling::linear && (!(config.factor > 0.0f) || !std::isfinite(config.factor))) {
    return invalid_argument(format("rope: factor is {}, must be a finite number above 0", config.factor),
                            "factor");
  }
  if (config.max_positions < 1 || config.max_positions > kMaxPositions) {
    return invalid_argument(
        format("rope: max_positions is {}, must be 1 to {}", config.max_positions, kMaxPositions),
        "max_positions");
  }
  attention::RopeConfig shared;
  shared.rotary_dim = config.dims;
  shared.base = config.base;
  shared.factor = config.factor;
  if (config.scaling == RopeScaling::linear) shared.scaling = attention::RopeScaling::linear;
  TESSERA_ASSIGN_OR_RETURN(const attention::RopeFrequencies frequencies, attention::rope_frequencies(shared));
  RopeTable table;
  table.config_ = config;
  const int half = config.dims / 2;
  const size_t floats = static_cast<size_t>(config.max_positions) * static_cast<size_t>(config.dims);
  TESSERA_ASSIGN_OR_RETURN(table.storage_, Buffer::create(floats * sizeof(float), "rope table"));
  for (int i = 0; i < half; ++i) {
    const float frequency = frequencies.frequency[static_cast<size_t>(i)];
    for (int64_t position = 0; position < config.max_positions; ++position) {
      float* row = table.storage_.as<float>() + position * config.dims;
      const double angle = static_cast<float>(position) * frequency;
      row[i] = static_cast<float>(std::cos(angle));
      row[half + i] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

void rope(Context& context, const RopeTable& table, RowsView x, int heads, int head_dim,
          std::span<const int32_t> positions) {
  const RopeConfig& config = table.config();
  TESSERA_CHECK(config.dims <= head_dim && x.rows <= static_cast<int64_t>(positions.size()));
  TESSERA_CHECK(x.rows <= 1 || x.stride >= int64_t{heads} * head_dim);
  for (int64_t r = 0; r < x.rows; ++r) {
    const int32_t position = positions[static_cast<size_t>(r)];
    TESSERA_CHECK_MSG(position >= 0 && position < config.max_positions,
                      format("position {} of {}", position, config.max_positions));
  }
  const auto kernel = config.style == RopeStyle::half ? kernels().rope_half : kernels().rope_interleaved;
  context.pool.parallel_for(x.rows, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float* cos_sin = table.at(positions[static_cast<size_t>(r)]);
      for (int head = 0; head < heads; ++head)
        kernel(x.row(r) + int64_t{head} * head_dim, cos_sin, config.dims / 2);
    }
  });
}

}  // namespace tessera::ops
