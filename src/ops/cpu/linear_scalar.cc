// The linear kernels in plain C++: every ISA's kernels give these bits.
#include "ops/cpu/kernels.h"

namespace tessera::ops::scalar {
namespace {

float load_f32(const uint8_t* from) {
  float value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

float widen_f16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  // Adding 112 to the exponent by a multiplication also normalises subnormals.
  uint32_t wide = magnitude << 13;
  float value;
  __builtin_memcpy(&value, &wide, sizeof value);
  value *= 0x1p112f;
  __builtin_memcpy(&wide, &value, sizeof value);
  if (magnitude >= 0x7c00u) wide = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  wide |= sign;
  __builtin_memcpy(&value, &wide, sizeof value);
  return value;
}

float widen_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, sizeof value);
  return value;
}

uint16_t load_u16(const uint8_t* from) {
  uint16_t value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

void store(const Tile& tile, int r, int p, const float* values) {
  float* y = tile.y + r * tile.y_stride + p * tile.y_step;
  for (int lane = 0; lane < kPanel; ++lane) y[lane] = tile.add ? y[lane] + values[lane] : values[lane];
}

enum class Kind { q4_0, q4_1, q8_0 };

// The 32 products of one lane and one row.
template <Kind kKind>
int32_t dot(const uint8_t* groups, int lane, const int8_t* a) {
  int32_t sum = 0;
  for (int i = 0; i < kQuantBlock; ++i) {
    if constexpr (kKind == Kind::q8_0) {
      sum += a[i] * (groups[i / 4 * 64 + lane * 4 + i % 4] - 128);
    } else {
      const uint8_t byte = groups[i % 16 / 4 * 64 + lane * 4 + i % 4];
      const int weight = i < 16 ? byte & 15 : byte >> 4;
      sum += a[i] * (kKind == Kind::q4_0 ? weight - 8 : weight);
    }
  }
  return sum;
}

template <Kind kKind>
void blocks(const Tile& tile, const BlockInput& input) {
  constexpr int kGroups = kKind == Kind::q8_0 ? 8 : 4;
  constexpr int kScaleBytes = kKind == Kind::q4_1 ? 64 : 32;
  for (int p = 0; p < tile.panels; ++p) {
    const uint8_t* panel = tile.panel + p * tile.panel_step;
    const uint8_t* scales = panel + input.blocks * kGroups * 64;
    for (int r = 0; r < tile.rows; ++r) {
      float acc[kPanel] = {};
      for (int64_t b = 0; b < input.blocks; ++b) {
        const uint8_t* rows = input.tile + b * tile.rows * kQuantBytes;
        const int8_t* a = reinterpret_cast<const int8_t*>(rows) + r * kQuantBlock;
        const uint8_t* fields = rows + tile.rows * kQuantBlock + r * 4;
        const float d_a = load_f32(fields), s_a = load_f32(fields + tile.rows * 4);
        const uint8_t* scale = scales + b * kScaleBytes;
        for (int lane = 0; lane < kPanel; ++lane) {
          const float d_w = widen_f16(load_u16(scale + lane * 2));
          const float part = static_cast<float>(dot<kKind>(panel + b * kGroups * 64, lane, a)) * d_a;
          acc[lane] = __builtin_fmaf(d_w, part, acc[lane]);
          if constexpr (kKind == Kind::q4_1) {
            acc[lane] = __builtin_fmaf(widen_f16(load_u16(scale + 32 + lane * 2)), s_a, acc[lane]);
          }
        }
      }
      store(tile, r, p, acc);
    }
  }
}

struct F32 {
  static constexpr int kBytes = 4;
  static float load(const uint8_t* from) { return load_f32(from); }
};
struct F16 {
  static constexpr int kBytes = 2;
  static float load(const uint8_t* from) { return widen_f16(load_u16(from)); }
};
struct Bf16 {
  static constexpr int kBytes = 2;
  static float load(const uint8_t* from) { return widen_bf16(load_u16(from)); }
};

template <typename Element>
void plain(const Tile& tile, const PlainInput& input) {
  for (int p = 0; p < tile.panels; ++p) {
    const uint8_t* panel = tile.panel + p * tile.panel_step;
    for (int r = 0; r < tile.rows; ++r) {
      const float* x = input.x + r * input.stride;
      float acc[kPanel] = {};
      for (int64_t i = 0; i < input.k; ++i) {
        for (int lane = 0; lane < kPanel; ++lane) {
          acc[lane] =
              __builtin_fmaf(x[i], Element::load(panel + (i * kPanel + lane) * Element::kBytes), acc[lane]);
        }
      }
      store(tile, r, p, acc);
    }
  }
}

}  // namespace

const LinearKernels kLinear = {blocks<Kind::q4_0>, blocks<Kind::q4_1>, blocks<Kind::q8_0>,
                               plain<F32>,         plain<F16>,         plain<Bf16>};

}  // namespace tessera::ops::scalar
