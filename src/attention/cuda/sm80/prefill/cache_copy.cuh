// Where the keys of a sequence lie in a cache, and tiles of them on their way to shared memory.
#pragma once

#include <cstdint>

#include "attention/cuda/common/mask.cuh"
#include "attention/cuda/common/tile_copy.cuh"
#include "attention/cuda/sm80/prefill/config.h"

namespace tessera::attention::cuda::sm80 {

// sequence_of() where the cache says how many keys there are; beyond its capacity there are none.
__device__ __forceinline__ Sequence sequence_in_cache(const Features& f, const CacheRows& cache, int batch) {
  Sequence s{0, 0, f.seqlen_q, 0, 0, 0, 0, 0};
  if (f.cu_seqlens_q != nullptr) {
    s.first_row = f.cu_seqlens_q[batch];
    s.rows = f.cu_seqlens_q[batch + 1] - s.first_row;
  }
  const int before = cache.seqlens != nullptr ? cache.seqlens[batch] : cache.seqlen;
  s.length = s.keys = s.tree = max(0, min(before + cache.appended, cache.capacity));
  s.leftpad = f.leftpad_k != nullptr ? f.leftpad_k[batch] : 0;
  s.shift = s.keys - s.rows;
  return s;
}

// TileCopy of one kv head's rows in a cache: a key's block is looked up by a lane of each warp, the others
// ask that lane. Keys of blocks outside [0, num_blocks) are 0.
template <DType kType, int kDim, int kRows, int kThreads>
class CacheCopy {
  static constexpr int kChunks = kDim * kBytes<kType> / 16;
  static constexpr int kLanes = kChunks % 16 == 0 ? 16 : 8;
  static constexpr int kRowsAtOnce = kThreads / kLanes;
  static constexpr int kLookups = kRows / 32;  // of a lane
  static_assert(kChunks % kLanes == 0 && kRows % 32 == 0 && 32 % kRowsAtOnce == 0);

 public:
  // data: slot 0 of block 0 of the head; strides in elements.
  __device__ __forceinline__ CacheCopy(const CacheRows& cache, int batch, const void* data,
                                       int64_t block_stride, int64_t row_stride, int dim)
      : cache_(cache),
        batch_(batch),
        row_(static_cast<int>(threadIdx.x) / kLanes),
        dim_bytes_(dim * kBytes<kType> - static_cast<int>(threadIdx.x) % kLanes * 16),
        block_stride_(block_stride * kBytes<kType>),
        row_stride_(row_stride * kBytes<kType>),
        data_(static_cast<const char*>(data) + threadIdx.x % kLanes * 16),
        offset_(row_ * kPitch<kType, kDim> + static_cast<int>(threadIdx.x) % kLanes * 16) {}

  // Keys [first, first + kRows); what lies outside [begin, end) becomes 0 and is not read. By all threads.
  __device__ __forceinline__ void copy(uint32_t tile, int first, int begin, int end,
                                       const uint8_t* = nullptr) const {
    int64_t places[kLookups];
#pragma unroll
    for (int i = 0; i < kLookups; ++i) {
      const int key = first + 32 * i + static_cast<int>(threadIdx.x) % 32;
      places[i] = key >= begin && key < end ? place_of(key) : -1;
    }
#pragma unroll
    for (int i = 0; i < kRows / kRowsAtOnce; ++i) {
      const int64_t place = __shfl_sync(~0u, places[i * kRowsAtOnce / 32], row_ + i * kRowsAtOnce % 32);
      const char* from = data_ + (place < 0 ? 0 : place);
#pragma unroll
      for (int c = 0; c < kChunks / kLanes; ++c) {
        cp_async_16(tile + offset_ + i * kRowsAtOnce * kPitch<kType, kDim> + c * kLanes * 16,
                    from + c * kLanes * 16, place >= 0 && c * kLanes * 16 < dim_bytes_);
      }
    }
  }

 private:
  // Bytes from `data` on; -1: there is no such block.
  __device__ __forceinline__ int64_t place_of(int key) const {
    int32_t block = batch_, slot = key;
    if (cache_.block_table != nullptr) {
      const auto entry = static_cast<int>(cache_.by_page.quotient(static_cast<uint32_t>(key)));
      block = __ldg(cache_.block_table + batch_ * cache_.table_stride + entry);
      slot = key - entry * static_cast<int>(cache_.by_page.divisor);
    }
    if (static_cast<uint32_t>(block) >= static_cast<uint32_t>(cache_.num_blocks)) return -1;
    return block * block_stride_ + slot * row_stride_;
  }

  const CacheRows& cache_;
  int batch_, row_, dim_bytes_;
  int64_t block_stride_, row_stride_;
  const char* data_;
  int offset_;
};

}  // namespace tessera::attention::cuda::sm80
