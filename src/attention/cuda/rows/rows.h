// Functions of single rows on CUDA: rotary embedding and joining parts. Memory bound; any device.
#pragma once

#include <span>

#include "core/cuda/device.h"
#include "tessera/merge.h"
#include "tessera/rope.h"

namespace tessera::attention::cuda {

// rope_forward's or rope_backward's out, the CPU's bit for bit, enqueued on launch.stream; `rows`: of all
// sequences. A position outside the table is moved to its nearest end. REQUIRES: the checks of dispatch.cc.
Status rotate(tessera::cuda::Launch& launch, const RopeProblem& problem, int64_t rows,
              const Strided<const void*>& x, const Strided<void*>& out, bool backward);

// merge_states' o and lse, enqueued on launch.stream. REQUIRES: the checks of dispatch.cc, at most
// kMostParts parts.
inline constexpr int kMostParts = 32;
Status merge(tessera::cuda::Launch& launch, const MergeProblem& problem, std::span<const AttentionPart> parts,
             const Strided<void*>& o, const Strided<float*>& lse);

}  // namespace tessera::attention::cuda
