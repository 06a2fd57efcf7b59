// What decode and tree share of their host side.
#pragma once

#include "attention/cuda/common/slots.h"
#include "attention/cuda/sm90/decode/kernels.h"
#include "attention/cuda/steps/params.h"
#include "core/cuda/device.h"
#include "tessera/attention.h"
#include "tessera/paged.h"

namespace tessera::attention::cuda::sm90 {

using namespace steps;  // what step kernels of all architectures share

// What a step over a cache on sm_90 can do; the fields of the host alone.
Status check_step_problem(const AttentionProblem& problem);
Status check_device(const tessera::cuda::Launch& launch);
// Of the kernel that takes it: 64, 128 or 256.
int kernel_dim(int head_dim);
// Anything that needs the second instantiation, other head sizes too.
bool has_features(const AttentionProblem& problem);
void set_problem(const AttentionProblem& problem, DecodeParams& params);
// small_boxes: pages of a multiple of 16 slots come in boxes of 16 whole rows (a tile layout of its own).
Status set_cache(const AttentionProblem& problem, const CacheView& cache, bool small_boxes,
                 DecodeParams& params);
// Checks q, o and the new rows, and puts q and o into params.
Status set_rows(const CacheAppend& append, const CacheTensors& tensors, DecodeParams& params);
// The kernel that writes the new rows, when there are any; params.q is then the rotated one.
Status append_rows(tessera::cuda::Launch& launch, const AttentionProblem& problem, const CacheView& cache,
                   const CacheAppend& append, const CacheTensors& tensors, DecodeParams& params);
// Workspace for that many partial rows.
Status set_partials(tessera::cuda::Launch& launch, int64_t rows, int head_dim, DecodeParams& params);

// `dependent`: may start before the kernel ahead has ended (it waits itself).
Status launch_kernel(const tessera::cuda::Launch& launch, const void* kernel, int blocks, int threads,
                     int shared_bytes, bool dependent, const void* params, const char* name);
Status launch_combine(tessera::cuda::Launch& launch, const DecodeKernel& kernel, const CombineParams& params);

}  // namespace tessera::attention::cuda::sm90
