#include "ops/cpu/kernels.h"

#include "core/check.h"
#include "simd/isa.h"

namespace tessera::ops {

const Kernels& kernels_for(simd::Isa isa) {
  TESSERA_CHECK(simd::supported(isa));
#if defined(__x86_64__)
  switch (isa) {
    case simd::Isa::scalar:
      return kKernelsScalar;
    case simd::Isa::avx2:
      return kKernelsAvx2;
    case simd::Isa::avx512:
    case simd::Isa::avx512bf16:
    case simd::Isa::amx:
      return kKernelsAvx512;
  }
#endif
  return kKernelsScalar;
}

const Kernels& kernels() {
  static const Kernels* const chosen = [] {
    const Result<simd::Isa> isa = simd::requested_isa();
    TESSERA_CHECK_MSG(isa.ok(), isa.status().message());
    return &kernels_for(*isa);
  }();
  return *chosen;
}

}  // namespace tessera::ops
