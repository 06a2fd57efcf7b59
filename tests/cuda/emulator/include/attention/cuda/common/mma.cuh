// In the place of the library's common/mma.cuh: m16n8k16, and m16n8k8 of tf32, as the PTX ISA lays out their
// fragments. Sums are exact to double, so the bits are not the device's.
#pragma once

#include "attention/cuda/common/ptx.cuh"
#include "tessera/dtype.h"

namespace tessera::attention::cuda {

template <DType kType>
inline constexpr int kBytes = kType == DType::f32 ? 4 : 2;
template <DType kType>
inline constexpr int kStep = 32 / kBytes<kType>;

inline uint32_t load_shared32(uint32_t address) {
  return load_shared<uint32_t>(address);
}
inline uint4 load_shared128(uint32_t address) {
  return load_shared<uint4>(address);
}
inline void store_shared32(uint32_t address, uint32_t x) {
  std::memcpy(emulator::shared(address, 4), &x, 4);
}
inline void store_shared64(uint32_t address, uint32_t x, uint32_t y) {
  const uint32_t both[2] = {x, y};
  std::memcpy(emulator::shared(address, 8), both, 8);
}
template <DType kType>
uint32_t pack2(float low, float high) {
  static_assert(kType != DType::f32);
  return pack2<std::conditional_t<kType == DType::f16, __half, __nv_bfloat16>>(low, high);
}
template <DType kType>
float unpack(uint32_t packed, int half) {
  using T = std::conditional_t<kType == DType::f16, __half, __nv_bfloat16>;
  T pair[2];
  std::memcpy(static_cast<void*>(pair), &packed, 4);
  return static_cast<float>(pair[half]);
}
template <DType kType>
float unpack_low(uint32_t packed) {
  return unpack<kType>(packed, 0);
}
template <DType kType>
float unpack_high(uint32_t packed) {
  return unpack<kType>(packed, 1);
}
// To nearest, ties away from zero.
inline uint32_t round_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return (bits + 0x1000u) & 0xffffe000u;
}

template <DType kType>
void round_fragment(uint32_t (&r)[4]) {
  if constexpr (kType == DType::f32) {
    for (uint32_t& x : r) x = round_tf32(__uint_as_float(x));
  }
}

template <DType kType>
void mma(float* c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Fragments {
    uint32_t a[4], b[2];
  };
  const Fragments mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const emulator::Shown* all = emulator::show(emulator::as_shown(mine));
  const int group = emulator::lane() / 4, quad = emulator::lane() % 4;
  // Element k of a register pair's row: two of 16 bits a register, or one.
  const auto value = [](const uint32_t* registers, int step, int k) {
    if constexpr (kType == DType::f32) {
      if ((registers[k / 4 * step] & 0x1fffu) != 0) std::abort();  // not rounded
      float x;
      std::memcpy(&x, &registers[k / 4 * step], 4);
      return double{x};
    } else {
      using T = std::conditional_t<kType == DType::f16, __half, __nv_bfloat16>;
      T pair[2];
      std::memcpy(static_cast<void*>(pair), &registers[k / 8 * step], 4);
      return double{static_cast<float>(pair[k % 2])};
    }
  };
  double sums[2][2] = {{c[0], c[1]}, {c[2], c[3]}};  // [row group, 8 more][column 2 quad, 1 more]
  constexpr bool kF32 = kType == DType::f32;
  for (int k = 0; k < (kF32 ? 8 : 16); ++k) {
    const int owner = kF32 ? k % 4 : k % 8 / 2;  // in its group of four lanes
    for (int m = 0; m < 2; ++m) {
      const auto left = emulator::seen<Fragments>(all[4 * group + owner]);
      for (int n = 0; n < 2; ++n) {
        const auto right = emulator::seen<Fragments>(all[4 * (2 * quad + n) + owner]);
        sums[m][n] += value(left.a + m, 2, k) * value(right.b, 1, k);
      }
    }
  }
  c[0] = static_cast<float>(sums[0][0]), c[1] = static_cast<float>(sums[0][1]);
  c[2] = static_cast<float>(sums[1][0]), c[3] = static_cast<float>(sums[1][1]);
}

}  // namespace tessera::attention::cuda
