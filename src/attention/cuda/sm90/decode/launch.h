// What decode and tree share of their host side on sm_90.
#pragma once

#include "attention/cuda/sm90/decode/kernels.h"
#include "attention/cuda/steps/launch.h"

namespace tessera::attention::cuda::sm90 {

Status check_device(const tessera::cuda::Launch& launch);
// set_table(), and tensor maps of the cache. small_boxes: pages of a multiple of 16 slots come in boxes of 16
// whole rows (a tile layout of its own).
Status set_cache(const AttentionProblem& problem, const CacheView& cache, bool small_boxes,
                 DecodeParams& params);

}  // namespace tessera::attention::cuda::sm90
