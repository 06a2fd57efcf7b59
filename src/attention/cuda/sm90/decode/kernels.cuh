// Picks an instantiation; included by the kernel_DIM.cu files.
#pragma once

#include "attention/cuda/sm90/decode/kernel.cuh"
#include "attention/cuda/sm90/decode/kernels.h"

namespace tessera::attention::cuda::sm90 {

template <typename T, int kDim, int kGroups, bool kFeatures, bool kSmallBoxes>
DecodeKernel lengths_kernel() {
  DecodeKernel found;
  found.kernel =
      reinterpret_cast<const void*>(&decode_kernel<T, kDim, kGroups, false, kFeatures, false, kSmallBoxes>);
  found.shared_bytes = static_cast<int>(sizeof(DecodeShared<kDim, kGroups, kSmallBoxes>));
  found.threads = kDecodeThreads;
  found.most_rows = 8 * kGroups;
  return found;
}

template <typename T, int kDim, int kGroups>
DecodeKernel lengths_kernel(bool features, bool small_boxes) {
  if (features) return lengths_kernel<T, kDim, kGroups, true, false>();
  return small_boxes ? lengths_kernel<T, kDim, kGroups, false, true>()
                     : lengths_kernel<T, kDim, kGroups, false, false>();
}

template <typename T, int kDim>
DecodeKernel lengths_kernel(int64_t rows, bool features, bool small_boxes) {
  if constexpr (kDim <= 128) {
    if (rows > 8) return lengths_kernel<T, kDim, kMostRowGroups>(features, small_boxes);
  }
  return lengths_kernel<T, kDim, 1>(features, small_boxes);
}

// head_dim 256 has no registers for warpgroups of 64 rows, and warpgroups have no features: there the rows of
// a piece are the warps'.
template <typename T, int kDim, bool kFeatures>
DecodeKernel listed_kernel() {
  constexpr bool kWide = kDim <= 128 && !kFeatures;
  constexpr int kGroups = kDim <= 128 ? kMostRowGroups : 1;
  DecodeKernel found;
  found.kernel =
      reinterpret_cast<const void*>(&decode_kernel<T, kDim, kGroups, true, kFeatures, kWide, false>);
  found.shared_bytes = static_cast<int>(sizeof(DecodeShared<kDim, kGroups, false>));
  found.threads = kWide ? kWideThreads : kDecodeThreads;
  found.most_rows = kWide ? 2 * kWideRows : 8 * kGroups;
  return found;
}

}  // namespace tessera::attention::cuda::sm90
