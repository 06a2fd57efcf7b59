#include "ops/cpu/rows_cpu.h"

namespace tessera::ops {
namespace scalar {
constexpr Kernels kTable = TESSERA_OPS_KERNELS("scalar");
}
const Kernels kKernelsScalar = scalar::kTable;
}  // namespace tessera::ops
