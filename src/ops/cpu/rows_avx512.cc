#include "ops/cpu/rows_cpu.h"

namespace tessera::ops {
namespace avx512 {
constexpr Kernels kTable = TESSERA_OPS_KERNELS("avx512");
}
const Kernels kKernelsAvx512 = avx512::kTable;
}  // namespace tessera::ops
