#include <algorithm>

#include "attention/cuda/rows/convert.cuh"
#include "attention/cuda/rows/rows.h"

namespace tessera::attention::cuda {
namespace {

struct Params {
  RopeProblem problem;
  Strided<const void*> x;
  Strided<void*> out;
  int64_t rows;
  float sign;  // of sin
};

// The sequence of a row: the last one that starts at or before it.
__device__ int64_t sequence_of(const int32_t* cu, int64_t batch, int64_t row) {
  int64_t low = 0, high = batch - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (cu[middle] <= row) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// A block is one row; a thread takes pairs of its heads in turn, then what passes unchanged.
__global__ void rotate_rows(Params p) {
  const RopeProblem& r = p.problem;
  const int64_t row = blockIdx.x;
  int64_t batch, t;
  if (r.cu_seqlens != nullptr) {
    if (row >= r.cu_seqlens[r.batch]) return;
    batch = sequence_of(r.cu_seqlens, r.batch, row);
    t = row - r.cu_seqlens[batch];
  } else {
    batch = row / r.seqlen;
    t = row % r.seqlen;
  }
  int64_t position = (r.offsets != nullptr ? r.offsets[batch] : r.offset) + t;
  if (r.positions != nullptr) {
    position = r.positions[r.cu_seqlens != nullptr ? row : batch * r.positions_batch_stride + t];
  }
  position = max(int64_t{0}, min(position, r.rotary.positions - 1));
  const int half = r.rotary.rotary_dim / 2, rest = r.head_dim - 2 * half, work = half + rest;
  const int64_t table = position * (r.rotary.row_stride > 0 ? r.rotary.row_stride : half);
  const auto at = [&](const auto& s) {
    return r.cu_seqlens != nullptr ? row * s.row_stride : batch * s.batch_stride + t * s.row_stride;
  };
  for (int i = static_cast<int>(threadIdx.x); i < r.heads * work; i += static_cast<int>(blockDim.x)) {
    const int head = i / work, j = i % work;
    const int64_t from = at(p.x) + head * p.x.head_stride, to = at(p.out) + head * p.out.head_stride;
    if (j >= half) {
      const int d = 2 * half + j - half;
      narrow_to(p.out.data, to + d, r.dtype, widened(p.x.data, from + d, r.dtype));
      continue;
    }
    const bool pairs = r.rotary.style == RopeStyle::interleaved;
    const int first = pairs ? 2 * j : j, second = pairs ? 2 * j + 1 : j + half;
    const float cos = widened(r.rotary.cos, table + j, r.rotary.dtype);
    const float sin = p.sign * widened(r.rotary.sin, table + j, r.rotary.dtype);
    const float a = widened(p.x.data, from + first, r.dtype), b = widened(p.x.data, from + second, r.dtype);
    narrow_to(p.out.data, to + first, r.dtype, __fmaf_rn(a, cos, -__fmul_rn(b, sin)));
    narrow_to(p.out.data, to + second, r.dtype, __fmaf_rn(b, cos, __fmul_rn(a, sin)));
  }
}

}  // namespace

Status rotate(tessera::cuda::Launch& launch, const RopeProblem& problem, int64_t rows,
              const Strided<const void*>& x, const Strided<void*>& out, bool backward) {
  const int64_t work = int64_t{problem.heads} * problem.head_dim / 2;
  const auto threads = static_cast<unsigned>(std::clamp<int64_t>((work + 31) / 32 * 32, 32, 256));
  rotate_rows<<<static_cast<unsigned>(rows), threads, 0, static_cast<cudaStream_t>(launch.stream.handle())>>>(
      {problem, x, out, rows, backward ? -1.0f : 1.0f});
  return tessera::cuda::launched("rotate_rows", std::to_string(rows) + " rows of " +
                                                    std::to_string(problem.heads) + " heads of " +
                                                    std::to_string(problem.head_dim));
}

}  // namespace tessera::attention::cuda
