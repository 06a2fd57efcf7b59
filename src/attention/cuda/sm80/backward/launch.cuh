// The bodies of launch.h, for the files that instantiate them.
#pragma once

#include "attention/cuda/sm80/backward/kernel.cuh"
#include "attention/cuda/sm80/backward/launch.h"

namespace tessera::attention::cuda::sm80 {

template <DType kType, int kDim, BackwardTiles kTiles>
int resident_backward(int multiprocessors) {
  constexpr BackwardConfig kConfig = backward_config(kType, kDim, kTiles);
  constexpr int kShared = kConfig.shared_bytes(kPitch<kType, kDim>, kPitch<kType, kConfig.keys>);
  const auto kernel = backward_kernel<kType, kDim, kTiles>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  int each = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kConfig.threads(), kShared);
  return each * multiprocessors;
}

template <DType kType, int kDim, BackwardTiles kTiles>
void launch_backward(const BackwardParams& p, void* stream) {
  constexpr BackwardConfig kConfig = backward_config(kType, kDim, kTiles);
  constexpr int kShared = kConfig.shared_bytes(kPitch<kType, kDim>, kPitch<kType, kConfig.keys>);
  constexpr int kFinishShared = kConfig.rows * kPitch<kType, kDim>;
  const auto on = static_cast<cudaStream_t>(stream);
  const int padded = p.row_tiles * kConfig.rows;
  const int64_t rows = int64_t{p.batch} * p.heads * padded;
  const unsigned tiles = static_cast<unsigned>(int64_t{p.batch} * p.heads * p.row_tiles);
  // Also with no rows: it resets the ticket.
  backward_prepare_kernel<kType><<<static_cast<unsigned>(rows / 32 + 1), 256, 0, on>>>(p, padded);
  const auto kernel = backward_kernel<kType, kDim, kTiles>;
  const unsigned blocks = static_cast<unsigned>(int64_t{p.batch} * p.kv_heads * p.key_tiles);
  if (blocks > 0) kernel<<<blocks, kConfig.threads(), kShared, on>>>(p);
  const auto finish = backward_finish_kernel<kType, kDim, kTiles>;
  cudaFuncSetAttribute(finish, cudaFuncAttributeMaxDynamicSharedMemorySize, kFinishShared);
  if (tiles > 0) finish<<<tiles, kConfig.threads(), kFinishShared, on>>>(p);
}

}  // namespace tessera::attention::cuda::sm80
