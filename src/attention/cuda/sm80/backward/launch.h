// One set of launches per instantiation; each is defined in a file of its own few (backward_*.cu).
#pragma once

#include "attention/cuda/sm80/backward/config.h"

namespace tessera::attention::cuda::sm80 {

// CTAs of backward_kernel<kType, kDim, kTiles> that surely run at the same time on the current device.
template <DType kType, int kDim, BackwardTiles kTiles>
int resident_backward(int multiprocessors);

// The preparation, the kernel and the conversion of dq on the stream (cudaStream_t). The first error is left
// for the caller to fetch.
template <DType kType, int kDim, BackwardTiles kTiles>
void launch_backward(const BackwardParams& params, void* stream);

}  // namespace tessera::attention::cuda::sm80
