#include "attention/cpu/row_kernels.h"

#include "attention/cpu/pack_kernels.h"
#include "core/check.h"
#include "simd/isa.h"

namespace tessera::attention {
namespace {

struct Tables {
  const RowKernels& rows;
  const PackKernels& pack;
};

const Tables& tables() {
  static const Tables chosen = []() -> Tables {
    const Result<simd::Isa> isa = simd::requested_isa();
    TESSERA_CHECK_MSG(isa.ok(), isa.status().message());
#if defined(__x86_64__)
    if (*isa >= simd::Isa::avx512) return {kRowKernels_avx512, kPackKernels_avx512};
    if (*isa == simd::Isa::avx2) return {kRowKernels_avx2, kPackKernels_avx2};
#endif
    return {kRowKernels_scalar, kPackKernels_scalar};
  }();
  return chosen;
}

}  // namespace

const RowKernels& row_kernels() {
  return tables().rows;
}
const PackKernels& pack_kernels() {
  return tables().pack;
}

}  // namespace tessera::attention
