// The persistent kernel of decode and of tree attention: one producer warp, eight consumer warps, one block
// an SM.
//
// The producer turns pieces into waves of up to eight tasks (unit, row group), describes each wave to the
// consumers in shared memory, and brings its tiles through the ring: first tile of every unit, then every
// second one, ... so that all warps have work at once. A consumer warp walks its unit alone: m16n8k16 with
// keys (then dims) as m and rows as n, so that 1 to 8 rows cost the same; then the wave's states are folded
// in order through shared memory, warp w taking rows w, w + 8, ...
//
// Invariants:
//  1. work.h's arithmetic.
//  2. A stage's tile is used by the row groups of its unit; the empty barrier counts eight arrivals, of which
//     each of g groups makes 8 / g.
//  3. Rows of V at and behind end_key are zeroed in shared memory before they are read: p there is 0, but
//     memory may hold NaN. Scores there are replaced, not added to.
//  4. `merge` belongs to the consumers between merge_free and merge_full; `running` row r to warp r % 8.
//
// Bytes: K and V of each piece once; q once a unit (from L2); o once. Per tile of 64 keys and 128 dims a warp
// issues 64 mma and 64 ldmatrix.x4, about half of the time that the tile takes to arrive.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/cuda/common/ptx.cuh"
#include "attention/cuda/sm90/decode/entry.cuh"
#include "attention/cuda/sm90/decode/wide.cuh"
#include "attention/cuda/steps/schedule.cuh"
#include "attention/cuda/steps/state.cuh"

namespace tessera::attention::cuda::sm90 {

template <typename T>
__device__ __forceinline__ void mma_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void mma_16816<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                         uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma_16816<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                  uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ uint32_t movmatrix(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}
// ---- Producer
// -----------------------------------------------------------------------------------------------

// kAnyDim: the maps are row_map()'s, a box a panel.
template <int kDim, int kGroups, bool kWide, bool kAnyDim>
struct Producer {
  using Shared = DecodeShared<kDim, kGroups>;
  const DecodeParams& p;
  Shared& shared;
  const int lane;
  uint32_t tile = 0;  // tiles issued so far
  uint64_t private_policy;

  template <typename Pieces>
  __device__ __forceinline__ void run(Pieces pieces) {
    Piece piece;
    int32_t unit = 0, end = 0;  // of the piece
    for (uint32_t wave = 0;; ++wave) {
      UnitEntry mine{};
      int32_t my_flags = 0;  // the piece's
      int units = 0, mode = 0;
      for (;;) {
        if (unit >= end) {
          if (!pieces.next(piece)) break;
          unit = piece.first_unit;
          end = piece.end_unit;
        }
        const int its_mode = mode_of(piece);
        if (units == 0) mode = its_mode;
        const int room = most_units(mode) - units;
        if (its_mode != mode || room == 0) break;
        if (is_wide(mode)) {
          const int count = units_of_task(piece, unit);
          if (lane == units) {
            mine = entry(piece, unit, count);
            my_flags = piece.flags;
          }
          unit += count;
          ++units;
          continue;
        }
        // A lane a unit: what takes long here is not loaded meanwhile.
        const int taken = min(room, end - unit);
        if (lane >= units && lane < units + taken) {
          mine = entry(piece, unit + lane - units, 1);
          my_flags = piece.flags;
        }
        unit += taken;
        units += taken;
      }
      const uint32_t slot = wave % kWaveSlots;
      mbarrier_wait(shared_address(&shared.wave_empty[slot]), ((wave / kWaveSlots) & 1) ^ 1);
      Wave& out = shared.wave[slot];
      if (lane < kConsumers) out.unit[lane] = mine;
      if (lane == 0) {
        out.units = units;
        out.mode = mode;
      }
      const int most_tiles = is_wide(mode) ? kUnitTiles * kSegmentUnits : kUnitTiles;
      load_pages(mine, units, most_tiles);
      __syncwarp();
      if (lane == 0) mbarrier_arrive(shared_address(&shared.wave_full[slot]));
      if (units == 0) break;
      if (lane >= __reduce_add_sync(~0u, mine.tiles)) {
        mbarrier_arrive(shared_address(&shared.k_full[slot][lane]));
        mbarrier_arrive(shared_address(&shared.v_full[slot][lane]));
      }
      int place = 0;
      for (int t = 0; t < most_tiles; ++t) {
        unsigned waiting = __ballot_sync(~0u, lane < units && mine.tiles > t);
        while (waiting != 0) {
          const int u = __ffs(static_cast<int>(waiting)) - 1;
          waiting &= waiting - 1;
          const int key = __shfl_sync(~0u, mine.first_key, u) + t * kTile;
          const int end_key = __shfl_sync(~0u, mine.end_key, u);
          issue(slot, place++, u * most_tiles + t, key, end_key, __shfl_sync(~0u, mine.kv_head, u),
                (__shfl_sync(~0u, my_flags, u) & kPieceShared) != 0);
        }
      }
      __syncwarp();
    }
  }

  static __device__ __forceinline__ bool is_wide(int mode) { return kWide && mode >= kWaveWide; }
  // Above 8 rows each warp would read the whole tile from shared memory for its 8: four of them take 1.5
  // times as long as the tile takes to arrive. But warpgroups do not mask, so private rows stay with the
  // warps.
  static __device__ __forceinline__ int mode_of(const Piece& piece) {
    if (kWide && piece.rows > 8 && (piece.flags & kPieceShared) != 0) {
      return piece.rows > kWideRows ? kWaveWideBoth : kWaveWide;
    }
    return piece.rows <= 8 ? 0 : piece.rows <= 16 ? 1 : 2;
  }
  static __device__ __forceinline__ int most_units(int mode) {
    return !is_wide(mode) ? kConsumers >> mode : mode == kWaveWide ? 2 : 1;
  }
  // Behind a cut inside a segment the rest of that segment goes over unit by unit.
  static __device__ __forceinline__ int32_t apart_end(const Piece& piece) {
    return (piece.flags & kPieceCutBefore) != 0
               ? (piece.first_unit + kSegmentUnits - 1) / kSegmentUnits * kSegmentUnits
               : piece.first_unit;
  }
  static __device__ __forceinline__ int32_t units_of_task(const Piece& piece, int32_t unit) {
    if (unit < apart_end(piece)) return 1;
    return min(piece.end_unit, (unit / kSegmentUnits + 1) * kSegmentUnits) - unit;
  }

  // Of `count` units.
  __device__ __forceinline__ UnitEntry entry(const Piece& piece, int32_t unit, int count) const {
    UnitEntry e{};
    e.first_key = unit * kUnit;
    e.end_key = piece.end_key;
    e.tiles = max(0, min(count * kUnitTiles, (piece.end_key - e.first_key + kTile - 1) / kTile));
    e.rows = piece.rows;
    e.first_token = piece.first_token;
    e.first_row = piece.first_row;
    e.kv_head = piece.kv_head;
    e.sequence = piece.sequence;
    const bool apart = unit < apart_end(piece);
    const bool last = unit == piece.end_unit - 1;
    const int32_t segment = unit / kSegmentUnits * kSegmentUnits;
    int32_t start = max(segment, piece.first_unit);
    if (apart) start = unit;
    const bool ends = apart || last || unit % kSegmentUnits == kSegmentUnits - 1;
    e.flags = (unit == start ? kUnitStartsSegment : 0) | (ends ? kUnitEndsSegment : 0);
    if (piece.partial >= 0) {
      e.flags |= kUnitApart;
      e.partial = piece.partial + (start - piece.first_unit) * piece.partial_stride;
    } else {
      if (start == piece.first_unit) e.flags |= kUnitStartsRow;
      if (last) e.flags |= kUnitEndsRow;
    }
    return e;
  }

  // The blocks of the wave's tiles: lane most_tiles * u + t looks up tile t of unit u.
  __device__ __forceinline__ void load_pages(const UnitEntry& mine, int units, int most_tiles) const {
    const int u = lane / most_tiles, t = lane % most_tiles;
    const int sequence = __shfl_sync(~0u, mine.sequence, u);
    const int tiles = __shfl_sync(~0u, mine.tiles, u);
    const int key = __shfl_sync(~0u, mine.first_key, u) + t * kTile;
    const int end_key = __shfl_sync(~0u, mine.end_key, u);
    if (u >= units || t >= tiles) return;
    const int boxes = kTile >> log_box_rows();
    int32_t* out = &shared.pages[lane * 8];
    if (p.block_table == nullptr) {
      const int32_t block = p.block_of != nullptr ? __ldg(p.block_of + sequence) : sequence;
      for (int j = 0; j < boxes; ++j) out[j] = block;
      return;
    }
    const int32_t* table = p.block_table + sequence * p.table_stride;
#pragma unroll 4
    for (int j = 0; j < boxes; ++j) {
      const int at = key + j * p.box_rows;
      if (at < end_key) out[j] = __ldg(table + p.by_page.quotient(at));
    }
  }

  __device__ __forceinline__ int log_box_rows() const {
    return 31 - __clz(p.box_rows);
  }

  // One tile of K and V; the lanes issue a box each.
  __device__ __forceinline__ void issue(uint32_t slot, int place, int looked_up, int key, int end_key,
                                        int kv_head, bool is_shared) {
    const uint32_t stage = tile % Shared::kStages;
    mbarrier_wait(shared_address(&shared.empty[stage]), ((tile / Shared::kStages) & 1) ^ 1);
    ++tile;
    constexpr int kPanels = kDim / 64;
    const int log_rows = log_box_rows();
    const int boxes = (min(kTile, end_key - key) + p.box_rows - 1) >> log_rows;
    // Boxes of whole rows lie one behind the other; boxes of a panel make up panels of the whole tile.
    const bool whole_rows = p.box_panels == kPanels;
    const uint32_t k_full = shared_address(&shared.k_full[slot][place]);
    const uint32_t v_full = shared_address(&shared.v_full[slot][place]);
    if (lane < 2) {
      mbarrier_arrive_expect(lane == 0 ? k_full : v_full,
                             static_cast<uint32_t>((boxes << log_rows) * kDim * 2));
    }
    __syncwarp();
    const uint32_t base = shared_address(shared.stage[stage]);
    for (int i = lane; i < 2 * boxes * (whole_rows ? 1 : kPanels); i += 32) {
      const int is_v = i & 1;
      const int panel = whole_rows ? 0 : (i >> 1) % kPanels, j = whole_rows ? i >> 1 : (i >> 1) / kPanels;
      const uint32_t to = base + static_cast<uint32_t>(is_v * Shared::kTileBytes + panel * (kTile * 128) +
                                                       ((j << log_rows) * (whole_rows ? kPanels : 1)) * 128);
      const int slot_in_page = p.by_page.remainder(key + (j << log_rows));
      const int block = shared.pages[looked_up * 8 + j];
      const CUtensorMap* map = is_v != 0 ? &p.v_map : &p.k_map;
      const uint32_t full = is_v != 0 ? v_full : k_full;
      if constexpr (kAnyDim) {
        tma_load_4d(to, map, full, 64 * panel, slot_in_page, kv_head, block);
      } else if (is_shared) {
        tma_load(to, map, full, 0, slot_in_page, panel, kv_head, block);
      } else {
        tma_load(to, map, full, 0, slot_in_page, panel, kv_head, block, private_policy);
      }
    }
  }
};

// ---- Consumer
// -----------------------------------------------------------------------------------------------

// Which keys a lane's two rows see, and from where they look.
struct RowView {
  int32_t first[2], end[2], position[2];
  float slope[2];
};

// kSmallBoxes: tiles are four boxes of 16 whole rows instead of panels of 64 rows.
template <typename T, int kDim, int kGroups, bool kListed, bool kFeatures, bool kWide, bool kSmallBoxes>
struct Consumer {
  using Shared = DecodeShared<kDim, kGroups>;
  static constexpr int kSteps = kDim / 16;
  static constexpr uint32_t kPanelBytes = (kSmallBoxes ? 16 : kTile) * 128;       // from panel to panel
  static constexpr uint32_t kSliceBytes = kSmallBoxes ? kDim / 64 * 2048 : 2048;  // from 16 rows to the next
  const DecodeParams& p;
  Shared& shared;
  const int lane, warp;

  __device__ __forceinline__ int token_of(const UnitEntry& e, int row) const {
    const int at = e.first_token + p.by_group.quotient(e.first_row + row);
    if constexpr (kListed) return __ldg(p.token_list + at);
    return at;
  }
  __device__ __forceinline__ int head_of(const UnitEntry& e, int row) const {
    return e.kv_head * p.group + p.by_group.remainder(e.first_row + row);
  }

  __device__ __forceinline__ void run() {
    uint32_t tiles_before = 0;
    uint32_t merges = 0;
    bool was_wide = false;
    for (uint32_t wave = 0;; ++wave) {
      const uint32_t slot = wave % kWaveSlots;
      mbarrier_wait(shared_address(&shared.wave_full[slot]), (wave / kWaveSlots) & 1);
      const Wave& w = shared.wave[slot];
      const int units = w.units;
      if (units == 0) break;
      if constexpr (kWide) {
        const bool is_wide = w.mode >= kWaveWide;
        // `merge` changes its use: every warp is done with the one before.
        if (is_wide != was_wide) named_barrier_sync(1, 32 * kConsumers);
        was_wide = is_wide;
        if (is_wide) {
          WideConsumer<T, kDim, Shared>{p, shared, lane, warp}.walk(w, slot, (wave / kWaveSlots) & 1,
                                                                    tiles_before);
          tiles_before += static_cast<uint32_t>(w.unit[0].tiles + (units > 1 ? w.unit[1].tiles : 0));
          __syncwarp();
          if (lane == 0) mbarrier_arrive(shared_address(&shared.wave_empty[slot]));
          continue;
        }
      }
      const int log_groups = w.mode;
      // Lane offsets of ldmatrix inside a 16-row slice of a panel, for the four pairs of 16-byte groups. Made
      // anew in every wave: the wide waves need the registers.
      int lane = this->lane;
      asm volatile("" : "+r"(lane));
      uint32_t k_offset[4], v_offset[4];
      const int v_row = (lane & 7) + ((lane >> 4) << 3);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        k_offset[j] = static_cast<uint32_t>((lane & 15) * 128 + (((2 * j) | (lane >> 4)) ^ (lane & 7)) * 16);
        v_offset[j] = static_cast<uint32_t>(v_row * 128 + (((2 * j) | ((lane >> 3) & 1)) ^ (lane & 7)) * 16);
      }
      const int u = warp >> log_groups, row_group = warp & ((1 << log_groups) - 1);
      const int tiles = lane < units ? w.unit[lane].tiles : 0;
      const bool works = u < units && row_group * 8 < w.unit[u].rows;
      float m[2] = {minus_infinity(), minus_infinity()}, l[2] = {0.0f, 0.0f};
      float o[kSteps][4];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.0f;
      uint32_t q[kSteps][2];
      RowView view;
      int first_key = 0, end_key = 0;
      if (u < units) {
        const UnitEntry& e = w.unit[u];
        first_key = e.first_key;
        end_key = e.end_key;
        load_q(e, row_group, q);
        if constexpr (kFeatures) view = view_of(e, row_group);
      }
      int place = 0;
      for (int t = 0; t < kUnitTiles; ++t) {
        const unsigned busy = __ballot_sync(~0u, tiles > t);
        if (busy == 0) break;
        if (u < units && ((busy >> u) & 1) != 0) {
          const int at = place + __popc(busy & ((1u << u) - 1));
          const uint32_t stage = (tiles_before + static_cast<uint32_t>(at)) % Shared::kStages;
          const uint32_t k_full = shared_address(&shared.k_full[slot][at]);
          const uint32_t v_full = shared_address(&shared.v_full[slot][at]);
          const uint32_t phase = (wave / kWaveSlots) & 1;
          if (works) {
            walk_tile(stage, k_full, v_full, phase, first_key + t * kTile, end_key, q, m, l, o, k_offset,
                      v_offset, view);
          } else {
            // Nothing to do, but the copies must have landed before the stage can be written again.
            mbarrier_wait(k_full, phase);
            mbarrier_wait(v_full, phase);
          }
          __syncwarp();
          if (lane == 0) {
            mbarrier_arrive_many(shared_address(&shared.empty[stage]),
                                 static_cast<uint32_t>(kConsumers >> log_groups));
          }
        }
        place += __popc(busy);
      }
      tiles_before += static_cast<uint32_t>(place);
      hand_in(merges, works ? w.unit[u].rows - row_group * 8 : 0, m, l, o);
      fold(merges, w);
      ++merges;
      __syncwarp();
      if (lane == 0) mbarrier_arrive(shared_address(&shared.wave_empty[slot]));
    }
  }

  // B fragments of the lane's row: k = 16 i + 2 (lane % 4) + {0, 1} and those + 8.
  __device__ __forceinline__ void load_q(const UnitEntry& e, int row_group, uint32_t (&q)[kSteps][2]) const {
    const int row = row_group * 8 + lane / 4;
    if (row < e.rows) {
      const int token = token_of(e, row);
      const int batch = p.by_tokens.quotient(token);
      const char* from = static_cast<const char*>(p.q.data) +
                         2 * (batch * p.q.batch_stride + (token - batch * p.tokens) * p.q.row_stride +
                              head_of(e, row) * p.q.head_stride + 2 * (lane % 4));
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const int column = 16 * i + 2 * (lane % 4);
        const bool first = !kFeatures || column < p.head_dim, second = !kFeatures || column + 8 < p.head_dim;
        q[i][0] = first ? __ldg(reinterpret_cast<const uint32_t*>(from + 32 * i)) : 0;
        q[i][1] = second ? __ldg(reinterpret_cast<const uint32_t*>(from + 32 * i + 16)) : 0;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) q[i][0] = q[i][1] = 0;
    }
  }

  __device__ __forceinline__ RowView view_of(const UnitEntry& e, int row_group) const {
    RowView view;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int row = min(row_group * 8 + 2 * (lane % 4) + c, e.rows - 1);
      const int token = token_of(e, row);
      const int batch = p.by_tokens.quotient(token);
      const int position = e.end_key - p.tokens + (token - batch * p.tokens);
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
    return view;
  }

  __device__ __forceinline__ float feature_score(float s, int key, int c, const RowView& view) const {
    constexpr float kLog2e = 1.44269504088896341f;
    float x;
    if (p.features.softcap != 0.0f) {
      // tanh(y) = 1 - 2 / (1 + e^2y): absolute error some 1e-7.
      const float y = __fdiv_rn(__fmul_rn(s, p.scale), p.features.softcap);
      const float t =
          __fsub_rn(1.0f, __fdiv_rn(2.0f, __fadd_rn(1.0f, exp2_fast(__fmul_rn(y, 2.0f * kLog2e)))));
      x = __fmul_rn(__fmul_rn(p.features.softcap, t), kLog2e);
    } else {
      x = __fmul_rn(s, p.scale_log2);
    }
    x = __fmaf_rn(-view.slope[c], fabsf(static_cast<float>(view.position[c] - key)), x);
    return key >= view.first[c] && key < view.end[c] ? x : minus_infinity();
  }

  __device__ __forceinline__ void walk_tile(uint32_t stage, uint32_t k_full, uint32_t v_full, uint32_t phase,
                                            int key, int end_key, const uint32_t (&q)[kSteps][2],
                                            float (&m)[2], float (&l)[2], float (&o)[kSteps][4],
                                            const uint32_t (&k_offset)[4], const uint32_t (&v_offset)[4],
                                            const RowView& view) {
    const uint32_t base = shared_address(shared.stage[stage]);
    float s[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) s[i][0] = s[i][1] = s[i][2] = s[i][3] = 0.0f;
    mbarrier_wait(k_full, phase);
    {
      const uint32_t at[4] = {base + k_offset[0], base + k_offset[1], base + k_offset[2], base + k_offset[3]};
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
#pragma unroll
        for (int block = 0; block < 4; ++block) {
          uint32_t a[4];
          ldmatrix_x4(a, at[i % 4] + static_cast<uint32_t>((i / 4) * kPanelBytes + block * kSliceBytes));
          mma_16816<T>(s[block], a, q[i][0], q[i][1]);
        }
      }
    }
    const int valid = end_key - key;
    const int own = lane / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (kFeatures) {
          s[i][j] = feature_score(s[i][j], key + i * 16 + (j / 2) * 8 + own, j % 2, view);
        } else {
          s[i][j] = __fmul_rn(s[i][j], p.scale_log2);
        }
      }
    }
    if (valid < kTile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (i * 16 + (j / 2) * 8 + own >= valid) s[i][j] = minus_infinity();
        }
      }
    }
    float most[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      most[c] = fmaxf(fmaxf(fmaxf(s[0][c], s[0][c + 2]), fmaxf(s[1][c], s[1][c + 2])),
                      fmaxf(fmaxf(s[2][c], s[2][c + 2]), fmaxf(s[3][c], s[3][c + 2])));
    }
    if (__any_sync(~0u, most[0] > m[0] + kLazyBound || most[1] > m[1] + kLazyBound)) {
      float keep[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        most[c] = fmaxf(most[c], __shfl_xor_sync(~0u, most[c], 4));
        most[c] = fmaxf(most[c], __shfl_xor_sync(~0u, most[c], 8));
        most[c] = fmaxf(most[c], __shfl_xor_sync(~0u, most[c], 16));
        const bool moves = most[c] > m[c] + kLazyBound;
        keep[c] = moves ? exp2_fast(__fsub_rn(m[c], most[c])) : 1.0f;
        if (moves) m[c] = most[c];
        l[c] = __fmul_rn(l[c], keep[c]);
      }
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        o[i][0] = __fmul_rn(o[i][0], keep[0]);
        o[i][1] = __fmul_rn(o[i][1], keep[1]);
        o[i][2] = __fmul_rn(o[i][2], keep[0]);
        o[i][3] = __fmul_rn(o[i][3], keep[1]);
      }
    }
    const float reference[2] = {m[0] == minus_infinity() ? 0.0f : m[0],
                                m[1] == minus_infinity() ? 0.0f : m[1]};
    uint32_t probability[4][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        s[i][j] = exp2_fast(__fsub_rn(s[i][j], reference[j % 2]));
        l[j % 2] = __fadd_rn(l[j % 2], s[i][j]);
      }
      probability[i][0] = movmatrix(pack2<T>(s[i][0], s[i][1]));
      probability[i][1] = movmatrix(pack2<T>(s[i][2], s[i][3]));
    }
    mbarrier_wait(v_full, phase);
    if (valid < kTile) zero_values(base + Shared::kTileBytes, max(valid, 0));
    {
      const uint32_t v = base + Shared::kTileBytes;
      const uint32_t at[4] = {v + v_offset[0], v + v_offset[1], v + v_offset[2], v + v_offset[3]};
#pragma unroll
      for (int step = 0; step < 4; ++step) {
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          uint32_t a[4];
          ldmatrix_x4_transposed(
              a, at[i % 4] + static_cast<uint32_t>((i / 4) * kPanelBytes + step * kSliceBytes));
          mma_16816<T>(o[i], a, probability[step][0], probability[step][1]);
        }
      }
    }
    if (valid < kTile) fence_async_shared();
  }

  // Rows [valid, kTile) of V.
  __device__ __forceinline__ void zero_values(uint32_t v, int valid) const {
    for (int i = valid * 8 + lane; i < kTile * 8; i += 32) {
#pragma unroll
      for (int panel = 0; panel < kDim / 64; ++panel) {
        asm volatile(
            "st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(
                v + static_cast<uint32_t>(panel * kPanelBytes + (i >> 7) * kSliceBytes + (i & 127) * 16)),
            "r"(0)
            : "memory");
      }
    }
    __syncwarp();
  }

  // The warp's state of its unit and row group, `rows` of them, to shared memory.
  __device__ __forceinline__ void hand_in(uint32_t merges, int rows, const float (&m)[2], float (&l)[2],
                                          const float (&o)[kSteps][4]) const {
    mbarrier_wait(shared_address(&shared.merge_free), (merges & 1) ^ 1);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      l[c] = __fadd_rn(l[c], __shfl_xor_sync(~0u, l[c], 4));
      l[c] = __fadd_rn(l[c], __shfl_xor_sync(~0u, l[c], 8));
      l[c] = __fadd_rn(l[c], __shfl_xor_sync(~0u, l[c], 16));
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
    __syncwarp();
    if (lane == 0) mbarrier_arrive(shared_address(&shared.merge_full));
  }

  __device__ __forceinline__ void fold(uint32_t merges, const Wave& w) const {
    using State = RowState<kLaneValues<kDim>>;
    mbarrier_wait(shared_address(&shared.merge_full), merges & 1);
    const int groups = 1 << w.mode;
    for (int group = 0; group < groups; ++group) {
      const int r = group * 8 + warp;
      State segment, row;
      bool loaded = false;
      for (int u = 0; u < w.units; ++u) {
        const UnitEntry& e = w.unit[u];
        if (r >= e.rows) continue;
        if (!loaded) {
          load_running(r, 0, segment);
          load_running(r, 1, row);
          loaded = true;
        }
        State unit;
        const int from = (u << w.mode) + group;
        const float2 ml = shared.merge_ml[from][warp];
        unit.m = ml.x;
        unit.l = ml.y;
        load_values(unit.o, &shared.merge[from][warp][lane * kLaneValues<kDim>]);
        if ((e.flags & kUnitStartsSegment) != 0) {
          segment = unit;
        } else {
          segment.fold(unit);
        }
        if ((e.flags & kUnitEndsSegment) == 0) continue;
        if ((e.flags & kUnitApart) != 0) {
          const int64_t at = e.partial + r;
          store_values(p.partial_o + at * kDim + lane * kLaneValues<kDim>, segment.o);
          if (lane == 0) p.partial_ml[at] = make_float2(segment.m, segment.l);
          continue;
        }
        if ((e.flags & kUnitStartsRow) != 0) {
          row = segment;
        } else {
          row.fold(segment);
        }
        if ((e.flags & kUnitEndsRow) != 0) write(e, r, row);
      }
      if (loaded) {
        store_running(r, 0, segment);
        store_running(r, 1, row);
      }
    }
    __syncwarp();
    if (lane == 0) mbarrier_arrive(shared_address(&shared.merge_free));
  }

  template <typename State>
  __device__ __forceinline__ void load_running(int r, int level, State& state) const {
    const float2 ml = shared.running_ml[r][level];
    state.m = ml.x;
    state.l = ml.y;
    load_values(state.o, &shared.running[r][level][lane * kLaneValues<kDim>]);
  }
  template <typename State>
  __device__ __forceinline__ void store_running(int r, int level, const State& state) const {
    __syncwarp();
    if (lane == 0) shared.running_ml[r][level] = make_float2(state.m, state.l);
    store_values(&shared.running[r][level][lane * kLaneValues<kDim>], state.o);
    __syncwarp();
  }

  template <typename State>
  __device__ __forceinline__ void write(const UnitEntry& e, int r, const State& row) const {
    const int token = token_of(e, r), head = head_of(e, r);
    const int batch = p.by_tokens.quotient(token), t = token - batch * p.tokens;
    char* to = static_cast<char*>(p.o.data) + 2 * (batch * p.o.batch_stride + t * p.o.row_stride +
                                                   head * p.o.head_stride + lane * kLaneValues<kDim>);
    if (!kFeatures || lane * kLaneValues<kDim> < p.head_dim) {
      store_rounded<T>(to, row.o, row.inverse());
    }
    if (p.lse != nullptr && lane == 0) {
      p.lse[(int64_t{batch} * p.kv_heads * p.group + head) * p.tokens + t] = row.lse();
    }
  }
};

// With kWide 384 threads: warpgroups 0 and 1 consume, the third gives its registers to them.
template <typename T, int kDim, int kGroups, bool kListed, bool kFeatures, bool kWide, bool kSmallBoxes>
__global__ void __launch_bounds__(kWide ? kWideThreads : kDecodeThreads, 1)
    decode_kernel(const __grid_constant__ DecodeParams p) {
  using Shared = DecodeShared<kDim, kGroups>;
  extern __shared__ __align__(1024) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  static_assert(kWaveSlots * kWaveTiles * 2 == 32 * kConsumers);
  if (threadIdx.x < 32 * kConsumers) mbarrier_init(shared_address(&shared.k_full[0][0] + threadIdx.x), 1);
  if (threadIdx.x == 0) {
    for (int s = 0; s < Shared::kStages; ++s) mbarrier_init(shared_address(&shared.empty[s]), kConsumers);
    for (int s = 0; s < kWaveSlots; ++s) {
      mbarrier_init(shared_address(&shared.wave_full[s]), 1);
      mbarrier_init(shared_address(&shared.wave_empty[s]), kConsumers);
    }
    mbarrier_init(shared_address(&shared.merge_full), kConsumers);
    mbarrier_init(shared_address(&shared.merge_free), kConsumers);
  }
  fence_barrier_init();
  if (warp == kConsumers && lane == 0) {
    prefetch_tensor_map(&p.k_map);
    prefetch_tensor_map(&p.v_map);
  }
  __syncthreads();
  dependency_wait();
  dependency_launch();
  if (warp >= kConsumers) {
    if constexpr (kWide) registers_down<56>();
    if (warp > kConsumers) return;
    Producer<kDim, kGroups, kWide, kFeatures> producer{p, shared, lane, 0, policy_evict_first()};
    if constexpr (kListed) {
      producer.run(ListedPieces(p, shared.listed, static_cast<int>(blockIdx.x)));
    } else {
      producer.run(LengthPieces<kFeatures>(p, static_cast<int>(blockIdx.x)));
    }
  } else {
    if constexpr (kWide) registers_up<224>();
    Consumer<T, kDim, kGroups, kListed, kFeatures, kWide, kSmallBoxes> consumer{p, shared, lane, warp};
    consumer.run();
  }
}

}  // namespace tessera::attention::cuda::sm90
