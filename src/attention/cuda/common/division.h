// Division of 31-bit numbers by a number fixed on the host: one multiplication (Granlund and Montgomery
// 1994).
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define TESSERA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define TESSERA_HOST_DEVICE inline
#endif

namespace tessera::attention::cuda {

struct Division {
  uint32_t divisor = 1, multiplier = 0, shift = 0;

  Division() = default;
  // REQUIRES: 1 <= by < 2^31.
  explicit Division(uint32_t by) : divisor(by) {
    // multiplier = ceil(2^(32 + shift) / by) with 2^shift < by <= 2^(shift + 1); exact for numerators below
    // 2^31.
    if (by == 1) return;
    while ((uint64_t{2} << shift) < by) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << (32 + shift)) + by - 1) / by);
  }
  TESSERA_HOST_DEVICE uint32_t quotient(uint32_t n) const {
    if (divisor == 1) return n;
#ifdef __CUDA_ARCH__
    return __umulhi(n, multiplier) >> shift;
#else
    return static_cast<uint32_t>((uint64_t{n} * multiplier) >> 32) >> shift;
#endif
  }
};

}  // namespace tessera::attention::cuda
