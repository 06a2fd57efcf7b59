// In the place of the library's common/mma.cuh: m16n8k16 as the PTX ISA lays out its fragments. Sums are
// exact to double, so the bits are not the device's.
#pragma once

#include "attention/cuda/common/ptx.cuh"
#include "tessera/dtype.h"

namespace tessera::attention::cuda {

template <DType kType>
void mma(float* c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  using T = std::conditional_t<kType == DType::f16, __half, __nv_bfloat16>;
  struct Fragments {
    uint32_t a[4], b[2];
  };
  const Fragments mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const emulator::Shown* all = emulator::show(emulator::as_shown(mine));
  const int group = emulator::lane() / 4, quad = emulator::lane() % 4;
  const auto value = [](uint32_t packed, int i) {
    T pair[2];
    std::memcpy(static_cast<void*>(pair), &packed, 4);
    return double{static_cast<float>(pair[i])};
  };
  double sums[2][2] = {{c[0], c[1]}, {c[2], c[3]}};  // [row group, 8 more][column 2 quad, 1 more]
  for (int k = 0; k < 16; ++k) {
    const int owner = k % 8 / 2;  // in its group of four lanes
    for (int m = 0; m < 2; ++m) {
      const auto left = emulator::seen<Fragments>(all[4 * group + owner]);
      for (int n = 0; n < 2; ++n) {
        const auto right = emulator::seen<Fragments>(all[4 * (2 * quad + n) + owner]);
        sums[m][n] += value(left.a[m + k / 8 * 2], k % 2) * value(right.b[k / 8], k % 2);
      }
    }
  }
  c[0] = static_cast<float>(sums[0][0]), c[1] = static_cast<float>(sums[0][1]);
  c[2] = static_cast<float>(sums[1][0]), c[3] = static_cast<float>(sums[1][1]);
}

}  // namespace tessera::attention::cuda
