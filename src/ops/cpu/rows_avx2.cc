#include "ops/cpu/rows_cpu.h"

namespace tessera::ops {
namespace avx2 {
constexpr Kernels kTable = TESSERA_OPS_KERNELS("avx2");
}
const Kernels kKernelsAvx2 = avx2::kTable;
}  // namespace tessera::ops
