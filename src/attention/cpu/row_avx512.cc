#include "attention/cpu/pack_kernels.inc.h"
#include "attention/cpu/row_kernels.inc.h"

namespace tessera::attention {
const RowKernels kRowKernels_avx512 = avx512::kRowTable;
const PackKernels kPackKernels_avx512 = avx512::kPackTable;
}  // namespace tessera::attention
