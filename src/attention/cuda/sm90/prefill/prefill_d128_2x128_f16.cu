// ptxas-spill-bytes: 128
// In the producer and around the loop over tiles, none inside the loop over keys.
#include "attention/cuda/sm90/prefill/launch_kernel.cuh"

namespace tessera::attention::cuda::sm90 {

TESSERA_PREFILL(D128TwoBy128, __half);

}  // namespace tessera::attention::cuda::sm90
