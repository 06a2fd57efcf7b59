#include "attention/cpu/row_kernels.h"

#include "core/check.h"
#include "simd/isa.h"

namespace tessera::attention {

const RowKernels& row_kernels() {
  static const RowKernels& chosen = []() -> const RowKernels& {
    const Result<simd::Isa> isa = simd::requested_isa();
    TESSERA_CHECK_MSG(isa.ok(), isa.status().message());
#if defined(__x86_64__)
    if (*isa >= simd::Isa::avx512) return kRowKernels_avx512;
    if (*isa == simd::Isa::avx2) return kRowKernels_avx2;
#endif
    return kRowKernels_scalar;
  }();
  return chosen;
}

}  // namespace tessera::attention
