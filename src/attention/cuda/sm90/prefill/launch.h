// Forward attention on Hopper by TMA and wgmma: which problems, which kernel, and the call.
#pragma once

#include <string>

#include "core/cuda/device.h"
#include "tessera/attention.h"

namespace tessera::attention::cuda::sm90 {

// The tile shapes that exist, for the benchmarks; `automatic` takes what the table in launch.cc says.
enum class PrefillVariant { automatic, d64_four_by_64, d64_three_by_128, d128_two_by_128 };

// ok, or `unsupported` naming the field that this kernel does not take (the sm_80 kernels may).
Status prefill_supports(const AttentionProblem& problem, const ForwardTensors& tensors);

// o and lse of `problem`, all pointers on the device, on launch.stream. Reads Q once, K and V once for every
// 128 to 256 rows of a head (from L2 mostly), writes O once. REQUIRES: validate(problem) and
// prefill_supports() are ok.
Status prefill(tessera::cuda::Launch& launch, const AttentionProblem& problem, const ForwardTensors& tensors,
               PrefillVariant variant = PrefillVariant::automatic);

}  // namespace tessera::attention::cuda::sm90
