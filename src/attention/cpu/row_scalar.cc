#include "attention/cpu/row_kernels.inc.h"

namespace tessera::attention {
const RowKernels kRowKernels_scalar = scalar::kRowTable;
}  // namespace tessera::attention
