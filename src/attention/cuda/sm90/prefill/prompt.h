// Prompts and their chunks over a cache: the prefill kernel where decode.h has the step's.
#pragma once

#include "core/cuda/device.h"
#include "tessera/attention.h"
#include "tessera/paged.h"

namespace tessera::attention::cuda::sm90 {

// Appends (tessera/paged.h), then attends, on launch.stream: attend_cache over device memory, by tiles of
// query rows.
//
// Takes f16 and bf16; head_dim and v_head_dim, any multiple of 8 to 256; causal, windows, softcap, ALiBi and
// leftpad; cu_seqlens_q; block tables with blocks of a multiple of 8 slots, or contiguous caches. The host
// sees no lengths on the device: lengths beyond the capacity are cut off there, and new rows behind it are
// dropped. A captured graph stays valid while lengths and tables change.
//
// The bits are those of the same rows and keys in tensors of their own. Moves what prefill() moves, the new
// rows once, and with a Rotary q once more each way (workspace: kRotatedSlot).
//
// Errors, before any launch: unsupported or invalid_argument naming the field; resource_exhausted.
// REQUIRES: the checks of dispatch.cc, at least one query row.
Status attend_prompt(tessera::cuda::Launch& launch, const AttentionProblem& problem, const CacheView& cache,
                     const CacheAppend& append, const CacheTensors& tensors);

}  // namespace tessera::attention::cuda::sm90
