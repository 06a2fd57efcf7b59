#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/check.h"
#include "ops/reference.h"

namespace tessera::ops::reference {
namespace {

template <typename T>
T read(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// A block of 32 weights as the file has it: w = d * q + m.
struct Block {
  float d = 0, m = 0;
  int q[32];
};

Block read_block(DType dtype, const uint8_t* bytes) {
  Block block;
  block.d = f16_to_f32(read<uint16_t>(bytes));
  switch (dtype) {
    case DType::q4_0:
      for (int i = 0; i < 16; ++i) {
        block.q[i] = (bytes[2 + i] & 0xf) - 8;
        block.q[i + 16] = (bytes[2 + i] >> 4) - 8;
      }
      break;
    case DType::q4_1:
      block.m = f16_to_f32(read<uint16_t>(bytes + 2));
      for (int i = 0; i < 16; ++i) {
        block.q[i] = bytes[4 + i] & 0xf;
        block.q[i + 16] = bytes[4 + i] >> 4;
      }
      break;
    case DType::q8_0:
      for (int i = 0; i < 32; ++i) block.q[i] = read<int8_t>(bytes + 2 + i);
      break;
    default:
      TESSERA_CHECK_MSG(false, name(dtype));
  }
  return block;
}

const uint8_t* row_bytes(const WeightSource& source, int64_t row, int64_t k) {
  const DTypeInfo& of = info(source.dtype);
  return static_cast<const uint8_t*>(source.data) + row * (k / of.block_elements * of.block_bytes);
}

}  // namespace

std::vector<float> weight_row(const WeightSource& source, int64_t row, int64_t k) {
  std::vector<float> out(static_cast<size_t>(k));
  const uint8_t* bytes = row_bytes(source, row, k);
  for (int64_t i = 0; i < k; ++i) {
    float& value = out[static_cast<size_t>(i)];
    switch (source.dtype) {
      case DType::f32:
        value = read<float>(bytes + i * 4);
        break;
      case DType::f16:
        value = f16_to_f32(read<uint16_t>(bytes + i * 2));
        break;
      case DType::bf16:
        value = bf16_to_f32(read<uint16_t>(bytes + i * 2));
        break;
      default: {
        const Block block = read_block(source.dtype, bytes + i / 32 * info(source.dtype).block_bytes);
        value = block.d * static_cast<float>(block.q[i % 32]);
        if (source.dtype == DType::q4_1) value += block.m;
      }
    }
  }
  return out;
}

QuantizedRow quantize(const float* x, int64_t k) {
  QuantizedRow row;
  for (int64_t b = 0; b < k / 32; ++b) {
    float a = 0;
    bool finite = true;
    for (int i = 0; i < 32; ++i) {
      finite &= std::isfinite(x[b * 32 + i]);
      a = std::max(a, std::fabs(x[b * 32 + i]));
    }
    const bool usable = finite && a >= 0x1p-119f;
    int sum = 0;
    for (int i = 0; i < 32; ++i) {
      const int q = usable ? static_cast<int>(std::nearbyintf(x[b * 32 + i] * (127.0f / a))) : 0;
      row.q.push_back(static_cast<int8_t>(q));
      sum += q;
    }
    const float d = usable ? a / 127.0f : finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    row.d.push_back(d);
    row.s.push_back(d * static_cast<float>(sum));
  }
  return row;
}

double dot_exact(const WeightSource& source, int64_t row, int64_t k, const float* x) {
  const std::vector<float> w = weight_row(source, row, k);
  double sum = 0;
  for (int64_t i = 0; i < k; ++i) sum += double{w[static_cast<size_t>(i)]} * double{x[i]};
  return sum;
}

float dot_chain(const WeightSource& source, int64_t row, int64_t k, const float* x, Compute compute) {
  float acc = 0;
  if (compute == Compute::f32 || !info(source.dtype).quantized) {
    const std::vector<float> w = weight_row(source, row, k);
    for (int64_t i = 0; i < k; ++i) acc = std::fmaf(x[i], w[static_cast<size_t>(i)], acc);
    return acc;
  }
  const QuantizedRow a = quantize(x, k);
  const uint8_t* bytes = row_bytes(source, row, k);
  for (int64_t b = 0; b < k / 32; ++b) {
    const Block block = read_block(source.dtype, bytes + b * info(source.dtype).block_bytes);
    int dot = 0;
    for (int i = 0; i < 32; ++i) dot += block.q[i] * a.q[static_cast<size_t>(b * 32 + i)];
    const float part = static_cast<float>(dot) * a.d[static_cast<size_t>(b)];
    acc = std::fmaf(block.d, part, acc);
    if (source.dtype == DType::q4_1) acc = std::fmaf(block.m, a.s[static_cast<size_t>(b)], acc);
  }
  return acc;
}

}  // namespace tessera::ops::reference
