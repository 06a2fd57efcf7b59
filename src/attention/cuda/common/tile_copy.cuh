// Tiles of rows between global and shared memory for the cp.async kernels.
#pragma once

#include <cstdint>

#include "attention/cuda/common/mma_tiles.cuh"

namespace tessera::attention::cuda {

// Bytes between rows in shared memory: an odd multiple of 16 for every D that is a multiple of 16.
template <DType kType, int kDim>
inline constexpr int kPitch = kDim* kBytes<kType> + 16;

// [kRows][kDim] of one head into shared memory by kThreads threads, 16 bytes each time. What lies outside
// the rows [begin, end) or past `dim` becomes 0 and is not read, so that NaN there changes nothing.
// REQUIRES: kRows rows span less than 2^32 bytes: a thread's place in a tile is then one register.
template <DType kType, int kDim, int kRows, int kThreads>
class TileCopy {
  static constexpr int kChunks = kDim * kBytes<kType> / 16;
  // Neighbouring lanes take neighbouring chunks; a thread's chunks lie kLanes apart.
  static constexpr int kLanes = kChunks % 16 == 0 ? 16 : kChunks % 8 == 0 ? 8 : 4;
  static constexpr int kRowsAtOnce = kThreads / kLanes;
  static_assert(kThreads % kLanes == 0 && kChunks % kLanes == 0 && kRows % kRowsAtOnce == 0);

 public:
  // data: row 0, element 0 of the head.
  __device__ __forceinline__ TileCopy(const void* data, int64_t row_stride, int dim)
      : row_(static_cast<int>(threadIdx.x) / kLanes),
        dim_bytes_(dim * kBytes<kType> - static_cast<int>(threadIdx.x) % kLanes * 16),
        stride_(row_stride * kBytes<kType>),
        data_(static_cast<const char*>(data)),
        thread_(row_ * static_cast<uint32_t>(stride_) + threadIdx.x % kLanes * 16),
        offset_(row_ * kPitch<kType, kDim> + threadIdx.x % kLanes * 16) {}

  // Rows [first, first + kRows) of the head; a row stays 0 too where seen is given and seen[row] is 0.
  __device__ __forceinline__ void copy(uint32_t tile, int first, int begin, int end,
                                       const uint8_t* seen = nullptr) const {
    const char* from = data_ + first * stride_ + thread_;
#pragma unroll
    for (int i = 0; i < kRows / kRowsAtOnce; ++i) {
      const int row = first + row_ + i * kRowsAtOnce;
      bool wanted = row >= begin && row < end;
      if (seen != nullptr && wanted) wanted = seen[row] != 0;
#pragma unroll
      for (int c = 0; c < kChunks / kLanes; ++c) {
        cp_async_16(tile + offset_ + i * kRowsAtOnce * kPitch<kType, kDim> + c * kLanes * 16,
                    from + c * kLanes * 16, wanted && c * kLanes * 16 < dim_bytes_);
      }
      from += kRowsAtOnce * stride_;
    }
  }

 private:
  int row_, dim_bytes_;
  int64_t stride_;
  const char* data_;
  uint32_t thread_;
  int offset_;
};

// [kRows][kDim] from shared memory to `rows` rows of `dim` elements, by the whole block.
template <DType kType, int kDim, int kRows, int kThreads>
__device__ __forceinline__ void copy_out(uint32_t tile, void* data, int64_t row_stride, int rows, int dim) {
  constexpr int kChunks = kDim * kBytes<kType> / 16;
#pragma unroll 4
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    if (row >= rows || chunk * 16 >= dim * kBytes<kType>) continue;
    const uint4 x = load_shared128(tile + row * kPitch<kType, kDim> + chunk * 16);
    *reinterpret_cast<uint4*>(static_cast<char*>(data) + row * row_stride * kBytes<kType> + chunk * 16) = x;
  }
}

// [rows][kDim] accumulators of a warp's kM slabs, times factor[m][half], rounded to the element type and
// written out through the warp's own kM * 16 rows at `tile` in shared memory. Only the warp itself may have
// read or may read those rows. data: row 0 of the slabs; rows: how many of them exist.
template <DType kType, int kDim, int kM>
__device__ __forceinline__ void store_rows(const float (&c)[kM][kDim / 2], const float (&factor)[kM][2],
                                           uint32_t tile, void* data, int64_t row_stride, int rows, int dim) {
  constexpr int kChunks = kDim * kBytes<kType> / 16, kRow = kPitch<kType, kDim>;
  const int lane = threadIdx.x & 31;
  __syncwarp();
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t row = tile + (m * 16 + half * 8 + lane / 4) * kRow;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const float x = c[m][4 * n + 2 * half] * factor[m][half];
        const float y = c[m][4 * n + 2 * half + 1] * factor[m][half];
        if constexpr (kType == DType::f32) {
          store_shared64(row + n * 32 + lane % 4 * 8, __float_as_uint(x), __float_as_uint(y));
        } else {
          store_shared32(row + n * 16 + lane % 4 * 4, pack2<kType>(x, y));
        }
      }
    }
  }
  __syncwarp();
  constexpr int kTotal = kM * 16 * kChunks;
#pragma unroll
  for (int i = 0; i < kTotal / 32; ++i) {
    const int at = i * 32 + lane, row = at / kChunks, chunk = at % kChunks;
    const uint4 x = load_shared128(tile + row * kRow + chunk * 16);
    if (row < rows && chunk * 16 < dim * kBytes<kType>) {
      *reinterpret_cast<uint4*>(static_cast<char*>(data) + row * row_stride * kBytes<kType> + chunk * 16) = x;
    }
  }
}

}  // namespace tessera::attention::cuda
