// Element types of tensors, caches and weights.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tessera/status.h"

namespace tessera {

// f32..i32 are plain elements. The rest are GGUF block types along the innermost dimension.
enum class DType : uint8_t { f32, f16, bf16, i8, i32, q4_0, q4_1, q8_0 };

struct DTypeInfo {
  const char* name;    // "f32", "q4_1"
  int block_elements;  // 1 for plain types, 32 for the blocks
  int block_bytes;     // bytes of one block
  bool quantized;
};

const DTypeInfo& info(DType dtype);
inline const char* name(DType dtype) {
  return info(dtype).name;
}
// "f32", "bf16"...; an unknown name is an invalid_argument that lists the known ones.
Result<DType> parse_dtype(const char* text);

// IEEE half and bfloat16 as bits. Conversions round to nearest even; NaN stays NaN.
float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);
inline float bf16_to_f32(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, sizeof value);
  return value;
}
uint16_t f32_to_bf16(float value);

}  // namespace tessera
