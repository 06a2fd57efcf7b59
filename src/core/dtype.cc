#include "tessera/dtype.h"

#include <cstring>
#include <string>

namespace tessera {
namespace {
// In the order of the enum.
constexpr DTypeInfo kInfo[] = {
    {"f32", 1, 4, false}, {"f16", 1, 2, false},   {"bf16", 1, 2, false},  {"i8", 1, 1, false},
    {"i32", 1, 4, false}, {"q4_0", 32, 18, true}, {"q4_1", 32, 20, true}, {"q8_0", 32, 34, true},
};
uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
}  // namespace

const DTypeInfo& info(DType dtype) {
  return kInfo[static_cast<size_t>(dtype)];
}

Result<DType> parse_dtype(const char* text) {
  std::string known;
  for (size_t i = 0; i < std::size(kInfo); ++i) {
    if (std::strcmp(kInfo[i].name, text) == 0) return static_cast<DType>(i);
    known += known.empty() ? kInfo[i].name : std::string(", ") + kInfo[i].name;
  }
  return invalid_argument("dtype '" + std::string(text) + "' is unknown; known: " + known, "dtype");
}

float f16_to_f32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  const uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 31) return float_of(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return float_of(sign | ((exponent + 112) << 23) | (mantissa << 13));
  // Zero and subnormals: mantissa * 2^-24 is exact in f32.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return float_of(sign | bits_of(magnitude));
}

uint16_t f32_to_f16(float value) {
  const uint32_t bits = bits_of(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;   // NaN
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // rounds to 65536 or more: infinity
  if (magnitude < 0x38800000u) {                        // below 2^-14: a multiple of 2^-24
    // Adding 0.5 puts the bits at the end of the significand, rounded to nearest even by the addition.
    const float shifted = float_of(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(bits_of(shifted) - 0x3f000000u);
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return sign | static_cast<uint16_t>((rounded - 0x38000000u) >> 13);
}

uint16_t f32_to_bf16(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace tessera
