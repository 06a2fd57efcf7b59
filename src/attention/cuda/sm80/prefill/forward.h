// Attention forward for sm_80 and later with mma.sync: every feature of the contract.
#pragma once

#include "core/cuda/device.h"
#include "tessera/attention.h"

namespace tessera::attention::cuda::sm80 {

// Whether the kernels take the problem on the device; unsupported names the field.
Status supports_forward(const tessera::cuda::DeviceProperties& device, const AttentionProblem& problem);

// o (and lse) of the problem, enqueued on the launch's stream. All pointers, the problem's too, are device
// memory; with cu_seqlens, problem.total_q and total_k are not read. f32 is multiplied as tf32.
// Moves per CTA of 128 rows its rows of q and o once and the keys they see once, mostly from L2. Bits: a
// row's do not depend on the other rows, the batch or the grid.
// Errors: as supports_forward(), and unsupported for tensors that are not aligned to 16 bytes. Workspace:
// under masks and trees batch * kv_heads * seqlen_k bytes. REQUIRES: what validate() checks.
Status forward(tessera::cuda::Launch& launch, const AttentionProblem& problem, const ForwardTensors& tensors);

}  // namespace tessera::attention::cuda::sm80
