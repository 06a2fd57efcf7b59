// Attention forward for sm_80 and later with mma.sync: every feature of the contract.
#pragma once

#include "core/cuda/device.h"
#include "tessera/attention.h"
#include "tessera/paged.h"

namespace tessera::attention::cuda::sm80 {

// Whether the kernels take the problem on the device; unsupported names the field.
Status supports_forward(const tessera::cuda::DeviceProperties& device, const AttentionProblem& problem);

// Whether attend_prompt() takes the problem on the device, as far as the problem says.
Status supports_prompt(const tessera::cuda::DeviceProperties& device, const AttentionProblem& problem);

// o (and lse) of the problem, enqueued on the launch's stream. All pointers, the problem's too, are device
// memory; with cu_seqlens, problem.total_q and total_k are not read. f32 is multiplied as tf32.
// Moves per CTA of 128 rows its rows of q and o once and the keys they see once, mostly from L2. Bits: a
// row's do not depend on the other rows, the batch or the grid.
// Errors: as supports_forward(), and unsupported for tensors that are not aligned to 16 bytes. Workspace:
// under masks and trees batch * kv_heads * seqlen_k bytes. REQUIRES: what validate() checks.
Status forward(tessera::cuda::Launch& launch, const AttentionProblem& problem, const ForwardTensors& tensors);

// Appends (tessera/paged.h), then attends, on launch.stream: attend_cache over device memory, by tiles of
// query rows of one head. Takes every dtype, head_dim and v_head_dim of the contract, cu_seqlens_q, causal,
// windows, softcap, ALiBi, leftpad, and blocks of any number of slots; block ids outside [0, num_blocks) read
// as zeros, lengths beyond the capacity are cut off on the device. A captured graph stays valid while lengths
// and tables change. The bits of a row depend on its own keys and their positions alone: not on the batch, on
// where its chunk begins, or on blocks. Moves what forward() moves, and the new rows once.
// Errors: as supports_prompt(), and unsupported or invalid_argument for rows that are not aligned to 16
// bytes. Workspace: with a Rotary kRotatedSlot. REQUIRES: the checks of dispatch.cc, at least one query row.
Status attend_prompt(tessera::cuda::Launch& launch, const AttentionProblem& problem, const CacheView& cache,
                     const CacheAppend& append, const CacheTensors& tensors);

}  // namespace tessera::attention::cuda::sm80
