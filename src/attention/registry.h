// Which attention kernels there are, which one a problem gets, and why.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "attention/cpu/tile_kernel.h"
#include "attention/problem.h"
#include "simd/isa.h"
#include "tessera/status.h"

namespace tessera::attention {

// How the rows come: many rows of one sequence, one row of each, or rows of several sequences stacked on a
// shared block.
enum class Kind : uint8_t { prefill = 1, decode = 2, tree = 4 };

// Features as bits.
inline constexpr uint32_t kCausal = 1, kWindow = 2, kSoftcap = 4, kAlibi = 8;

struct KernelDescriptor {
  const TileKernel* kernel;
  simd::Isa isa;
  DType dtype;                        // of K and V
  int least_head_dim, most_head_dim;  // and a multiple of 8; the same for v_head_dim
  uint32_t features;
  uint32_t kinds;  // bits of Kind
};

// Every kernel of this build, best last.
std::span<const KernelDescriptor> kernels();

// The best kernel for the problem among the ISAs up to simd::requested_isa(). A problem that no kernel takes
// is an `unsupported` that names the field; so is a TESSERA_ISA that this machine lacks.
Result<const TileKernel*> find(const AttentionProblem& problem, Kind kind);

// One line a kernel: its name, and "taken" or why not. The line of the one that find() returns starts with ">
// ".
std::string explain(const AttentionProblem& problem, Kind kind);

}  // namespace tessera::attention
