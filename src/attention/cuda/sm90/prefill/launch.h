// Forward attention on Hopper by TMA and wgmma: which problems, which kernel, and the call.
#pragma once

#include <string>

#include "core/cuda/device.h"
#include "tessera/attention.h"

namespace tessera::attention::cuda::sm90 {

// The tile shapes that exist, for the benchmarks; `automatic` takes what the table in launch.cc says.
enum class PrefillVariant {
  automatic,
  d64_four_by_64,
  d64_three_by_128,
  d96_two_by_128,
  d128_two_by_128,
  d256_two_by_80,
  d256_two_by_64_registers,  // o from registers
};

// Rows of the heads of a group in tiles of their own or together (packing.h).
enum class GroupTiles { automatic, apart, packed };

// Performance only, for tests and benchmarks: the bits are the same for either of GroupTiles.
struct PrefillTuning {
  PrefillVariant variant = PrefillVariant::automatic;
  GroupTiles groups = GroupTiles::automatic;
};

// K and V in pages: key j of batch b is row j % page of tensor batch table[b * table_stride + j / page].
// seqused_k gives each batch's keys, seqlen_k the most that any may have (at most table_stride * page).
struct PageTable {
  const int32_t* table = nullptr;  // device; null: K and V are not paged
  int64_t table_stride = 0;
  int64_t page = 0;   // keys: a multiple of 8, or any number of at least seqlen_k
  int64_t pages = 0;  // of the cache; ids outside are clamped
  int64_t added = 0;  // with seqused_k, paged or not: keys of every batch behind those it counts
};

// ok, or `unsupported` naming the field that this kernel does not take (the sm_80 kernels may).
Status prefill_supports(const AttentionProblem& problem, const PageTable& pages = {});

// o and lse of `problem`, all pointers on the device, on launch.stream; problem.total_q and total_k with
// cu_seqlens. Reads Q once, K and V once for every 128 to 256 rows of a head, or of a group's heads where
// those are packed (from L2 mostly), writes O once. REQUIRES: validate(problem) and prefill_supports() are
// ok.
Status prefill(tessera::cuda::Launch& launch, const AttentionProblem& problem, const ForwardTensors& tensors,
               const PageTable& pages = {}, const PrefillTuning& tuning = {});

// Whether the call above packs the heads of a group into tiles, on so many multiprocessors.
bool prefill_packs(const AttentionProblem& problem, int multiprocessors, const PrefillTuning& tuning = {});

}  // namespace tessera::attention::cuda::sm90
