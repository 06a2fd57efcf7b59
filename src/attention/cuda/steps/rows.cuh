// The rows of a unit: where they are read from, how the warps' states of a wave of units are folded in order,
// and where results go.
//
// Shared is a kernel's shared memory with merge[warps][8][kDim + 4] and merge_ml[warps][8] (a warp's state of
// its unit and row group), running[rows][2][kDim] and running_ml[rows][2] (segment and row, kept from wave to
// wave).
#pragma once

#include "attention/cuda/steps/params.h"
#include "attention/cuda/steps/schedule.cuh"
#include "attention/cuda/steps/state.cuh"
#include "attention/cuda/steps/tile.cuh"
#include "attention/cuda/steps/unit.cuh"

namespace tessera::attention::cuda::steps {

template <typename T, int kDim, bool kListed, bool kFeatures>
struct UnitRows {
  static constexpr int kSteps = kDim / 16;
  static constexpr int kQSteps = kRowSteps<T, kDim>;
  static constexpr int kBytes = static_cast<int>(sizeof(T));
  static constexpr int kRunBits = 16;  // more than a wave has units
  const DecodeParams& p;
  const int lane;

  __device__ __forceinline__ int token_of(const UnitEntry& e, int row) const {
    const int at = e.first_token + p.by_group.quotient(e.first_row + row);
    if constexpr (kListed) return __ldg(p.token_list + at);
    return at;
  }
  __device__ __forceinline__ int head_of(const UnitEntry& e, int row) const {
    return e.kv_head * p.group + p.by_group.remainder(e.first_row + row);
  }

  // B fragments of the lane's row: k = 16 i + 2 (lane % 4) + {0, 1} and those + 8; of f32 k = 8 i + lane % 4
  // and that + 4.
  __device__ __forceinline__ void load_q(const UnitEntry& e, int row_group, uint32_t (&q)[kQSteps][2]) const {
    const int row = row_group * 8 + lane / 4;
    if (row < e.rows) {
      const int token = token_of(e, row);
      const int batch = p.by_tokens.quotient(token);
      const char* from = static_cast<const char*>(p.q.data) +
                         kBytes * (batch * p.q.batch_stride + (token - batch * p.tokens) * p.q.row_stride +
                                   head_of(e, row) * p.q.head_stride + 4 / kBytes * (lane % 4));
#pragma unroll
      for (int i = 0; i < kQSteps; ++i) {
        const int column = 32 / kBytes * i + 4 / kBytes * (lane % 4);
        const bool first = !kFeatures || column < p.head_dim;
        const bool second = !kFeatures || column + 16 / kBytes < p.head_dim;
        q[i][0] = first ? __ldg(reinterpret_cast<const uint32_t*>(from + 32 * i)) : 0;
        q[i][1] = second ? __ldg(reinterpret_cast<const uint32_t*>(from + 32 * i + 16)) : 0;
        if constexpr (kBytes == 4) {
          q[i][0] = round_tf32(__uint_as_float(q[i][0]));
          q[i][1] = round_tf32(__uint_as_float(q[i][1]));
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kQSteps; ++i) q[i][0] = q[i][1] = 0;
    }
  }

  // No row of the unit sees a key before it. By a whole warp.
  __device__ __forceinline__ int32_t least_key(const UnitEntry& e) const {
    if constexpr (!kListed) {  // by itself: in one with what follows it takes registers that spill
      int32_t least = p.features.leftpad != nullptr ? __ldg(p.features.leftpad + e.sequence) : 0;
      if (p.features.window_left >= 0) least = max(least, e.end_key - p.tokens - p.features.window_left);
      return least;
    }
    const auto least_of = [&](int sequence, int keys) {
      int32_t least = p.features.leftpad != nullptr ? __ldg(p.features.leftpad + sequence) : 0;
      if (p.features.window_left >= 0) least = max(least, keys - p.tokens - p.features.window_left);
      return least;
    };
    const int first = p.by_group.quotient(e.first_row), last = p.by_group.quotient(e.first_row + e.rows - 1);
    int32_t least = INT32_MAX;
    for (int i = first + lane; i <= last; i += 32) {
      const int batch = p.by_tokens.quotient(__ldg(p.token_list + e.first_token + i));
      least = min(least, least_of(batch, extent_of<false>(p, batch).keys));
    }
    return __reduce_min_sync(~0u, least);
  }
  // By a whole warp.
  __device__ __forceinline__ RowView view_of(const UnitEntry& e, int row_group) const {
    RowView view;
    if constexpr (!kListed) view.least = least_key(e);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int row = min(row_group * 8 + 2 * (lane % 4) + c, e.rows - 1);
      const int token = token_of(e, row);
      const int batch = p.by_tokens.quotient(token);
      // Listed pieces end where they are cut, and their rows are of several sequences.
      const int keys = kListed ? extent_of<false>(p, batch).keys : e.end_key;
      const int position = keys - p.tokens + (token - batch * p.tokens);
      int first = p.features.leftpad != nullptr ? __ldg(p.features.leftpad + batch) : 0;
      int end = e.end_key;
      if (p.features.causal != 0) end = min(end, position + 1);
      if (p.features.window_right >= 0) end = min(end, position + p.features.window_right + 1);
      if (p.features.window_left >= 0) first = max(first, position - p.features.window_left);
      view.first[c] = first;
      view.end[c] = end;
      view.position[c] = position;
      view.slope[c] =
          p.features.alibi_slopes == nullptr
              ? 0.0f
              : __ldg(p.features.alibi_slopes + batch * p.features.alibi_batch_stride + head_of(e, row)) *
                    1.44269504088896341f;
    }
    // Of listed pieces the warp's rows are enough, and at hand.
    if constexpr (kListed) view.least = __reduce_min_sync(~0u, min(view.first[0], view.first[1]));
    return view;
  }

  // l of the 8 residues of the keys, added up.
  static __device__ __forceinline__ void add_residues(float (&l)[2]) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      l[c] = __fadd_rn(l[c], __shfl_xor_sync(~0u, l[c], 4));
      l[c] = __fadd_rn(l[c], __shfl_xor_sync(~0u, l[c], 8));
      l[c] = __fadd_rn(l[c], __shfl_xor_sync(~0u, l[c], 16));
    }
  }

  // The state of warp `warp`, its first `rows` rows, to shared memory; l as add_residues() left it.
  template <typename Shared>
  __device__ __forceinline__ void hand_in(Shared& shared, int warp, int rows, const float (&m)[2],
                                          const float (&l)[2], const float (&o)[kSteps][4]) const {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int row = 2 * (lane % 4) + c;
      if (row < rows) {
        float* to = shared.merge[warp][row];
        if (lane < 4) shared.merge_ml[warp][row] = make_float2(m[c], l[c]);
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          to[16 * i + lane / 4] = o[i][c];
          to[16 * i + 8 + lane / 4] = o[i][c + 2];
        }
      }
    }
  }

  // What fold_rows() has to know of a wave of `count` units: bit u says that unit u begins a run, being
  // folded with nothing before it; above them the most rows of a unit. By a whole warp.
  __device__ __forceinline__ unsigned runs_of(const UnitEntry* units, int count) const {
    const int flags = lane < count ? units[lane].flags : 0;
    const int rows = __reduce_max_sync(~0u, lane < count ? units[lane].rows : 0);
    return __ballot_sync(~0u, begins_anew(flags)) | static_cast<unsigned>(rows) << kRunBits;
  }

  // All rows of a wave of `count` units in 2^log_groups row groups, by `warps` warps: each row of each run is
  // one warp's. Where the first run goes on from the wave before, the last one's rows are the same warps': it
  // may leave what the first has to read before.
  template <typename Shared>
  __device__ __forceinline__ void fold_rows(Shared& shared, const UnitEntry* units, int count,
                                            unsigned of_runs, int log_groups, int warp, int warps) const {
    const unsigned beginnings = of_runs & ((1u << kRunBits) - 1);
    const int rows = static_cast<int>(of_runs >> kRunBits);
    unsigned runs = beginnings | 1u;
    int row = warp;
    while (runs != 0) {
      const int first = __ffs(static_cast<int>(runs)) - 1;
      runs &= runs - 1;
      const int end = runs != 0 ? __ffs(static_cast<int>(runs)) - 1 : count;
      if (runs == 0 && (beginnings & 1) == 0) row = warp;
      for (; row < rows; row += warps) fold_row(shared, units, first, end, runs == 0, log_groups, row);
      row -= rows;
    }
  }

  // Row r of units [first, end) of a wave, its last or not, into its running states, in order, and what then
  // is complete to where it goes. The state of unit u lies where warp (u << log_groups) + r / 8 handed it in.
  template <typename Shared>
  __device__ __forceinline__ void fold_row(Shared& shared, const UnitEntry* units, int first, int end,
                                           bool last, int log_groups, int r) const {
    using State = RowState<kLaneValues<kDim>>;
    State segment, row, next;
    bool goes_on = false;
    // A state ahead: each would else wait for shared memory.
    handed_in(shared, (first << log_groups) + r / 8, r % 8, next);
    int flags = units[first].flags, next_rows = units[first].rows;
    if (begins_anew(flags)) {
      segment.clear();
      row.clear();
    } else {
      load_running(shared, r, 0, segment);
      load_running(shared, r, 1, row);
    }
    for (int u = first; u < end; ++u) {
      const UnitEntry& e = units[u];
      const State unit = next;
      const int its_flags = flags, rows = next_rows;
      if (u + 1 < end) {
        handed_in(shared, ((u + 1) << log_groups) + r / 8, r % 8, next);
        flags = units[u + 1].flags;
        next_rows = units[u + 1].rows;
      }
      if (r >= rows) continue;
      goes_on = true;
      if ((its_flags & kUnitStartsSegment) != 0) {
        segment = unit;
      } else {
        segment.fold(unit);
      }
      if ((its_flags & kUnitEndsSegment) == 0) continue;
      if ((its_flags & kUnitApart) != 0) {
        hand_over(e, r, segment);
        goes_on = false;
        continue;
      }
      if ((its_flags & kUnitStartsRow) != 0) {
        row = segment;
      } else {
        row.fold(segment);
      }
      if ((its_flags & kUnitEndsRow) != 0) {
        write(e, r, row);
        goes_on = false;
      }
    }
    if (last && goes_on) {
      store_running(shared, r, 0, segment);
      store_running(shared, r, 1, row);
    }
  }

  template <typename Shared, typename State>
  __device__ __forceinline__ void handed_in(const Shared& shared, int warp, int row, State& state) const {
    const float2 ml = shared.merge_ml[warp][row];
    state.m = ml.x;
    state.l = ml.y;
    load_values(state.o, &shared.merge[warp][row][lane * kLaneValues<kDim>]);
  }
  template <typename Shared, typename State>
  __device__ __forceinline__ void load_running(const Shared& shared, int r, int level, State& state) const {
    const float2 ml = shared.running_ml[r][level];
    state.m = ml.x;
    state.l = ml.y;
    load_values(state.o, &shared.running[r][level][lane * kLaneValues<kDim>]);
  }
  template <typename Shared, typename State>
  __device__ __forceinline__ void store_running(Shared& shared, int r, int level, const State& state) const {
    __syncwarp();
    if (lane == 0) shared.running_ml[r][level] = make_float2(state.m, state.l);
    store_values(&shared.running[r][level][lane * kLaneValues<kDim>], state.o);
    __syncwarp();
  }

  // A segment among the partials.
  template <typename State>
  __device__ __forceinline__ void hand_over(const UnitEntry& e, int r, const State& segment) const {
    const int64_t at = e.partial + r;
    store_values(p.partial_o + at * kDim + lane * kLaneValues<kDim>, segment.o);
    if (lane == 0) p.partial_ml[at] = make_float2(segment.m, segment.l);
  }
  template <typename State>
  __device__ __forceinline__ void write(const UnitEntry& e, int r, const State& row) const {
    const int token = token_of(e, r), head = head_of(e, r);
    const int batch = p.by_tokens.quotient(token), t = token - batch * p.tokens;
    char* to = static_cast<char*>(p.o.data) + kBytes * (batch * p.o.batch_stride + t * p.o.row_stride +
                                                        head * p.o.head_stride + lane * kLaneValues<kDim>);
    if (!kFeatures || lane * kLaneValues<kDim> < p.v_head_dim) {
      store_rounded<T>(to, row.o, row.inverse());
    }
    if (p.lse != nullptr && lane == 0) {
      p.lse[(int64_t{batch} * p.kv_heads * p.group + head) * p.tokens + t] = row.lse();
    }
  }
};

}  // namespace tessera::attention::cuda::steps
