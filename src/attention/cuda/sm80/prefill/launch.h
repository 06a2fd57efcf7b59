// One launch per instantiation; each is defined in a file of its own few (forward_*.cu, cache_*.cu).
#pragma once

#include "attention/cuda/sm80/prefill/config.h"

namespace tessera::attention::cuda::sm80 {

// Launches forward_kernel<kType, kDim, kGeneral, kCache> on the stream (cudaStream_t).
template <DType kType, int kDim, bool kGeneral, bool kCache>
void launch_forward(const ForwardParams& params, unsigned blocks, void* stream);

}  // namespace tessera::attention::cuda::sm80
