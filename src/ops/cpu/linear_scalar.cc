// The linear kernels in plain C++: every ISA's kernels give these bits.
#include "ops/cpu/linear_scalar.h"

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

void store(float* y, float value, bool add) {
  *y = add ? *y + value : value;
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
void blocks(const BlockArgs& args) {
  constexpr int kGroups = kKind == Kind::q8_0 ? 8 : 4;
  constexpr int kScaleBytes = kKind == Kind::q4_1 ? 64 : 32;
  const uint8_t* scales = args.panel + args.blocks * kGroups * 64;
  for (int r = 0; r < args.rows; ++r) {
    float acc[kPanel] = {};
    for (int64_t b = 0; b < args.blocks; ++b) {
      const uint8_t* tile = args.tile + b * args.rows * kQuantBytes;
      const int8_t* a = reinterpret_cast<const int8_t*>(tile) + r * kQuantBlock;
      const uint8_t* fields = tile + args.rows * kQuantBlock + r * 4;
      const float d_a = load_f32(fields), s_a = load_f32(fields + args.rows * 4);
      const uint8_t* scale = scales + b * kScaleBytes;
      for (int lane = 0; lane < kPanel; ++lane) {
        const float d_w = widen_f16(load_u16(scale + lane * 2));
        const float part = static_cast<float>(dot<kKind>(args.panel + b * kGroups * 64, lane, a)) * d_a;
        acc[lane] = __builtin_fmaf(d_w, part, acc[lane]);
        if constexpr (kKind == Kind::q4_1) {
          acc[lane] = __builtin_fmaf(widen_f16(load_u16(scale + 32 + lane * 2)), s_a, acc[lane]);
        }
      }
    }
    for (int lane = 0; lane < kPanel; ++lane) store(args.y + r * args.y_stride + lane, acc[lane], args.add);
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
void plain(const PlainArgs& args) {
  for (int p = 0; p < args.panels; ++p) {
    const uint8_t* panel = args.panel + p * args.panel_step;
    for (int r = 0; r < args.rows; ++r) {
      const float* x = args.x + r * args.x_stride;
      float acc[kPanel] = {};
      for (int64_t i = 0; i < args.k; ++i) {
        for (int lane = 0; lane < kPanel; ++lane) {
          acc[lane] =
              __builtin_fmaf(x[i], Element::load(panel + (i * kPanel + lane) * Element::kBytes), acc[lane]);
        }
      }
      float* y = args.y + r * args.y_stride + p * kPanel;
      for (int lane = 0; lane < kPanel; ++lane) store(y + lane, acc[lane], args.add);
    }
  }
}

}  // namespace

void linear_q4_0(const BlockArgs& args) {
  blocks<Kind::q4_0>(args);
}
void linear_q4_1(const BlockArgs& args) {
  blocks<Kind::q4_1>(args);
}
void linear_q8_0(const BlockArgs& args) {
  blocks<Kind::q8_0>(args);
}
void linear_f32(const PlainArgs& args) {
  plain<F32>(args);
}
void linear_f16(const PlainArgs& args) {
  plain<F16>(args);
}
void linear_bf16(const PlainArgs& args) {
  plain<Bf16>(args);
}

}  // namespace tessera::ops::scalar
