// The compiled kernels of decode and tree attention, one file for each head_dim.
#pragma once

#include "attention/cuda/steps/launch.h"
#include "tessera/dtype.h"

namespace tessera::attention::cuda::sm90 {

using namespace steps;  // what step kernels of all architectures share

// The one for `rows` rows of a kv head in one piece, or for as many as there is one for; small_boxes: tiles
// come in boxes of 16 whole rows.
DecodeKernel decode_kernel_for(const AttentionProblem& problem, int64_t rows, bool small_boxes);
// The one that walks listed pieces.
DecodeKernel tree_kernel_for(const AttentionProblem& problem);

DecodeKernel decode_kernel_64(DType dtype, int64_t rows, bool features, bool small_boxes);
DecodeKernel decode_kernel_128(DType dtype, int64_t rows, bool features, bool small_boxes);
DecodeKernel decode_kernel_256(DType dtype, int64_t rows, bool features, bool small_boxes);
DecodeKernel tree_kernel_64(DType dtype);
DecodeKernel tree_kernel_128(DType dtype);
DecodeKernel tree_kernel_256(DType dtype);
DecodeKernel tree_features_64(DType dtype);
DecodeKernel tree_features_128(DType dtype);
DecodeKernel tree_features_256(DType dtype);

}  // namespace tessera::attention::cuda::sm90
