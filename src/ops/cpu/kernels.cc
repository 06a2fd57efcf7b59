#include "ops/cpu/kernels.h"

#include "core/check.h"
#include "simd/isa.h"

namespace tessera::ops {

const Kernels& kernels_for(simd::Isa isa) {
  TESSERA_CHECK(simd::supported(isa));
  return kKernelsScalar;
}

const Kernels& kernels() {
  static const Kernels& chosen = [&]() -> const Kernels& {
    const Result<simd::Isa> isa = simd::requested_isa();
    TESSERA_CHECK_MSG(isa.ok(), isa.status().message());
    return kernels_for(*isa);
  }();
  return chosen;
}

}  // namespace tessera::ops
