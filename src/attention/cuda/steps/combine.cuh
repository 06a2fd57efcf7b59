// Folds handed-over segments into rows, in order: one warp a row. It is launched with programmatic dependency
// on the kernel that writes the partials: what it can know before (which partials are its row's) it works out
// while that kernel still runs, and where that one says which of its blocks are done (BlockProgress), it
// begins with a row when its parts are there.
//
// It is the end of every step that uses it, and its instructions run for the first time then, at some 4.5
// cycles each: loops are not unrolled, and partials come through shared memory (with 16 of them in registers,
// loads and folds unrolled, a step of a tree took 0.5 to 2 us longer).
#pragma once

#include "attention/cuda/steps/schedule.cuh"
#include "attention/cuda/steps/state.cuh"

namespace tessera::attention::cuda::steps {

// A warp's left fold of partials: the segment that goes on, and the row of those before it.
template <int kDim>
struct PartialFold {
  static constexpr int kValues = kLaneValues<kDim>;
  static constexpr int kRows = combine_rows(kDim);
  using State = RowState<kValues>;
  const DecodeParams& p;
  const int lane;
  float* const buffer;  // [kRows][kDim] in shared memory, the warp's own
  State segment, row;

  __device__ __forceinline__ PartialFold(const DecodeParams& params, int lane_in, float* buffer_in)
      : p(params), lane(lane_in), buffer(buffer_in) {
    segment.clear();
    row.clear();
  }

  // Lane i < count holds entry i, `offset` rows before the one that is folded.
  __device__ __forceinline__ void add(int32_t entry, int count, int32_t offset) {
    const int32_t at = (entry & 0x7fffffff) + offset;
    float2 ml = make_float2(0.0f, 0.0f);
    if (lane < count) ml = p.partial_ml[at];
    const unsigned begins = __ballot_sync(~0u, entry >= 0);  // a segment
#pragma unroll 1
    for (int first = 0; first < count; first += kRows) {
      const int end = min(count, first + kRows);
      __syncwarp();  // the buffer's rows have been read
      copy(at, first, end);
      const float* from = buffer + lane * kValues;
#pragma unroll 1
      for (int i = first; i < end; ++i, from += kDim) {
        State next;
        load_values(next.o, from);
        next.m = __shfl_sync(~0u, ml.x, i);
        next.l = __shfl_sync(~0u, ml.y, i);
        if (((begins >> i) & 1) == 0) {
          segment.fold(next);
        } else {
          row.fold(segment);
          segment = next;
        }
      }
    }
  }

 private:
  __device__ __forceinline__ void copy(int32_t at, int first, int end) const {
    uint32_t to = shared_address(buffer + 4 * lane);
#pragma unroll 1
    for (int i = first; i < end; ++i, to += 4 * kDim) {
      const float* from = p.partial_o + int64_t{__shfl_sync(~0u, at, i)} * kDim + 4 * lane;
#pragma unroll
      for (int column = 0; column < kDim; column += 128) {
        if (kDim >= 128 || lane < kDim / 4) cp_async_16(to + 4 * column, from + column, true);
      }
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
  }
};

// Row r of the step: of which token and head.
struct CombinedRow {
  int pair, token, batch, t;  // pair: token and kv head
  int head, kv_head, head_in_group;
  bool exists;

  __device__ __forceinline__ CombinedRow(const DecodeParams& p, int r) {
    pair = p.by_group.quotient(r);
    token = p.by_kv_heads.quotient(pair);
    head = r - token * p.kv_heads * p.group;
    exists = token < p.batch * p.tokens;
    kv_head = pair - token * p.kv_heads;
    head_in_group = r - pair * p.group;
    batch = p.by_tokens.quotient(token);
    t = token - batch * p.tokens;
  }

  template <typename T, int kDim, bool kFeatures>
  __device__ __forceinline__ void write(const DecodeParams& p, int lane,
                                        const RowState<kLaneValues<kDim>>& row) const {
    constexpr int kBytes = static_cast<int>(sizeof(T));
    char* to = static_cast<char*>(p.o.data) + kBytes * (batch * p.o.batch_stride + t * p.o.row_stride +
                                                        head * p.o.head_stride + lane * kLaneValues<kDim>);
    if (!kFeatures || lane * kLaneValues<kDim> < p.v_head_dim) store_rounded<T>(to, row.o, row.inverse());
    if (p.lse != nullptr && lane == 0) {
      p.lse[(int64_t{batch} * p.kv_heads * p.group + head) * p.tokens + t] = row.lse();
    }
  }
};

// By a whole warp: each lane that waits, for its block.
__device__ __forceinline__ void wait_for_block(const DecodeParams& p, int32_t block, bool waits) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  while (!__all_sync(~0u, !waits || load_acquire(&p.progress[block].warps) >= kHandingWarps)) {
  }
  __syncwarp();
#endif
}

template <typename T, int kDim, bool kListed, bool kFeatures>
__global__ void __launch_bounds__(32 * kCombineWarps, 1)
    combine_kernel(const __grid_constant__ DecodeParams p) {
  let_next_kernel_start();
  p.touch();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int r = static_cast<int>(blockIdx.x) * kCombineWarps + static_cast<int>(threadIdx.x) / 32;
  const CombinedRow in(p, r);
  extern __shared__ __align__(16) unsigned char combine_memory[];
  float* const buffers = reinterpret_cast<float*>(combine_memory);
  PartialFold<kDim> fold(p, lane, buffers + static_cast<int>(threadIdx.x) / 32 * combine_rows(kDim) * kDim);
  // The lengths are final: the kernel that this one depends on let it start after waiting for all before.
  if constexpr (kListed) {
    TokenPartials mine{0, 0, 0, 0};
    int32_t keys = 0;
    constexpr PartialEntry kNone = kNoPartial;  // the host's object has no address here
    PartialEntry entry = kNone;
    if (in.exists) {
      if (lane < p.entry_stride) entry = p.entries[int64_t{in.pair} * p.entry_stride + lane];
      mine = p.partials[in.pair];
      keys = extent_of<false>(p, in.batch).keys;
    }
    const auto load = [&](int at) { return at < mine.count ? p.entries[mine.first + at] : kNone; };
    if (p.entry_stride == 0) entry = load(lane);
    if (p.progress == nullptr || mine.count == 0) wait_for_kernels_before();
    if (mine.count == 0) return;  // there is no such row, or its block has written it
    for (int first = 0;;) {
      const bool is_there = entry.first_key < keys;
      const int count = __popc(__ballot_sync(~0u, is_there));
      if (p.progress != nullptr) wait_for_block(p, entry.block, is_there);
      if (count > 0) fold.add(entry.row, count, in.head_in_group);
      first += 32;
      if (count < 32 || first >= mine.count) break;
      entry = load(first + lane);
    }
    fold.row.fold(fold.segment);
    if (keys < mine.least || keys > mine.most) fold.row.l = __int_as_float(0x7fffffff);
  } else {
    const Schedule<kFeatures> schedule(Lengths{p, nullptr}, lane);
    if (!schedule.split || !in.exists) {
      wait_for_kernels_before();
      return;
    }
    const int row_in_pair = in.t * p.group + in.head_in_group;
    const int row_block = p.row_blocks == 1 ? 0 : row_in_pair / p.piece_rows;
    const int row = row_in_pair - row_block * p.piece_rows;
    const int32_t item = (in.batch * p.kv_heads + in.kv_head) * p.row_blocks + row_block;
    const Extent e = extent_of<kFeatures>(p, in.batch);
    const int32_t position = schedule.position(in.batch) + (in.kv_head * p.row_blocks + row_block) * e.units;
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
      fold.add(entry, count, row);
    }
    fold.row.fold(fold.segment);
  }
  in.template write<T, kDim, kFeatures>(p, lane, fold.row);
  if (kListed && p.progress != nullptr)
    wait_for_kernels_before();  // who waits for this kernel waits for those
}

}  // namespace tessera::attention::cuda::steps
