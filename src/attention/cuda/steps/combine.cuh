// Folds handed-over segments into rows, in order: one warp a row. It is launched with programmatic dependency
// on the kernel that writes the partials: what it can know before (which partials are its row's) it works out
// while that kernel still runs.
#pragma once

#include "attention/cuda/steps/schedule.cuh"
#include "attention/cuda/steps/state.cuh"

namespace tessera::attention::cuda::steps {

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
    constexpr int kDeep = kValues > 4 ? 4 : 16;  // loads in flight
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
  let_next_kernel_start();
  p.touch();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int heads = p.kv_heads * p.group;
  const int r = static_cast<int>(blockIdx.x) * kCombineWarps + static_cast<int>(threadIdx.x) / 32;
  const int pair = p.by_group.quotient(r);  // token and kv head
  const int token = p.by_kv_heads.quotient(pair), head = r - token * heads;
  const bool exists = token < p.batch * p.tokens;
  const int kv_head = pair - token * p.kv_heads, head_in_group = r - pair * p.group;
  const int batch = p.by_tokens.quotient(token), t = token - batch * p.tokens;
  Combiner<T, kDim> combiner{p, lane, {}, {}};
  combiner.segment.clear();
  combiner.row.clear();
  bool covered = true;  // by the plan
  if constexpr (kListed) {
    TokenPartials mine{0, 0, 0, 0};
    int32_t keys = 0;  // final: the kernel that this one depends on let it start after waiting for all before
    PartialEntry entry{0, INT32_MAX};
    if (exists) {
      if (lane < c.entry_stride) entry = c.entries[int64_t{pair} * c.entry_stride + lane];
      mine = c.tokens[pair];
      keys = extent_of<false>(p, batch).keys;
    }
    const int64_t offset = head_in_group;
    const auto load = [&](int at) {
      return at < mine.count ? c.entries[mine.first + at] : PartialEntry{0, INT32_MAX};
    };
    if (c.entry_stride == 0) entry = load(lane);
    wait_for_kernels_before();
    if (!exists || mine.count == 0) return;
    for (int first = 0;;) {
      const int count = __popc(__ballot_sync(~0u, entry.first_key < keys));
      combiner.add(entry.row, count, offset);
      first += 32;
      if (count < 32 || first >= mine.count) break;
      entry = load(first + lane);
    }
    covered = keys >= mine.least && keys <= mine.most;
  } else {
    // The lengths are final: the kernel that this one depends on let it start after waiting for all before.
    const Schedule<kFeatures> schedule(Lengths{p, nullptr}, lane);
    if (!schedule.split || !exists) {
      wait_for_kernels_before();
      return;
    }
    const int row_in_pair = t * p.group + head_in_group;
    const int row_block = p.row_blocks == 1 ? 0 : row_in_pair / p.piece_rows;
    const int row = row_in_pair - row_block * p.piece_rows;
    const int32_t item = (batch * p.kv_heads + kv_head) * p.row_blocks + row_block;
    const Extent e = extent_of<kFeatures>(p, batch);
    const int32_t position = schedule.position(batch) + (kv_head * p.row_blocks + row_block) * e.units;
    // Cuts inside the item, in order, each found when the one before is passed.
    int share = schedule.block_at(position);
    int32_t cut = 0;
    const auto next_cut = [&](int32_t after) {
      while (cut <= after && share < schedule.blocks()) {
        const int32_t at = schedule.share(++share) - position;
        cut = at <= 0 ? 0 : at >= e.units ? e.units : schedule.moved_to_grain(e, at);
      }
      if (cut <= after) cut = e.units;
    };
    next_cut(0);
    if (cut >= e.units) {  // whole: its block writes it
      wait_for_kernels_before();
      return;
    }
    int32_t entry = 0, segment_end = 0, unit = 0;
    bool waited = false;
    while (unit < e.units) {
      int count = 0;
      for (; count < 32 && unit < e.units; ++count) {
        const bool begins = unit >= segment_end;
        if (begins) {
          segment_end =
              min(e.units, ((e.first_unit + unit) / kSegmentUnits + 1) * kSegmentUnits - e.first_unit);
          next_cut(unit);
        }
        const int32_t at = (item * p.units_most + unit) * p.piece_rows;
        if (lane == count) entry = begins ? at : at | static_cast<int32_t>(0x80000000u);
        // Up to the first cut in one, then unit by unit.
        unit = begins ? min(cut, segment_end) : unit + 1;
      }
      if (!waited) wait_for_kernels_before();
      waited = true;
      combiner.add(entry, count, row);
    }
  }
  combiner.row.fold(combiner.segment);
  if (!covered) combiner.row.l = __int_as_float(0x7fffffff);
  char* to = static_cast<char*>(p.o.data) + 2 * (batch * p.o.batch_stride + t * p.o.row_stride +
                                                 head * p.o.head_stride + lane * kLaneValues<kDim>);
  if (!kFeatures || lane * kLaneValues<kDim> < p.head_dim) {
    store_rounded<T>(to, combiner.row.o, combiner.row.inverse());
  }
  if (p.lse != nullptr && lane == 0) {
    p.lse[(int64_t{batch} * heads + head) * p.tokens + t] = combiner.row.lse();
  }
}

}  // namespace tessera::attention::cuda::steps
