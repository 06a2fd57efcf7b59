#include <cmath>

#include "attention/cuda/rows/convert.cuh"
#include "attention/cuda/rows/rows.h"

namespace tessera::attention::cuda {
namespace {

constexpr int kWarps = 4;

struct Params {
  MergeProblem problem;
  AttentionPart parts[kMostParts];
  int count;
  Strided<void*> o;
  Strided<float*> lse;
  int64_t rows;  // batch x seqlen x heads
};

// A warp is one head of one row. Lane i knows the weight of part i; the sum runs over the parts in order.
__global__ void merge_rows(const __grid_constant__ Params p) {
  const int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.y;
  if (index >= p.rows) return;
  const int64_t head = index % p.problem.heads, row = index / p.problem.heads % p.problem.seqlen;
  const int64_t batch = index / p.problem.heads / p.problem.seqlen;
  const auto at = [&](const auto& s) {
    return batch * s.batch_stride + row * s.row_stride + head * s.head_stride;
  };
  const int lane = static_cast<int>(threadIdx.x);
  const auto lse_of = [&](int part) -> double {
    const float lse = p.parts[part].lse.data[at(p.parts[part].lse)];
    return lse == INFINITY ? -INFINITY : lse;
  };
  double most = -INFINITY, sum = 0;
  for (int part = 0; part < p.count; ++part) {
    const double lse = lse_of(part);
    if (isnan(lse)) most = lse;
    if (lse > most) most = lse;  // false when either is NaN: a NaN stays
  }
  float weight = 0;
  double total = most;
  if (!(most == -INFINITY)) {
    for (int part = 0; part < p.count; ++part) sum += exp(lse_of(part) - most);
    if (lane < p.count) weight = static_cast<float>(exp(lse_of(lane) - most) / sum);
    total = most + log(sum);
  }
  for (int d = lane; d < (p.problem.head_dim + 31) / 32 * 32; d += 32) {
    float value = isnan(total) ? NAN : 0.0f;
    for (int part = 0; part < p.count; ++part) {
      const float w = __shfl_sync(~0u, weight, part);
      if (!(w > 0) || d >= p.problem.head_dim) continue;
      value = __fmaf_rn(w, widened(p.parts[part].o.data, at(p.parts[part].o) + d, p.problem.dtype), value);
    }
    if (d < p.problem.head_dim) narrow_to(p.o.data, at(p.o) + d, p.problem.out_dtype, value);
  }
  if (lane == 0 && p.lse.data != nullptr) p.lse.data[at(p.lse)] = static_cast<float>(total);
}

}  // namespace

Status merge(tessera::cuda::Launch& launch, const MergeProblem& problem, std::span<const AttentionPart> parts,
             const Strided<void*>& o, const Strided<float*>& lse) {
  Params params{problem, {},  static_cast<int>(parts.size()),
                o,       lse, problem.batch * problem.seqlen * problem.heads};
  for (size_t i = 0; i < parts.size(); ++i) params.parts[i] = parts[i];
  const auto blocks = static_cast<unsigned>((params.rows + kWarps - 1) / kWarps);
  merge_rows<<<blocks, dim3(32, kWarps), 0, static_cast<cudaStream_t>(launch.stream.handle())>>>(params);
  return tessera::cuda::launched(
      "merge_rows", std::to_string(parts.size()) + " parts of " + std::to_string(params.rows) + " rows");
}

}  // namespace tessera::attention::cuda
