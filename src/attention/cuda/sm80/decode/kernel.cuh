// The persistent kernel of decode and of tree attention for every device: mma.sync and cp.async. One block an
// SM: warps that bring their own tiles and walk them, and a warp that plans.
//
// The planner turns pieces into waves of units, two waves ahead. Pieces of up to 8 rows are walked apart:
// each warp takes a unit, then the wave's states are folded in order through shared memory, each row of each
// piece by a warp. Pieces of more rows are walked together: every warp holds 8 of the rows, all copy
// and read the same stages, and each folds its rows in registers.
//
// A stage holds a slice: 16 keys of K or of V, in the order in which a tile uses them: four of K, four of V.
// Copies run up to a ring of stages ahead, across units and waves.
//
// Invariants:
//  1. work.h's arithmetic, of steps/tile.cuh and rows.cuh: the bits are those of sm90/decode.
//  2. Slice i of a ring is one cp.async group and lies in stage i % stages. A stage is written again only
//     behind a barrier of the ring's warps that follows its last read.
//  3. Keys that no row sees (from end_key on, before leftpad or every window) and columns from head_dim
//  (v_head_dim) on
//     are 0 in shared memory and are not read from the cache.
//  4. Wave w is planned in slot w % 4 while the walkers are in wave w - 2, fold w - 3 and are through with
//     w - 4.
//  5. `merge` is written between the two barriers of a wave that is walked apart and read until the first
//     barrier of the next; a wave that is walked together uses a warp's own part of it, behind a barrier
//     where modes change.
//
// Bytes: K and V of each piece once; q once a unit (from L2); o once.
#pragma once

#include "attention/cuda/common/ptx.cuh"
#include "attention/cuda/sm80/decode/config.h"
#include "attention/cuda/steps/rows.cuh"
#include "attention/cuda/steps/schedule.cuh"
#include "attention/cuda/steps/tile.cuh"

namespace tessera::attention::cuda::sm80 {

// ---- Planner ----------------------------------------------------------------------------------------------

// Of the whole block. Planner and walkers come to it at different places, which __syncthreads() does not
// allow.
__device__ __forceinline__ void sync_block() {
#ifdef __CUDA_ARCH__
  asm volatile("barrier.sync 0;" ::: "memory");
#else
  __syncthreads();
#endif
}

template <typename T, int kDim, bool kListed, bool kFeatures, typename Pieces>
struct Planner {
  using Config = StepConfig<kDim, sizeof(T)>;
  const DecodeParams& p;
  StepShared<kDim, sizeof(T)>& shared;
  const int lane;
  Pieces pieces;
  Piece piece{};
  int32_t unit = 0, end = 0;  // of the piece

  __device__ __forceinline__ void plan(uint32_t wave) {
    UnitEntry mine{};
    int units = 0, mode = kWaveApart;
    for (;;) {
      if (unit >= end) {
        if (!pieces.next()) break;
        piece = pieces.current();
        unit = piece.first_unit;
        end = piece.end_unit;
      }
      const int its_mode = Config::kRowGroups > 1 && piece.rows > 8 ? kWaveTogether : kWaveApart;
      if (units == 0) mode = its_mode;
      const int taken = min(Config::kWarps - units, end - unit);
      if (its_mode != mode || taken == 0) break;
      if (lane >= units && lane < units + taken) mine = unit_entry(piece, unit + lane - units, 1);
      unit += taken;
      units += taken;
    }
    StepWave<Config::kWarps>& out = shared.wave[wave % kWaveSlots];
    if (lane < Config::kWarps) out.unit[lane] = mine;
    if (lane == 0) {
      out.units = units;
      out.mode = mode;
    }
    __syncwarp();
    if (p.block_table != nullptr) touch_table(mine, units);
    for (int u = 0; u < units; ++u) touch_q(out.unit[u]);
  }

  // The walkers find what they look up, and their rows of q, in the first-level cache.
  __device__ __forceinline__ void touch_q(const UnitEntry& e) const {
    constexpr int kLine = 128 / static_cast<int>(sizeof(T));  // elements
    constexpr int kLines = kDim / kLine;
    const UnitRows<T, kDim, kListed, kFeatures> rows{p, lane};
    for (int i = lane; i < e.rows * kLines; i += 32) {
      const int row = i / kLines, column = i % kLines * kLine;
      if (column >= p.head_dim) continue;
      const int token = rows.token_of(e, row);
      const int batch = p.by_tokens.quotient(token);
      const char* at = static_cast<const char*>(p.q.data) +
                       static_cast<int>(sizeof(T)) *
                           (batch * p.q.batch_stride + (token - batch * p.tokens) * p.q.row_stride +
                            rows.head_of(e, row) * p.q.head_stride + column);
      near(reinterpret_cast<const int32_t*>(at));
    }
  }
  __device__ __forceinline__ void touch_table(const UnitEntry& mine, int units) const {
    constexpr int kSector = 8;  // entries
    for (int u = 0; u < units; ++u) {
      const int first_key = __shfl_sync(~0u, mine.first_key, u);
      const int end_key = min(first_key + kUnit, __shfl_sync(~0u, mine.end_key, u));
      const int64_t row = __shfl_sync(~0u, mine.sequence, u) * p.table_stride;
      if (first_key >= end_key) continue;
      const int last = p.by_page.quotient(end_key - 1);
      for (int at = p.by_page.quotient(first_key) + lane * kSector; at <= last; at += 32 * kSector)
        near(p.block_table + row + at);
    }
  }
};

// ---- Ring -------------------------------------------------------------------------------------------------

// A warp's view of its ring: what is copied next, and how far reading has come. All warps of a ring that is
// walked together hold the same.
template <typename T, int kDim, bool kListed, bool kFeatures>
struct SliceRing {
  using Config = StepConfig<kDim, sizeof(T)>;
  using Rows = UnitRows<T, kDim, kListed, kFeatures>;
  static constexpr int kBytes = static_cast<int>(sizeof(T));
  static constexpr int kChunks = kDim * kBytes / 16;  // of 16 bytes in a row
  static constexpr int kOfChunk = 16 / kBytes;        // elements
  static constexpr int kSlicesOfTile = 8;
  const DecodeParams& p;
  StepShared<kDim, sizeof(T)>& shared;
  const int lane, warp;
  int mode = -1;
  uint32_t issued = 0, consumed = 0;  // slices since the mode began
  // The next slice to copy.
  uint32_t wave = 0;
  int unit = 0, tile = 0, slice = 0;
  // Of its unit.
  int tiles = 0;
  int32_t first_key = 0, end_key = 0, least = 0, kv_head = 0, sequence = 0;
  // Of its tile: where slice lane % 4 begins, and which slices are 16 rows one behind the other.
  int32_t block = 0, slot = 0;
  uint32_t whole = 0;

  __device__ __forceinline__ bool together() const { return Config::kRowGroups > 1 && mode == kWaveTogether; }
  __device__ __forceinline__ uint32_t stages() const {
    return together() ? Config::kWarps * Config::kSlices : Config::kSlices;
  }
  __device__ __forceinline__ uint32_t address(uint32_t index) const {
    const uint32_t first = together() ? 0 : static_cast<uint32_t>(warp) * Config::kSlices;
    return shared_address(shared.stage[first + (index & (stages() - 1))]);  // a power of two
  }
  __device__ __forceinline__ void sync() const {
    if (together()) {
      named_barrier_sync(1, 32 * Config::kWarps);
    } else {
      __syncwarp();
    }
  }

  // The walker arrives at wave w; the waves up to w + 1 are planned.
  __device__ __forceinline__ void enter(uint32_t w) {
    const int its_mode = shared.wave[w % kWaveSlots].mode;
    if (its_mode != mode) {
      // Nothing is in flight, since copies do not run ahead into another mode. Other warps may still read
      // their stages or this warp's part of `merge`.
      named_barrier_sync(2, 32 * Config::kWarps);
      mode = its_mode;
      issued = consumed = 0;
      wave = w;
      unit = together() ? 0 : warp;
      load_unit();
    }
    fill(consumed + stages() - 1, w + 1);
  }

  // The next slice in the order of use: waits until it has arrived, and copies ahead.
  __device__ __forceinline__ uint32_t take(uint32_t w) {
    const uint32_t behind = issued - consumed - 1;  // slices in flight behind this one
    if (behind + 2 < stages()) {
      cp_async_wait<0>();
    } else if (together()) {
      cp_async_wait<Config::kWarps * Config::kSlices - 2>();
    } else {
      cp_async_wait<Config::kSlices - 2>();
    }
    sync();  // it is there for all, and nobody reads the one before any more
    fill(consumed + stages(), w + 1);
    return address(consumed++);
  }

 private:
  // The unit that (wave, unit) says, or none.
  __device__ __forceinline__ void load_unit() {
    const StepWave<Config::kWarps>& of = shared.wave[wave % kWaveSlots];
    tile = slice = tiles = 0;
    if (unit >= of.units) return;
    const UnitEntry& e = of.unit[unit];
    tiles = e.tiles;
    first_key = e.first_key;
    end_key = e.end_key;
    kv_head = e.kv_head;
    sequence = e.sequence;
    if constexpr (kFeatures) least = Rows{p, lane}.least_key(e);
  }

  // Copies until slice `limit` is next or the waves up to `last` have no more.
  __device__ __forceinline__ void fill(uint32_t limit, uint32_t last) {
#pragma unroll 1
    while (static_cast<int32_t>(limit - issued) > 0) {
      if (tile >= tiles) {  // on to the next unit
        const StepWave<Config::kWarps>& of = shared.wave[wave % kWaveSlots];
        if (of.units == 0) return;
        if (together() && unit + 1 < of.units) {
          ++unit;
        } else {
          if (wave == last || shared.wave[(wave + 1) % kWaveSlots].mode != mode) return;
          ++wave;
          unit = together() ? 0 : warp;
        }
        load_unit();
        continue;
      }
      if (slice == 0) look_up_tile();
      const uint32_t to = address(issued);
      if ((whole >> (slice & 3) & 1) == 0) {
        copy_rows(to);
      } else if (together()) {
        copy_whole<32 * Config::kWarps>(to, warp * 32 + lane);
      } else {
        copy_whole<32>(to, lane);
      }
      cp_async_commit();
      ++issued;
      if (++slice == kSlicesOfTile) {
        slice = 0;
        ++tile;
      }
    }
  }

  // The place of a key: a block, and a slot of it. False where there is none.
  __device__ __forceinline__ bool look_up(int key, int32_t& of_block, int32_t& of_slot) const {
    if (key >= end_key || (kFeatures && key < least)) return false;
    of_block = sequence;
    of_slot = key;
    if (p.block_table != nullptr) {
      const int32_t entry = p.by_page.quotient(key);
      of_block = __ldg(p.block_table + sequence * p.table_stride + entry);
      of_slot = key - entry * p.page;
    } else if (p.block_of != nullptr) {
      of_block = __ldg(p.block_of + sequence);
    }
    return static_cast<uint32_t>(of_block) < static_cast<uint32_t>(p.num_blocks);
  }
  __device__ __forceinline__ void look_up_tile() {
    const int key = first_key + tile * kTile + (lane & 3) * 16;
    const bool there = look_up(key, block, slot);
    whole = __ballot_sync(~0u, there && key + 16 <= end_key && slot + 16 <= p.page);
  }

  __device__ __forceinline__ const TokenRows<const void>& rows_of_slice() const {
    return slice < 4 ? p.k : p.v;
  }
  __device__ __forceinline__ int columns_of_slice() const {
    return slice < 4 ? p.head_dim : p.v_head_dim;
  }
  // Lane or thread `thread` of kThreads copies every kThreads-th of a slice's 16-byte chunks: a column of
  // chunks, of rows that are kStep apart, or several columns of all rows.
  template <int kThreads>
  __device__ __forceinline__ void copy_whole(uint32_t to, int thread) const {
    constexpr int kColumns = kChunks > kThreads ? kChunks / kThreads : 1;
    constexpr int kStep = kColumns > 1 ? 1 : kThreads / kChunks;
    static_assert((kThreads % kChunks == 0 || kChunks % kThreads == 0) && 16 % kStep == 0);
    const TokenRows<const void>& rows = rows_of_slice();
    [[maybe_unused]] const int columns = columns_of_slice();
    const int chunk = thread % kChunks, row = thread / kChunks;
    const int64_t of_block = __shfl_sync(~0u, block, slice & 3);
    const int64_t first_row = __shfl_sync(~0u, slot, slice & 3) + row;
    const char* from =
        static_cast<const char*>(rows.data) + 16 * chunk +
        kBytes * (of_block * rows.batch_stride + kv_head * rows.head_stride + first_row * rows.row_stride);
    const int64_t stride = kBytes * kStep * rows.row_stride;
    to += static_cast<uint32_t>((chunk >> 3) * 2048 + row * 128);
    const uint32_t group = static_cast<uint32_t>(((chunk ^ row) & 7) << 4);
#pragma unroll
    for (int i = 0; i < 16; i += kStep, from += stride) {
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        const bool has_column = !kFeatures || (chunk + column * kThreads) * kOfChunk < columns;
        cp_async_16(to + column * (kThreads / 8 * 2048) + i * 128 + (group ^ ((i & 7) << 4)),
                    from + column * (kThreads * 16), has_column);
      }
    }
  }
  // Rows wherever they are, and zeros for those that are not there.
  __device__ __forceinline__ void copy_rows(uint32_t to) const {
    const TokenRows<const void>& rows = rows_of_slice();
    [[maybe_unused]] const int columns = columns_of_slice();
    int32_t of_block = 0, of_slot = 0;
    const bool there = look_up(first_key + tile * kTile + (slice & 3) * 16 + (lane & 15), of_block, of_slot);
    const int64_t offset = there ? of_block * rows.batch_stride + of_slot * rows.row_stride : 0;
    const uint32_t all_there = __ballot_sync(~0u, there);
    const int threads = together() ? 32 * Config::kWarps : 32;
    const int thread = together() ? warp * 32 + lane : lane;
    // A row has no more chunks than a warp lanes, or a warp takes them in columns.
    constexpr int kColumn = kChunks < 32 ? kChunks : 32;
    const int first_chunk = thread % kColumn;
    const char* from =
        static_cast<const char*>(rows.data) + kBytes * (kv_head * rows.head_stride) + 16 * first_chunk;
#pragma unroll
    for (int column = 0; column < kChunks; column += kColumn, from += 16 * kColumn) {
      const int chunk = first_chunk + column;
      const bool has_column = !kFeatures || chunk * kOfChunk < columns;
#pragma unroll 1
      for (int row = thread / kColumn; row < 16; row += threads / kColumn) {
        const int64_t at = __shfl_sync(~0u, offset, row);
        cp_async_16(to + (chunk >> 3) * 2048 + row * 128 + (((chunk & 7) ^ (row & 7)) << 4),
                    from + kBytes * at, has_column && (all_there >> row & 1) != 0);
      }
    }
  }
};

// ---- Walker -----------------------------------------------------------------------------------------------

// States of a warp's 8 rows in the accumulators' layout.
template <int kSteps>
struct RowStates {
  float m[2], l[2], o[kSteps][4];

  __device__ __forceinline__ void clear() {
    m[0] = m[1] = minus_infinity();
    l[0] = l[1] = 0.0f;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.0f;
  }
  // RowState::fold of each row.
  __device__ __forceinline__ void fold(const RowStates& next) {
    bool stays[2], is_next[2];
    FoldFactors f[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      stays[c] = next.m[c] == minus_infinity();
      is_next[c] = m[c] == minus_infinity();
      f[c] = fold_factors(m[c], next.m[c]);
      const float l_of_both = __fmaf_rn(next.l[c], f[c].take, __fmul_rn(l[c], f[c].keep));
      l[c] = stays[c] ? l[c] : is_next[c] ? next.l[c] : l_of_both;
      m[c] = f[c].m;
    }
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int c = j % 2;
        const float of_both = __fmaf_rn(next.o[i][j], f[c].take, __fmul_rn(o[i][j], f[c].keep));
        o[i][j] = stays[c] ? o[i][j] : is_next[c] ? next.o[i][j] : of_both;
      }
    }
  }
};

template <typename T, int kDim, bool kListed, bool kFeatures>
struct Walker {
  using Config = StepConfig<kDim, sizeof(T)>;
  static constexpr int kSteps = kDim / 16;
  using Math = TileMath<T, kDim, kFeatures, 2048, kDim * sizeof(T) / 128 * 2048>;
  using Rows = UnitRows<T, kDim, kListed, kFeatures>;
  using States = RowStates<kSteps>;
  const DecodeParams& p;
  StepShared<kDim, sizeof(T)>& shared;
  const int lane, warp;

  __device__ __forceinline__ void run() {
    const Rows rows{p, lane};
    const TileOffsets offsets(lane);
    SliceRing<T, kDim, kListed, kFeatures> ring{p, shared, lane, warp};
    States segment, row;  // of rows that are walked together
    segment.clear();
    row.clear();
    for (uint32_t w = 0;; ++w) {
      const StepWave<Config::kWarps>& wave = shared.wave[w % kWaveSlots];
      if (wave.units == 0) break;
      ring.enter(w);
      if (ring.together()) {
        if constexpr (Config::kRowGroups > 1) {
          for (int u = 0; u < wave.units; ++u) {
            States unit;
            walk(rows, offsets, ring, w, wave.unit[u], warp, unit);
            fold_together(rows, wave.unit[u], unit, segment, row);
          }
        }
        sync_block();
        sync_block();
        continue;
      }
      States unit;
      unit.clear();
      const unsigned runs = rows.runs_of(wave.unit, wave.units);
      int count = 0;
      if (warp < wave.units) {
        walk(rows, offsets, ring, w, wave.unit[warp], 0, unit);
        count = wave.unit[warp].rows;
      }
      sync_block();
      rows.hand_in(shared, warp, count, unit.m, unit.l, unit.o);
      sync_block();
      rows.fold_rows(shared, wave.unit, wave.units, runs, 0, warp, Config::kWarps);
    }
  }

  // The state of rows [8 row_group, 8 row_group + 8) of a unit; a row group that is not there only keeps the
  // ring going.
  __device__ __forceinline__ void walk(const Rows& rows, const TileOffsets& offsets,
                                       SliceRing<T, kDim, kListed, kFeatures>& ring, uint32_t w,
                                       const UnitEntry& e, int row_group, States& unit) const {
    const Math math{p, lane};
    const bool works = row_group * 8 < e.rows;
    const int tiles = e.tiles, end_key = e.end_key;
    int key = e.first_key;
    unit.clear();
    uint32_t q[Math::kQSteps][2];
    rows.load_q(e, row_group, q);
    RowView view{};
    if constexpr (kFeatures) view = rows.view_of(e, row_group);
#pragma unroll 1
    for (int t = 0; t < tiles; ++t, key += kTile) {
      // The slices are walked in loops with the arrays turning: one copy of take() each is enough.
      float s[4][4] = {};
#pragma unroll 1
      for (int block = 0; block < 4; ++block) {
        const uint32_t stage = ring.take(w);
        float now[4][4] = {};
        if (works) math.template multiply_keys<0, 1>(now, q, stage, offsets);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) s[i][j] = i < 3 ? s[i + 1][j] : now[0][j];
        }
      }
      uint32_t probability[4][Math::kProbabilities] = {};
      if (works) math.softmax(s, probability, unit.m, unit.l, unit.o, key, end_key, view);
#pragma unroll 1
      for (int step = 0; step < 4; ++step) {
        const uint32_t stage = ring.take(w);
        if (works) math.template multiply_slice<false>(unit.o, probability[0], stage, offsets, 0, 0, view);
#pragma unroll
        for (int i = 0; i < 3; ++i) {
#pragma unroll
          for (int j = 0; j < Math::kProbabilities; ++j) probability[i][j] = probability[i + 1][j];
        }
      }
    }
    Rows::add_residues(unit.l);
  }

  // fold_row() of the warp's row group, in registers.
  __device__ __forceinline__ void fold_together(const Rows& rows, const UnitEntry& e, const States& unit,
                                                States& segment, States& row) const {
    const int count = min(8, e.rows - 8 * warp);
    if (count <= 0) return;
    if ((e.flags & kUnitStartsSegment) != 0) {
      segment = unit;
    } else {
      segment.fold(unit);
    }
    if ((e.flags & kUnitEndsSegment) == 0) return;
    const bool apart = (e.flags & kUnitApart) != 0;
    if (!apart) {
      if ((e.flags & kUnitStartsRow) != 0) {
        row = segment;
      } else {
        row.fold(segment);
      }
      if ((e.flags & kUnitEndsRow) == 0) return;
    }
    // By way of the warp's part of `merge`, where a lane takes columns side by side.
    if (apart) {
      rows.hand_in(shared, warp, count, segment.m, segment.l, segment.o);
    } else {
      rows.hand_in(shared, warp, count, row.m, row.l, row.o);
    }
    __syncwarp();
    for (int r = 0; r < count; ++r) {
      RowState<kLaneValues<kDim>> state;
      rows.handed_in(shared, warp, r, state);
      if (apart) {
        rows.hand_over(e, 8 * warp + r, state);
      } else {
        rows.write(e, 8 * warp + r, state);
      }
    }
    __syncwarp();
  }
};

template <typename T, int kDim, bool kListed, bool kFeatures>
__global__ void __launch_bounds__(StepConfig<kDim, sizeof(T)>::kThreads, 1)
    step_kernel(const __grid_constant__ DecodeParams p) {
  using Config = StepConfig<kDim, sizeof(T)>;
  extern __shared__ __align__(1024) unsigned char memory[];
  StepShared<kDim, sizeof(T)>& shared = *reinterpret_cast<StepShared<kDim, sizeof(T)>*>(memory);
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  wait_for_kernels_before();
  let_next_kernel_start();
  if (warp == Config::kWarps) {
    const auto plan_all = [&](auto pieces) {
      pieces.open();
      pieces.bring_table_near();
      pieces.begin(0);
      Planner<T, kDim, kListed, kFeatures, decltype(pieces)> planner{p, shared, lane, pieces};
      planner.plan(0);
      planner.plan(1);
      sync_block();
      for (uint32_t w = 0;; ++w) {
        if (shared.wave[w % kWaveSlots].units == 0) break;
        planner.plan(w + 2);
        sync_block();
        sync_block();
      }
    };
    if constexpr (kListed) {
      plan_all(ListedPieces<kFeatures>(p, shared.listed, static_cast<int>(blockIdx.x)));
    } else {
      plan_all(LengthPieces<kFeatures>(p, nullptr, static_cast<int>(blockIdx.x)));
    }
  } else {
    sync_block();
    Walker<T, kDim, kListed, kFeatures>{p, shared, lane, warp}.run();
  }
}

}  // namespace tessera::attention::cuda::sm80
