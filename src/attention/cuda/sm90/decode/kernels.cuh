// Picks an instantiation; included by the kernel_DIM.cu files.
#pragma once

#include "attention/cuda/sm90/decode/combine.cuh"
#include "attention/cuda/sm90/decode/kernel.cuh"
#include "attention/cuda/sm90/decode/kernels.h"

namespace tessera::attention::cuda::sm90 {

template <typename T, int kDim, int kGroups>
DecodeKernel decode_kernel_of(bool features) {
  DecodeKernel found;
  found.kernel = features
                     ? reinterpret_cast<const void*>(&decode_kernel<T, kDim, kGroups, false, true, false>)
                     : reinterpret_cast<const void*>(&decode_kernel<T, kDim, kGroups, false, false, false>);
  found.combine = features ? reinterpret_cast<const void*>(&combine_kernel<T, kDim, false, true>)
                           : reinterpret_cast<const void*>(&combine_kernel<T, kDim, false, false>);
  found.shared_bytes = static_cast<int>(sizeof(DecodeShared<kDim, kGroups>));
  found.threads = kDecodeThreads;
  found.most_rows = 8 * kGroups;
  return found;
}

template <typename T, int kDim>
DecodeKernel decode_kernel_of(int64_t rows, bool features) {
  if constexpr (kDim <= 128) {
    if (rows > 8) return decode_kernel_of<T, kDim, kMostRowGroups>(features);
  }
  return decode_kernel_of<T, kDim, 1>(features);
}

// head_dim 256 has no registers for warpgroups of 64 rows.
template <typename T, int kDim>
DecodeKernel tree_kernel_of() {
  constexpr bool kWide = kDim <= 128;
  constexpr int kGroups = kWide ? kMostRowGroups : 1;
  DecodeKernel found;
  found.kernel = reinterpret_cast<const void*>(&decode_kernel<T, kDim, kGroups, true, false, kWide>);
  found.combine = reinterpret_cast<const void*>(&combine_kernel<T, kDim, true, false>);
  found.shared_bytes = static_cast<int>(sizeof(DecodeShared<kDim, kGroups>));
  found.threads = kWide ? kWideThreads : kDecodeThreads;
  found.most_rows = kWide ? 2 * kWideRows : 8;
  return found;
}

}  // namespace tessera::attention::cuda::sm90
