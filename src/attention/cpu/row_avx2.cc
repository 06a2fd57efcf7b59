#include "attention/cpu/row_kernels.inc.h"

namespace tessera::attention {
const RowKernels kRowKernels_avx2 = avx2::kRowTable;
}  // namespace tessera::attention
