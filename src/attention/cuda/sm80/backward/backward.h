// Gradients of attention for sm_80 and later with mma.sync: every feature of the contract but ancestors.
#pragma once

#include "core/cuda/device.h"
#include "tessera/attention.h"

namespace tessera::attention::cuda::sm80 {

// Whether the kernels take the problem on the device; unsupported names the field.
Status supports_backward(const tessera::cuda::DeviceProperties& device, const AttentionProblem& problem);

// dq, dk and dv of the problem, enqueued on the launch's stream. All pointers are device memory. f32 is
// multiplied as tf32.
// Deterministic: dk and dv of a tile of keys are summed by one CTA in a fixed order, dq over tiles of keys in
// an order that only the sequence's own lengths and the device (its number of SMs, its shared memory) decide.
// Query heads of a group are walked by the CTA of their kv head. Errors: as supports_backward(), and
// unsupported for tensors that are not aligned to 16 bytes. Workspace: head_dim rounded up to 64, 96, 128,
// 192 or 256, times 4 bytes, and 9 bytes more, per row and head; under masks as forward(). REQUIRES: what
// validate() checks; lse as forward() gives it.
Status backward(tessera::cuda::Launch& launch, const AttentionProblem& problem,
                const BackwardTensors& tensors);

}  // namespace tessera::attention::cuda::sm80
