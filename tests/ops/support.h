// Random weights in every format, and rows, for the tests of ops.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "core/context.h"
#include "ops/packed_weight.h"
#include "tessera/dtype.h"

namespace tessera::ops {

inline constexpr DType kWeightTypes[] = {DType::f32,  DType::f16,  DType::bf16,
                                         DType::q4_0, DType::q4_1, DType::q8_0};

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) { std::printf("seed: %u\n", seed); }
  float normal(float scale = 1.0f) { return scale * normal_(engine_); }
  uint8_t byte() { return static_cast<uint8_t>(engine_()); }
  std::vector<float> rows(int64_t count) {
    std::vector<float> out(static_cast<size_t>(count));
    for (float& value : out) value = normal();
    return out;
  }

  // A matrix [n][k] as a file has it.
  std::vector<uint8_t> weights(DType dtype, int64_t n, int64_t k) {
    const DTypeInfo& of = info(dtype);
    std::vector<uint8_t> bytes(static_cast<size_t>(n * k / of.block_elements * of.block_bytes));
    for (uint8_t& value : bytes) value = byte();
    for (size_t at = 0; at < bytes.size(); at += static_cast<size_t>(of.block_bytes)) {
      if (dtype == DType::f32) {
        const float value = normal(0.1f);
        std::memcpy(&bytes[at], &value, 4);
      } else if (dtype == DType::bf16) {
        put16(&bytes[at], f32_to_bf16(normal(0.1f)));
      } else {
        put16(&bytes[at], f32_to_f16(normal(0.05f)));
        if (dtype == DType::q4_1) put16(&bytes[at + 2], f32_to_f16(normal(0.2f)));
      }
    }
    return bytes;
  }

 private:
  static void put16(uint8_t* to, uint16_t bits) { std::memcpy(to, &bits, 2); }
  std::mt19937 engine_;
  std::normal_distribution<float> normal_;
};

// A matrix of rows inside guards: rows of `columns` are `columns` + 5 apart, everything between and around is
// a canary that no op may touch.
class GuardedRows {
 public:
  static constexpr float kCanary = -12345.5f;
  GuardedRows(int64_t rows, int64_t columns)
      : rows_(rows), columns_(columns), storage_(static_cast<size_t>((rows + 2) * (columns + 5)), kCanary) {}
  RowsView view() { return {storage_.data() + columns_ + 5, rows_, columns_ + 5}; }
  const float* row(int64_t r) const { return storage_.data() + (r + 1) * (columns_ + 5); }
  // How many canaries are gone.
  int64_t damage() const {
    int64_t count = 0;
    for (int64_t r = -1; r <= rows_; ++r) {
      for (int64_t c = r < 0 || r == rows_ ? 0 : columns_; c < columns_ + 5; ++c)
        count += row(r)[c] != kCanary;
    }
    return count;
  }

 private:
  int64_t rows_, columns_;
  std::vector<float> storage_;
};

inline bool same_bits(float a, float b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

}  // namespace tessera::ops
