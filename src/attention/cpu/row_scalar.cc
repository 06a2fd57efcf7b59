#include "attention/cpu/pack_kernels.inc.h"
#include "attention/cpu/row_kernels.inc.h"

namespace tessera::attention {
const RowKernels kRowKernels_scalar = scalar::kRowTable;
const PackKernels kPackKernels_scalar = scalar::kPackTable;
}  // namespace tessera::attention
