#include "attention/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "attention/execution.h"
#include "core/context.h"
#include "core/format.h"

namespace tessera::attention {
namespace {

constexpr int64_t kMostPositions = int64_t{1} << 28;
constexpr double kPi = std::numbers::pi;

Status refuse(const char* field, double value, const char* limit) {
  return invalid_argument(format("rope: {}={} must be {}", field, value, limit), field);
}

bool finite_above(double value, double limit) {
  return std::isfinite(value) && value > limit;
}

Status validate(const RopeConfig& c) {
  if (c.struct_size != sizeof(RopeConfig))
    return refuse("struct_size", c.struct_size, "sizeof(RopeConfig) of this build");
  if (c.rotary_dim < 2 || c.rotary_dim % 2 != 0 || c.rotary_dim > 65536)
    return refuse("rotary_dim", c.rotary_dim, "even and 2 to 65536");
  if (!finite_above(c.base, 1)) return refuse("base", c.base, "a finite number above 1");
  if (c.scaling == RopeScaling::none) return {};
  const bool linear = c.scaling == RopeScaling::linear;
  if (!finite_above(c.factor, 0) || (!linear && c.factor < 1))
    return refuse("factor", c.factor, linear ? "a finite number above 0" : "a finite number from 1");
  if (linear) return {};
  const bool ntk = c.scaling == RopeScaling::ntk || c.scaling == RopeScaling::dynamic_ntk;
  if (ntk && c.rotary_dim < 4) return refuse("rotary_dim", c.rotary_dim, "at least 4 for NTK scaling");
  if (c.scaling == RopeScaling::ntk) return {};
  if (c.original_max_positions < 1 || c.original_max_positions > kMostPositions)
    return refuse("original_max_positions", static_cast<double>(c.original_max_positions), "1 to 2^28");
  switch (c.scaling) {
    case RopeScaling::dynamic_ntk:
      if (c.seqlen < 0 || c.seqlen > kMostPositions)
        return refuse("seqlen", static_cast<double>(c.seqlen), "0 to 2^28");
      return {};
    case RopeScaling::yarn:
      if (!finite_above(c.beta_slow, 0)) return refuse("beta_slow", c.beta_slow, "a finite number above 0");
      if (!finite_above(c.beta_fast, 0) || c.beta_fast < c.beta_slow)
        return refuse("beta_fast", c.beta_fast, "a finite number, at least beta_slow");
      for (const auto& [value, field] : {std::pair{c.attention_factor, "attention_factor"},
                                         {c.mscale, "mscale"},
                                         {c.mscale_all_dim, "mscale_all_dim"}}) {
        if (!std::isfinite(value) || value < 0)
          return refuse(field, value, "a finite number from 0 (0: inferred)");
      }
      return {};
    default:
      if (!finite_above(c.low_freq_factor, 0))
        return refuse("low_freq_factor", c.low_freq_factor, "a finite number above 0");
      if (!finite_above(c.high_freq_factor, c.low_freq_factor))
        return refuse("high_freq_factor", c.high_freq_factor, "a finite number above low_freq_factor");
      return {};
  }
}

// base^(2i / dim) for every pair, rounded to f32 as the models' own code does.
std::vector<float> powers(double base, int dim) {
  std::vector<float> power(static_cast<size_t>(dim / 2));
  const double rounded = static_cast<float>(base);
  for (int i = 0; i < dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    power[static_cast<size_t>(i)] = static_cast<float>(std::pow(rounded, static_cast<double>(exponent)));
  }
  return power;
}

double attention_factor(const RopeConfig& c) {
  if (c.attention_factor > 0) return c.attention_factor;
  const auto scale = [&](double mscale) {
    return c.factor <= 1 ? 1.0 : 0.1 * mscale * std::log(c.factor) + 1.0;
  };
  if (c.mscale > 0 && c.mscale_all_dim > 0) return scale(c.mscale) / scale(c.mscale_all_dim);
  return scale(1.0);
}

// Pairs that turn more than beta_fast times over the original length keep their frequency, those that turn
// less than beta_slow times are interpolated; a linear ramp over the pairs' numbers lies between.
void scale_yarn(const RopeConfig& c, const std::vector<float>& power, std::vector<float>& frequency) {
  const double dim = c.rotary_dim;
  const auto pair_that_turns = [&](double turns) {
    return dim * std::log(static_cast<double>(c.original_max_positions) / (turns * 2 * kPi)) /
           (2 * std::log(c.base));
  };
  double low = pair_that_turns(c.beta_fast), high = pair_that_turns(c.beta_slow);
  if (c.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1);
  if (low == high) high += 0.001;
  const float from = static_cast<float>(low), width = static_cast<float>(high - low);
  for (size_t i = 0; i < power.size(); ++i) {
    const float keep = 1.0f - std::clamp((static_cast<float>(i) - from) / width, 0.0f, 1.0f);
    const float interpolated = 1.0f / (static_cast<float>(c.factor) * power[i]);
    frequency[i] = interpolated * (1.0f - keep) + frequency[i] * keep;
  }
}

void scale_llama3(const RopeConfig& c, std::vector<float>& frequency) {
  const float original = static_cast<float>(c.original_max_positions), factor = static_cast<float>(c.factor);
  const float low = static_cast<float>(c.low_freq_factor);
  const float span = static_cast<float>(c.high_freq_factor - c.low_freq_factor);
  const float longest = static_cast<float>(static_cast<double>(c.original_max_positions) / c.low_freq_factor);
  const float shortest =
      static_cast<float>(static_cast<double>(c.original_max_positions) / c.high_freq_factor);
  for (float& f : frequency) {
    const float wavelength = static_cast<float>(2 * kPi) / f;
    if (wavelength < shortest) continue;
    if (wavelength > longest) {
      f /= factor;
      continue;
    }
    const float smooth = (original / wavelength - low) / span;
    f = (1.0f - smooth) * f / factor + smooth * f;
  }
}

}  // namespace

Result<RopeFrequencies> rope_frequencies(const RopeConfig& c) {
  TESSERA_RETURN_IF_ERROR(validate(c));
  double base = c.base;
  const double dim = c.rotary_dim;
  if (c.scaling == RopeScaling::ntk) base *= std::pow(c.factor, dim / (dim - 2));
  if (c.scaling == RopeScaling::dynamic_ntk) {
    const double original = static_cast<double>(c.original_max_positions);
    const double seqlen = static_cast<double>(std::max(c.seqlen, c.original_max_positions));
    base *= std::pow(c.factor * seqlen / original - (c.factor - 1), dim / (dim - 2));
  }
  const std::vector<float> power = powers(base, c.rotary_dim);
  RopeFrequencies out;
  out.frequency = power;
  for (float& f : out.frequency) f = 1.0f / f;
  switch (c.scaling) {
    case RopeScaling::linear:
      for (float& f : out.frequency) f /= static_cast<float>(c.factor);
      break;
    case RopeScaling::yarn:
      scale_yarn(c, power, out.frequency);
      out.attention_scaling = static_cast<float>(attention_factor(c));
      break;
    case RopeScaling::llama3:
      scale_llama3(c, out.frequency);
      break;
    default:
      break;
  }
  return out;
}

Result<RopeTable> RopeTable::create(const RopeConfig& config, int64_t positions) {
  TESSERA_ASSIGN_OR_RETURN(const RopeFrequencies frequencies, rope_frequencies(config));
  if (positions < 1 || positions > kMostPositions)
    return refuse("positions", static_cast<double>(positions), "1 to 2^28");
  RopeTable table;
  table.config_ = config;
  table.positions_ = positions;
  const size_t pairs = frequencies.frequency.size();
  try {
    table.cos_.resize(pairs * static_cast<size_t>(positions));
    table.sin_.resize(table.cos_.size());
  } catch (const std::bad_alloc&) {
    return resource_exhausted(
        format("rope: no memory for a table of {} positions x {} pairs", positions, pairs));
  }
  for (int64_t position = 0; position < positions; ++position) {
    const size_t row = static_cast<size_t>(position) * pairs;
    for (size_t i = 0; i < pairs; ++i) {
      const double angle = static_cast<float>(position) * frequencies.frequency[i];
      table.cos_[row + i] = static_cast<float>(std::cos(angle)) * frequencies.attention_scaling;
      table.sin_[row + i] = static_cast<float>(std::sin(angle)) * frequencies.attention_scaling;
    }
  }
  return table;
}

Rotary rotary(const RopeTable& table) {
  Rotary r;
  r.style = table.config().style;
  r.rotary_dim = table.config().rotary_dim;
  r.cos = table.cos();
  r.sin = table.sin();
  r.positions = table.positions();
  return r;
}

Status validate_rotary(const Rotary& r, int head_dim) {
  if (head_dim < 2 || head_dim > kMostRopeDim) return refuse("head_dim", head_dim, "from 2 to 1024");
  if (r.rotary_dim < 2 || r.rotary_dim % 2 != 0 || r.rotary_dim > head_dim) {
    return invalid_argument(
        format("rope: rotary_dim={} must be even and from 2 to head_dim={}", r.rotary_dim, head_dim),
        "rotary_dim");
  }
  if (!is_float(r.dtype))
    return unsupported(format("rope: cos and sin are {}; use f32, f16 or bf16", name(r.dtype)), "dtype");
  if (r.positions < 0) return refuse("positions", static_cast<double>(r.positions), "at least 0");
  if (r.row_stride < 0) return refuse("row_stride", static_cast<double>(r.row_stride), "at least 0");
  if (r.positions > 0 && (r.cos == nullptr || r.sin == nullptr))
    return invalid_argument(format("rope: cos or sin is null but has {} positions", r.positions), "cos");
  return {};
}

RowRotator::RowRotator(const Rotary& rotary, bool backward)
    : rotary_(rotary),
      kernels_(row_kernels()),
      rotate_(rotary.style == RopeStyle::half ? kernels_.rotate_half : kernels_.rotate_interleaved),
      sign_(backward ? -1.0f : 1.0f) {}

void RowRotator::move_to(int64_t position) {
  if (position == position_) return;
  position_ = position;
  const int pairs = rotary_.rotary_dim / 2;
  const int64_t at = position * (rotary_.row_stride > 0 ? rotary_.row_stride : pairs);
  if (rotary_.dtype == DType::f32) {
    cos_ = static_cast<const float*>(rotary_.cos) + at;
    sin_ = static_cast<const float*>(rotary_.sin) + at;
    return;
  }
  kernels_.widen(rotary_.dtype, static_cast<const uint16_t*>(rotary_.cos) + at, pairs, widened_);
  kernels_.widen(rotary_.dtype, static_cast<const uint16_t*>(rotary_.sin) + at, pairs, widened_ + pairs);
  cos_ = widened_;
  sin_ = widened_ + pairs;
}

}  // namespace tessera::attention
