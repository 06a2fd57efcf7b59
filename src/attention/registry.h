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

// How the rows come. Over a paged cache: many rows of one sequence, one row of each, or rows of several
// sequences stacked on a shared block. Dense: from the caller's own tensors, which are packed into tiles
// first.
enum class Kind : uint8_t { prefill = 1, decode = 2, tree = 4, dense = 8 };

// Features as bits.
inline constexpr uint32_t kCausal = 1, kWindow = 2, kSoftcap = 4, kAlibi = 8, kMaskTensor = 16,
                          kAncestors = 32, kDropout = 64, kVarlen = 128, kLeftpad = 256;
inline constexpr uint32_t kPagedFeatures = kCausal | kWindow | kSoftcap | kAlibi;
inline constexpr uint32_t kDenseFeatures =
    kPagedFeatures | kMaskTensor | kAncestors | kDropout | kVarlen | kLeftpad;
// Those that the problem asks for.
uint32_t wanted_features(const AttentionProblem& problem);
// Their names, for messages: "dropout, a mask tensor".
std::string feature_names(uint32_t features);

// What the tiles hold of a problem's K and V: halves become f32, which holds them exactly.
inline DType tile_dtype(DType dtype) {
  return dtype == DType::f16 ? DType::f32 : dtype;
}

struct KernelDescriptor {
  const TileKernel* kernel;
  simd::Isa isa;
  DType dtype;                        // of the tiles
  int least_head_dim, most_head_dim;  // and a multiple of 8; the same for v_head_dim
  uint32_t features;                  // over a paged cache
  uint32_t dense_features;            // over dense tensors
  uint32_t kinds;                     // bits of Kind
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
