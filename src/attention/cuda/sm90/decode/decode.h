// Paged decode on sm_90: few query tokens of each sequence over a cache in rows.
#pragma once

#include "attention/cuda/steps/launch.h"

namespace tessera::attention::cuda::sm90 {

using namespace steps;  // what step kernels of all architectures share

// Whether decode() and the tree's kernel for Hopper take the problem; unsupported or invalid_argument naming
// the field.
Status supports_decode(const AttentionProblem& problem);

// Appends (tessera/paged.h), then attends, on launch.stream: attend_cache over device memory. Every pointer
// is device memory, but the structs and Rotary are the host's.
//
// Takes f16 and bf16; head_dim = v_head_dim, any multiple of 8 to 256 (64, 128 and 256 are the fast
// ones); any group; seqlen_q >= 1 tokens; causal,
// windows, softcap, ALiBi and leftpad; block tables with blocks of a multiple of 8 slots, or contiguous
// caches. Addresses and strides of q, o and the cache: multiples of 16 bytes. The host sees no lengths and no
// block ids: lengths beyond the table are cut off there, and block ids must lie in [0, num_blocks) (TMA reads
// zeros elsewhere; an append elsewhere is dropped). A captured graph stays valid while lengths and tables
// change.
//
// Every row's bits depend on its own keys and their positions alone (work.h). Slots behind a length are not
// read into a result, whatever they hold. Moves K and V of each (sequence, kv head) once (once for every 32
// stacked rows: seqlen_q * group; 8 at head_dim 256), q and o once. Workspace (slots.h): partial states
// when there are fewer items than blocks, q after rotation.
//
// Errors, before any launch: invalid_argument or unsupported naming the field; resource_exhausted.
Status decode(tessera::cuda::Launch& launch, const AttentionProblem& problem, const CacheView& cache,
              const CacheAppend& append, const CacheTensors& tensors, const DecodeTuning& tuning = {});

}  // namespace tessera::attention::cuda::sm90
