// The compiled step kernels of sm_80, one file for each head_dim.
#pragma once

#include "attention/cuda/steps/launch.h"

namespace tessera::attention::cuda::sm80 {

using namespace steps;  // what step kernels of all architectures share

// listed: walks a host's list of pieces, else what lengths say.
DecodeKernel step_kernel_for(const AttentionProblem& problem, bool listed);

// Not listed with features: those are listed_features_DIM().
DecodeKernel step_kernel_64(DType dtype, bool listed, bool features);
DecodeKernel step_kernel_128(DType dtype, bool listed, bool features);
DecodeKernel step_kernel_256(DType dtype, bool listed, bool features);
DecodeKernel listed_features_64(DType dtype);
DecodeKernel listed_features_128(DType dtype);
DecodeKernel listed_features_256(DType dtype);
// All of f32.
DecodeKernel f32_step_kernel_64(bool listed, bool features);
DecodeKernel f32_step_kernel_128(bool listed, bool features);
DecodeKernel f32_step_kernel_256(bool listed, bool features);

}  // namespace tessera::attention::cuda::sm80
