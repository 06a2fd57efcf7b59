#include <string>

#include "attention/cuda/common/mask.cuh"
#include "attention/cuda/common/seen_keys.h"

namespace tessera::attention::cuda {
namespace {

__global__ void seen_keys_kernel(const __grid_constant__ Features f, int64_t all, int heads, int kv_heads,
                                 uint8_t* seen) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= all) return;
  const int key = static_cast<int>(i % f.seqlen_k), kv_head = static_cast<int>(i / f.seqlen_k % kv_heads);
  const int batch = static_cast<int>(i / f.seqlen_k / kv_heads);
  const Sequence s = sequence_of(f, batch);
  const int group = heads / kv_heads;
  bool found = false;
  // Heads that share the mask see the same keys.
  const int distinct = f.mask.head_stride == 0 ? 1 : group;
  for (int h = 0; h < distinct && !found; ++h) {
    for (int row = s.rows - 1; row >= 0 && !found; --row) {
      found = sees(f, s, batch, kv_head * group + h, row, key);
    }
  }
  seen[i] = found;
}

}  // namespace

Status mark_seen_keys(tessera::cuda::Launch& launch, const Features& features, int batch, int heads,
                      int kv_heads, uint8_t* seen) {
  const int64_t all = int64_t{batch} * kv_heads * features.seqlen_k;
  if (all == 0) return {};
  constexpr int kThreads = 128;
  seen_keys_kernel<<<static_cast<unsigned>((all + kThreads - 1) / kThreads), kThreads, 0,
                     static_cast<cudaStream_t>(launch.stream.handle())>>>(features, all, heads, kv_heads,
                                                                          seen);
  return tessera::cuda::launched("seen_keys", "batch=" + std::to_string(batch) +
                                                  " kv_heads=" + std::to_string(kv_heads) +
                                                  " seqlen_k=" + std::to_string(features.seqlen_k));
}

}  // namespace tessera::attention::cuda
