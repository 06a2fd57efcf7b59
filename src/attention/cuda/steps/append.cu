#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/cuda/steps/append.h"
#include "attention/cuda/steps/state.cuh"

namespace tessera::attention::cuda::steps {
namespace {

constexpr int kWarps = 4;

__device__ __forceinline__ float table_value(const void* table, DType dtype, int64_t at) {
  if (dtype == DType::f32) return static_cast<const float*>(table)[at];
  if (dtype == DType::f16) return __half2float(static_cast<const __half*>(table)[at]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(table)[at]);
}

template <typename T>
__device__ __forceinline__ float widened(T x) {
  return static_cast<float>(x);
}

// The sequence of a row of q: the last one that starts at or before it.
__device__ int sequence_of(const int32_t* cu_seqlens, int batch, int64_t row) {
  int low = 0, high = batch - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (cu_seqlens[middle] <= row) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Rounded once, as rope.h says: fma(a, cos, -(b sin)) and fma(b, cos, a sin).
template <typename T>
__device__ void move_row(const AppendParams& p, const T* from, T* to, int dim, bool turns, int64_t position,
                         int lane) {
  const int rotary = turns ? p.rotary_dim : 0;
  const int half = rotary / 2;
  for (int i = lane; i < half; i += 32) {
    const int64_t at = position * p.table_row_stride + i;
    const float cos = table_value(p.cos, p.table_dtype, at), sin = table_value(p.sin, p.table_dtype, at);
    const int first = p.interleaved != 0 ? 2 * i : i, second = p.interleaved != 0 ? 2 * i + 1 : i + half;
    const float a = widened(from[first]), b = widened(from[second]);
    to[first] = static_cast<T>(__fmaf_rn(a, cos, -__fmul_rn(b, sin)));
    to[second] = static_cast<T>(__fmaf_rn(b, cos, __fmul_rn(a, sin)));
  }
  for (int i = rotary + lane; i < dim; i += 32) to[i] = from[i];
}

template <typename T>
__global__ void __launch_bounds__(32 * kWarps) append_kernel(const __grid_constant__ AppendParams p) {
  wait_for_kernels_before();
  let_next_kernel_start();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int64_t added = int64_t{p.batch} * p.appended * p.kv_heads;
  if (row < 2 * added) {
    const bool is_v = row >= added;
    if (is_v) row -= added;
    const int head = static_cast<int>(row % p.kv_heads);
    const int64_t token = row / p.kv_heads;
    const int b = static_cast<int>(token / p.appended), t = static_cast<int>(token % p.appended);
    const int position = (p.seqlens != nullptr ? p.seqlens[b] : p.seqlen) + t;
    // What the host refuses where it knows the lengths: behind a table's end, or of a table's wrong block,
    // nothing is written.
    if (position < 0 || position >= p.capacity) return;
    const int32_t block = p.block_table != nullptr ? p.block_table[b * p.table_stride + position / p.page]
                          : p.block_of != nullptr  ? p.block_of[b]
                                                   : b;
    if (block < 0 || block >= p.num_blocks) return;
    const TokenRows<const void>& source = is_v ? p.v : p.k;
    const TokenRows<void>& cache = is_v ? p.v_cache : p.k_cache;
    const T* from = static_cast<const T*>(source.data) + b * source.batch_stride + t * source.row_stride +
                    head * source.head_stride;
    T* to = static_cast<T*>(cache.data) + block * cache.batch_stride +
            (p.block_table != nullptr ? position % p.page : position) * cache.row_stride +
            head * cache.head_stride;
    move_row(p, from, to, is_v ? p.v_head_dim : p.head_dim,
             !is_v && p.rotary_dim > 0 && position < p.table_positions, position, lane);
    return;
  }
  row -= 2 * added;
  if (p.rotated == nullptr || row >= int64_t{p.rows} * p.heads) return;
  const int head = static_cast<int>(row % p.heads);
  const int64_t token = row / p.heads;
  int b, t;
  if (p.cu_seqlens_q != nullptr) {
    b = sequence_of(p.cu_seqlens_q, p.batch, token);
    t = static_cast<int>(token) - p.cu_seqlens_q[b];
  } else {
    b = static_cast<int>(token / p.tokens);
    t = static_cast<int>(token % p.tokens);
  }
  const int position = (p.seqlens != nullptr ? p.seqlens[b] : p.seqlen) + (p.advancing_q != 0 ? t : 0);
  const T* from =
      static_cast<const T*>(p.q.data) + head * p.q.head_stride +
      (p.cu_seqlens_q != nullptr ? token * p.q.row_stride : b * p.q.batch_stride + t * p.q.row_stride);
  move_row(p, from, static_cast<T*>(p.rotated) + row * p.head_dim, p.head_dim,
           position >= 0 && position < p.table_positions, position, lane);
}

}  // namespace

const void* append_kernel_for(DType dtype) {
  return dtype == DType::f32   ? reinterpret_cast<const void*>(&append_kernel<float>)
         : dtype == DType::f16 ? reinterpret_cast<const void*>(&append_kernel<__half>)
                               : reinterpret_cast<const void*>(&append_kernel<__nv_bfloat16>);
}

int64_t append_blocks(const AppendParams& p) {
  int64_t rows = 2 * int64_t{p.batch} * p.appended * p.kv_heads;
  if (p.rotated != nullptr) rows += int64_t{p.rows} * p.heads;
  return (rows + kWarps - 1) / kWarps;
}

}  // namespace tessera::attention::cuda::steps
