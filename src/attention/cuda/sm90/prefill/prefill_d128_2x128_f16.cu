// ptxas-spill-bytes: 48
// Around the loop over tiles, none inside the loop over keys.
#include "attention/cuda/sm90/prefill/launch_kernel.cuh"

namespace tessera::attention::cuda::sm90 {

TESSERA_PREFILL(D128TwoBy128, __half);

}  // namespace tessera::attention::cuda::sm90
