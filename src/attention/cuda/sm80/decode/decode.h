// Paged decode for every device from sm_80 on: few query tokens of each sequence over a cache in rows.
#pragma once

#include "attention/cuda/steps/launch.h"

namespace tessera::attention::cuda::sm80 {

using namespace steps;  // what step kernels of all architectures share

// As sm90::decode (its contract holds here, and the bits are the same), but block tables may have blocks of
// any number of slots, v_head_dim may be another than head_dim, and f32 is taken: as tf32, its q, K and V
// rounded to nearest. Block ids outside [0, num_blocks) read as zeros. Moves K and V of each (sequence, kv
// head) once for every 32 stacked rows (seqlen_q * group; 8 at head_dim 256).
//
// Errors, before any launch: invalid_argument or unsupported naming the field; resource_exhausted.
Status decode(tessera::cuda::Launch& launch, const AttentionProblem& problem, const CacheView& cache,
              const CacheAppend& append, const CacheTensors& tensors, const DecodeTuning& tuning = {});

// ok where decode() takes the problem on the device.
Status supports_decode(const tessera::cuda::DeviceProperties& device, const AttentionProblem& problem);

// set_table(), and the rows of the cache.
Status set_cache(const AttentionProblem& problem, const CacheView& cache, DecodeParams& params);

}  // namespace tessera::attention::cuda::sm80
