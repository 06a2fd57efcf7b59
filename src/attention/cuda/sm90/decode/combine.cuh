// Folds handed-over segments into rows, in order: one warp a row. It is launched with programmatic dependency
// on the kernel that writes the partials: what it can know before (which partials are its row's) it works out
// while that kernel still runs.
#pragma once

#include "attention/cuda/sm90/decode/schedule.cuh"
#include "attention/cuda/sm90/decode/state.cuh"

namespace tessera::attention::cuda::sm90 {

template <typename T, int kDim>
struct Combiner {
  static constexpr int kValues = kLaneValues<kDim>;
  using State = RowState<kValues>;
  const DecodeParams& p;
  const int lane;
  State segment, row;

  // Lane i < count holds entry i.
  __device__ __forceinline__ void add(int32_t entry, int count, int64_t offset) {
    const int64_t at = (entry & 0x7fffffff) + offset;
    float2 ml = make_float2(0.0f, 0.0f);
    if (lane < count) ml = p.partial_ml[at];
    constexpr int kDeep = kValues > 4 ? 4 : 8;  // loads in flight
    for (int first = 0; first < count; first += kDeep) {
      float o[kDeep][kValues];
#pragma unroll
      for (int i = 0; i < kDeep; ++i) {
        const int64_t from = __shfl_sync(~0u, at, (first + i) & 31);
        if (first + i < count) load_values(o[i], p.partial_o + from * kDim + lane * kValues);
      }
#pragma unroll
      for (int i = 0; i < kDeep; ++i) {
        if (first + i >= count) break;
        State next;
        next.m = __shfl_sync(~0u, ml.x, first + i);
        next.l = __shfl_sync(~0u, ml.y, first + i);
#pragma unroll
        for (int j = 0; j < kValues; ++j) next.o[j] = o[i][j];
        if (__shfl_sync(~0u, entry, first + i) < 0) {
          segment.fold(next);
        } else {
          row.fold(segment);
          segment = next;
        }
      }
    }
  }
};

template <typename T, int kDim, bool kListed, bool kFeatures>
__global__ void __launch_bounds__(32 * kCombineWarps, 1)
    combine_kernel(const __grid_constant__ CombineParams c) {
  const DecodeParams& p = c.decode;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int heads = p.kv_heads * p.group;
  const int r = static_cast<int>(blockIdx.x) * kCombineWarps + static_cast<int>(threadIdx.x) / 32;
  const int token = r / heads, head = r - token * heads;
  const bool exists = token < p.batch * p.tokens;
  const int kv_head = head / p.group, batch = token / p.tokens, t = token - batch * p.tokens;
  Combiner<T, kDim> combiner{p, lane, {}, {}};
  combiner.segment.clear();
  combiner.row.clear();
  if constexpr (kListed) {
    TokenPartials mine{0, 0};
    if (exists) mine = c.tokens[token * p.kv_heads + kv_head];
    const int64_t offset = head % p.group;
    int32_t entry = lane < mine.count ? __ldg(c.entries + mine.first + lane) : 0;
    dependency_wait();
    if (!exists || mine.count == 0) return;
    for (int first = 0;;) {
      combiner.add(entry, min(32, mine.count - first), offset);
      first += 32;
      if (first >= mine.count) break;
      entry = first + lane < mine.count ? __ldg(c.entries + mine.first + first + lane) : 0;
    }
  } else {
    // The lengths are final: the kernel that this one depends on let it start after waiting for all before.
    const Schedule<kFeatures> schedule(p, c.blocks);
    if (!schedule.split || !exists) {
      dependency_wait();
      return;
    }
    const int row_in_pair = t * p.group + head % p.group;
    const int row_block = row_in_pair / p.piece_rows;
    const int32_t item = (batch * p.kv_heads + kv_head) * p.row_blocks + row_block;
    const Extent e = extent_of<kFeatures>(p, batch);
    const int32_t position = schedule.position(batch) + (kv_head * p.row_blocks + row_block) * e.units;
    // Cuts inside the item, in order, each found when the one before is passed.
    int share = schedule.block_at(position);
    int32_t cut = 0;
    const auto next_cut = [&](int32_t after) {
      while (cut <= after && share < schedule.blocks) {
        const int32_t at = schedule.share(++share) - position;
        cut = at <= 0 ? 0 : at >= e.units ? e.units : schedule.moved_to_grain(e, at);
      }
      if (cut <= after) cut = e.units;
    };
    next_cut(0);
    dependency_wait();
    if (cut >= e.units) return;  // whole: its block wrote it
    int32_t entry = 0;
    int count = 0;
    const auto give = [&](int32_t unit, bool continues) {
      const int32_t at = (item * p.units_most + unit) * p.piece_rows;
      if (lane == count) entry = at | (continues ? static_cast<int32_t>(0x80000000u) : 0);
      if (++count == 32) {
        combiner.add(entry, 32, row_in_pair - row_block * p.piece_rows);
        count = 0;
      }
    };
    for (int32_t unit = 0; unit < e.units;) {
      const int32_t segment_end = ((e.first_unit + unit) / kSegmentUnits + 1) * kSegmentUnits - e.first_unit;
      const int32_t to = min(e.units, segment_end);
      next_cut(unit);
      give(unit, false);
      for (int32_t apart = cut; apart < to; ++apart) give(apart, true);
      unit = to;
    }
    if (count > 0) combiner.add(entry, count, row_in_pair - row_block * p.piece_rows);
  }
  combiner.row.fold(combiner.segment);
  char* to = static_cast<char*>(p.o.data) + 2 * (batch * p.o.batch_stride + t * p.o.row_stride +
                                                 head * p.o.head_stride + lane * kLaneValues<kDim>);
  store_rounded<T>(to, combiner.row.o, combiner.row.inverse());
  if (p.lse != nullptr && lane == 0) {
    p.lse[(int64_t{batch} * heads + head) * p.tokens + t] = combiner.row.lse();
  }
}

}  // namespace tessera::attention::cuda::sm90
