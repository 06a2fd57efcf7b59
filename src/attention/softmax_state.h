// The softmax state and its merge: the one form of it on the CPU. Compiled per ISA (include it in *_ISA.cc
// files only).
//
// State of a row: (m, l, o) = (reference maximum, sum of 2^(s - m), sum of 2^(s - m) * v), scores s in units
// of log2. Identity: (kNoMaximum, 0, 0). m need not be the true maximum: it may lag by up to kLazyBound (see
// tile_kernel.inc.h); the quotient o / l and LSE = m * ln 2 + ln(l) do not depend on it in exact arithmetic.
// LSE is natural and -inf when l is 0.
//
// merge(a, b): m = max(a.m, b.m); l = a.l * 2^(a.m - m) + b.l * 2^(b.m - m); o the same way.
// In floating point it is not associative, so its order is part of every row's arithmetic (law 1): segments
// in rising order, the running state first. Merging with the identity changes no bit: exp2(0) is exactly 1,
// and 2^(kNoMaximum - m) exactly 0.
#pragma once

#include "attention/cpu/tile_kernel.h"
#include "simd/vec_math.h"

namespace tessera::attention {
inline namespace TESSERA_SIMD_NAMESPACE {

// merge of one row into `total`: part_l is the part's whole sum. v_width is a multiple of 16. A total with l
// = 0 is the identity, whatever its o holds.
TESSERA_VEC void merge_row(float* total_m, float* total_l, float* total_o, float part_m, float part_l,
                           const float* part_o, int v_width) {
  using namespace simd;
  if (*total_l == 0) {
    *total_m = part_m;
    *total_l = part_l;
    for (int d = 0; d < v_width; d += kLanes) store(total_o + d, load(part_o + d));
    return;
  }
  const float m = *total_m > part_m ? *total_m : part_m;
  const F32 keep = exp2(set1(*total_m - m));
  const F32 take = exp2(set1(part_m - m));
  *total_m = m;
  store_n(total_l, fma(set1(part_l), take, set1(*total_l) * keep), 1);
  for (int d = 0; d < v_width; d += kLanes) {
    store(total_o + d, fma(load(part_o + d), take, load(total_o + d) * keep));
  }
}

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::attention
