#include "attention/cpu/pack_kernels.inc.h"
#include "attention/cpu/row_kernels.inc.h"

namespace tessera::attention {
const RowKernels kRowKernels_avx2 = avx2::kRowTable;
const PackKernels kPackKernels_avx2 = avx2::kPackTable;
}  // namespace tessera::attention
