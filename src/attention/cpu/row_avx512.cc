#include "attention/cpu/row_kernels.inc.h"

namespace tessera::attention {
const RowKernels kRowKernels_avx512 = avx512::kRowTable;
}  // namespace tessera::attention
