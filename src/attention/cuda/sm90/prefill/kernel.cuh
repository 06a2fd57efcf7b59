// Forward attention for Hopper: persistent blocks, a producer that feeds K and V through TMA, warpgroups of
// 64 query rows each that multiply by wgmma and keep O in registers (FlashAttention-2's loop,
// FlashAttention-3's split of roles).
//
// What differs from FlashAttention-3, and what it gave on an H200 (D = 128, S = 4096, bf16):
//  - Speculative maximum. Only the first block of keys computes the rows' maximum. Later blocks take the
//    exponentials against that one at once, and only a row sum above kLargestSum (or NaN) says that it was
//    too small: f32 sums and outputs and 16-bit probabilities have room for factors below it. Such a row
//    repeats the block with the ordinary online softmax: its warp computes the scores once more, from K that
//    is still in shared memory. It saves 64 maxima and four dependent shuffles a block: 635 -> 695 TFLOP/s. A
//    row's maximum moves by its own scores alone.
//  - Q stays in registers (loaded once a tile), which frees its buffer for the next tile: 695 -> 709.
//  - Each warpgroup stores its own output, without meeting the others, and waits for the store only when it
//    needs the buffer again: +16 % at S = 512.
//  Ping-pong between warpgroups, 2-CTA multicast, exp on the FMA units and wider key blocks gained nothing
//  beside these.
//
// Invariants:
//  1. wgmma accumulators are touched only between a wait and the next issue; no wgmma stands under a branch.
//  2. A stage of K or V is released by every warp (4 * kGroups arrivals), after its last read of it. Q's
//     buffer is released when the first product has read its fragments: an arrival may overtake an ldmatrix
//     whose registers nobody has used yet.
//  3. Every role walks the same tiles and, in each, the same blocks from the last to the first; a warpgroup
//     whose rows do not reach a block waits for its stage and releases it, one without rows every stage of
//     the tile.
#pragma once

#include <cstdint>
#include <type_traits>

#include "attention/cuda/common/mask.cuh"
#include "attention/cuda/common/mma.cuh"
#include "attention/cuda/common/philox.cuh"
#include "attention/cuda/common/pipe.cuh"
#include "attention/cuda/common/ptx.cuh"
#include "attention/cuda/common/softmax.cuh"
#include "attention/cuda/common/tile.cuh"
#include "attention/cuda/common/wgmma.cuh"
#include "attention/cuda/sm90/prefill/config.h"
#include "attention/cuda/sm90/prefill/producer.cuh"
#include "attention/cuda/sm90/prefill/schedule.h"

namespace tessera::attention::cuda::sm90 {

// The largest row sum of a block that is taken without a look at the maximum: 16-bit probabilities must hold
// it.
template <typename T>
__device__ constexpr float largest_sum() {
  return 1048576.0f;
}
template <>
__device__ constexpr float largest_sum<__half>() {
  return 32768.0f;
}

// Row state of one thread: rows lane / 4 and lane / 4 + 8 of its warp's 16.
struct RowPair {
  float m[2];  // maximum so far times scale_log2; -inf before the first key
  float l[2];  // this thread's share of the row's sum
};

template <typename C>
struct Prefill {
  using T = typename C::T;
  static constexpr int D = C::D, BN = C::BN, kGroups = C::kGroups, kPanels = C::kPanels;
  static constexpr bool kRagged = C::kForm != Form::dense, kGeneral = C::kForm == Form::general,
                        kGrouped = C::kForm == Form::grouped;
  using Params = typename C::Params;
  using Rows = sm90::Sequence;
  using Shared = PrefillShared<C>;

  static constexpr DType kType = std::is_same_v<T, __half> ? DType::f16 : DType::bf16;
  using QFragments = uint32_t[C::kQInRegisters ? D / 16 : 1][4];
  // Columns [16 * step, + 16) of the warp's 16 rows of Q.
  static __device__ __forceinline__ void q_fragment(uint32_t (&a)[4], uint32_t q_tile, int step) {
    const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x >> 5) & 3;
    ldmatrix_x4(a, q_tile + swizzled_offset<64>(16 * warp + (lane & 15), 2 * step + (lane >> 4)));
  }

  // Hides what the rows do not see in block `block`; the warpgroup's first row is `first`.
  static __device__ __forceinline__ void mask(const Params& p, const Rows& sequence, float (&s)[BN / 2],
                                              int block, int first) {
    const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x >> 5) & 3;
    const int shift = block * BN + 2 * (lane & 3);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int position =
          row_at<C::kForm>(p, first + 16 * warp + (lane >> 2) + 8 * row) + sequence.first_position();
      int high = sequence.keys - 1;
      if constexpr (C::kSight == Sight::causal) high = at_most(position, high);
      if constexpr (C::kSight == Sight::window) high = at_most(position + p.window_right, high);
      high -= shift;
      constexpr bool kLow = C::kSight == Sight::window || kRagged;
      int low = sequence.leftpad;
      if constexpr (C::kSight == Sight::window) low = at_least(low, position - p.window_left);
      low -= shift;
#pragma unroll
      for (int i = 0; i < BN / 8; ++i) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int column = 8 * i + c;
          if (column > high || (kLow && column < low)) s[4 * i + 2 * row + c] = -INFINITY;
        }
      }
    }
  }

  // Zeroes the rows of a V tile that no query of the sequence sees, by every warpgroup that is about to read
  // it (all write the same). True where it had to.
  static __device__ __forceinline__ bool unseen_values(const Params& p, const Rows& sequence, int block) {
    if constexpr (!C::kCleanValues) return false;
    if constexpr (kGeneral) {
      if (p.seen != nullptr) return true;
    }
    return (block + 1) * BN > sequence.keys || block * BN < first_seen(p, sequence);
  }
  static __device__ __forceinline__ int first_seen(const Params& p, const Rows& sequence) {
    if constexpr (C::kSight != Sight::window) return sequence.leftpad;
    return at_least(sequence.leftpad, sequence.first_position() - p.window_left);
  }
  static __device__ __forceinline__ void clean_values(const Params& p, const Rows& sequence, int block,
                                                      uint32_t v_tile, int group, int64_t head) {
    const int low = first_seen(p, sequence) - block * BN, high = sequence.keys - block * BN;
#pragma unroll 1
    for (int at = static_cast<int>(threadIdx.x & 127); at < BN * kPanels * 8; at += 128) {
      const int row = at / 8 % BN;
      bool keep = row >= low && row < high;
      if constexpr (kGeneral) {
        if (p.seen != nullptr) keep = keep && p.seen[head * p.seqlen_k + block * BN + row] != 0;
      }
      if (keep) continue;
      asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(v_tile + at * 16), "r"(0) : "memory");
    }
    fence_async_shared();
    named_barrier_sync(1 + group, 128);
  }

  static __device__ __forceinline__ int64_t kv_index(const Params& p, const TileIndex& index) {
    return int64_t{index.batch} * (p.heads.divisor / p.group.divisor) + index.kv_head;
  }

  // Form::general: scores in units of log2 by every feature, -inf where the row does not see the key.
  static __device__ __forceinline__ void score(const Params& p, const Rows& rows, float (&s)[BN / 2],
                                               const TileIndex& index, int block, int first) {
    if constexpr (kGeneral) {
      const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x >> 5) & 3;
      // Not sequence_of(features): over a cache the keys' numbers are not the problem's.
      const cuda::Sequence of_features{rows.q_first,
                                       rows.k_first,
                                       rows.rows,
                                       rows.keys,
                                       rows.keys,
                                       rows.leftpad,
                                       rows.first_position(),
                                       rows.keys - p.features.tree_keys};
      score_fragment<false>(p.features, of_features, index.batch, index.head, first + 16 * warp + (lane >> 2),
                            block * BN + 2 * (lane & 3), s, nullptr);
    }
  }
  // Drops what the problem's random bits say, after the sums.
  static __device__ __forceinline__ void drop(const Params& p, float (&s)[BN / 2], const TileIndex& index,
                                              int block, int first) {
    if constexpr (kGeneral) {
      if (!p.features.dropout) return;
      const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x >> 5) & 3;
#pragma unroll
      for (int pair = 0; pair < BN / 32; ++pair) {
        const uint32_t kept = dropout_bits32(p.features.key, index.batch, index.head,
                                             first + 16 * warp + (lane >> 2), block * (BN / 32) + pair);
#pragma unroll
        for (int e = 0; e < 16; ++e) s[16 * pair + e] = (kept >> e & 1) != 0 ? s[16 * pair + e] : 0.0f;
      }
    }
  }
  // The largest of this thread's elements of a row.
  static __device__ __forceinline__ float row_maximum(const float (&s)[BN / 2], int row) {
    float most = s[2 * row], next = s[2 * row + 1];
#pragma unroll
    for (int i = 1; i < BN / 8; ++i) {
      most = fmaxf(most, s[4 * i + 2 * row]);
      next = fmaxf(next, s[4 * i + 2 * row + 1]);
    }
    return fmaxf(most, next);
  }
  // A row's elements become 2^(scale * s + shift); their sum, in two chains.
  static __device__ __forceinline__ float exponentials(float (&s)[BN / 2], int row, float scale,
                                                       float shift) {
    float sum = 0.0f, other = 0.0f;
#pragma unroll
    for (int i = 0; i < BN / 8; ++i) {
      float& x = s[4 * i + 2 * row];
      float& y = s[4 * i + 2 * row + 1];
      x = exp2_fast(__fmaf_rn(x, scale, shift));
      y = exp2_fast(__fmaf_rn(y, scale, shift));
      sum += x;
      other += y;
    }
    return sum + other;
  }

  // The ordinary online softmax of scores in units of log2.
  static __device__ __forceinline__ void online_softmax(float (&s)[BN / 2], RowPair& state,
                                                        float (&factor)[2]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float most = fmaxf(state.m[row], quad_max(row_maximum(s, row)));
      const float base = subtractable(most);
      factor[row] = exp2_fast(state.m[row] - base);
      state.m[row] = most;
      const float sum = exponentials(s, row, 1.0f, -base);
      state.l[row] = __fmaf_rn(state.l[row], factor[row], sum);
    }
  }

  // s = exponentials of the rows' own maximum; the state begins.
  static __device__ __forceinline__ void first_softmax(float (&s)[BN / 2], RowPair& state, float scale) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float most = quad_max(row_maximum(s, row)) * scale;
      state.m[row] = most;
      state.l[row] = exponentials(s, row, scale, -subtractable(most));
    }
  }

  // The same against the maximum that there was; false in a thread whose sums outgrew it.
  static __device__ __forceinline__ bool speculative_softmax(float (&s)[BN / 2], const RowPair& state,
                                                             float scale, float (&sums)[2]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      sums[row] = exponentials(s, row, scale, -state.m[row]);
    }
    return sums[0] <= largest_sum<T>() && sums[1] <= largest_sum<T>();
  }

  // Repeats a block for a warp of which some row outgrew its maximum: the scores again, from K in shared
  // memory (mma.sync gives wgmma's bits), then the online softmax for those rows and the same exponentials as
  // before for the others. factor: what the rows' O and l so far are to be multiplied by.
  static __device__ __forceinline__ void repeat_block(float (&s)[BN / 2], const QFragments& q,
                                                      uint32_t q_tile, uint32_t k_tile, RowPair& state,
                                                      float scale, float (&sums)[2], float (&factor)[2],
                                                      bool masked, const Params& p, const Rows& sequence,
                                                      int block, int first) {
    const int lane = static_cast<int>(threadIdx.x & 31);
    bool outgrown[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int mine = !(sums[row] <= largest_sum<T>());
      const int quad = mine | __shfl_xor_sync(0xffffffffu, mine, 1);
      outgrown[row] = (quad | __shfl_xor_sync(0xffffffffu, quad, 2)) != 0;
    }
    const int key = (lane & 7) + ((lane >> 4) << 3);
    const int half = (lane >> 3) & 1;
#pragma unroll
    for (int n = 0; n < BN / 16; ++n) {
#pragma unroll
      for (int i = 0; i < 8; ++i) s[8 * n + i] = 0.0f;
      if constexpr (C::kQInRegisters) {
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
          uint32_t b[4];
          ldmatrix_x4(b, k_tile + swizzled_offset<BN>(16 * n + key, 2 * step + half));
          mma<kType>(s + 8 * n, q[step], b[0], b[1]);
          mma<kType>(s + 8 * n + 4, q[step], b[2], b[3]);
        }
      } else {
#pragma unroll 1
        for (int step = 0; step < D / 16; ++step) {
          uint32_t a[4], b[4];
          q_fragment(a, q_tile, step);
          ldmatrix_x4(b, k_tile + swizzled_offset<BN>(16 * n + key, 2 * step + half));
          mma<kType>(s + 8 * n, a, b[0], b[1]);
          mma<kType>(s + 8 * n + 4, a, b[2], b[3]);
        }
      }
    }
    if (masked) mask(p, sequence, s, block, first);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float most = fmaxf(state.m[row], quad_max(row_maximum(s, row)) * scale);
      if (!outgrown[row]) most = state.m[row];
      factor[row] = outgrown[row] && most != -INFINITY ? exp2_fast(state.m[row] - most) : 1.0f;
      state.m[row] = most;
      sums[row] = exponentials(s, row, scale, -subtractable(most));
      state.l[row] *= factor[row];
    }
  }

  static __device__ __forceinline__ void consume(const Params& p, const Shared& shared, int group) {
    const int thread = static_cast<int>(threadIdx.x & 127), lane = thread & 31;
    RingPosition<C::kStages> k_at, v_at;
    RingPosition<2> tiles;
    RingPosition<C::kQBuffers> q_at;
    const float scale = kGeneral ? 1.0f : p.scale_log2;  // what scores are to be multiplied by
    for (int tile = static_cast<int>(blockIdx.x); tile < p.tiles;) {
      const TileIndex index = tile_index<C::kDynamic, kGrouped>(p, tile);
      const int first = index.m * C::kRows;
      const Rows rows = sequence<C::kForm>(p, index.batch);
      const int count = row_count<C::kForm>(p, rows);
      if (kRagged && first >= count) {
        tile = next_tile(shared, tiles, tile, lane);
        continue;
      }
      const KeyBlocks all = blocks_of<C>(p, rows, first, at_most(first + C::kRows, count) - 1);
      const int my_first = first + 64 * group;
      if (kRagged && my_first >= count) {
        // A warpgroup without rows leaves the tensor cores to the others.
        const uint32_t stage = group * C::kQBuffers + q_at.stage;
        shared.q_ring().wait(stage, q_at.phase);
        q_at.next();
        if constexpr (C::kOInQ) named_barrier_sync(1 + group, 128);
        __syncwarp();
        if (C::kOInQ ? thread == 0 : lane == 0) shared.q_ring().release(stage);
#pragma unroll 1
        for (int block = all.high - 1; block >= all.low; --block) skip(shared, k_at, v_at, lane);
        tile = next_tile(shared, tiles, tile, lane);
        continue;
      }
      const KeyBlocks mine = blocks_of<C>(p, rows, my_first, my_first + 63);
      const int low = at_least(mine.low, all.low), high = at_least(at_most(mine.high, all.high), low + 1);
      const uint32_t q_stage = group * C::kQBuffers + q_at.stage;
      const uint32_t q_tile = shared.q(q_stage);
      uint32_t q[C::kQInRegisters ? D / 16 : 1][4];
      shared.q_ring().wait(q_stage, q_at.phase);
      q_at.next();
      if constexpr (C::kQInRegisters) {
#pragma unroll
        for (int step = 0; step < D / 16; ++step) q_fragment(q[step], q_tile, step);
      }

      // Blocks that only the warpgroups below see.
#pragma unroll 1
      for (int block = all.high - 1; block >= high; --block) skip(shared, k_at, v_at, lane);

      float s[BN / 2], o[D / 2];
      uint32_t probabilities[BN / 16][4];
      RowPair state;
      shared.k_ring().wait(k_at.stage, k_at.phase);
      wgmma_fence();
      scores(s, q, q_tile, shared.k(k_at.stage));
      wgmma_commit();
      wgmma_wait<0>();
      pin(s);
      // Q's fragments have been read by the product just waited for: only now its buffer may be written
      // again.
      if (C::kQInRegisters && lane == 0) shared.q_ring().release(q_stage);
      release(shared.k_ring(), k_at.stage, lane);
      k_at.next();
      if constexpr (kGeneral) {
        score(p, rows, s, index, high - 1, my_first);
      } else if (high - 1 >= mine.clear_high || high - 1 < mine.clear_low) {
        mask(p, rows, s, high - 1, my_first);
      }
      first_softmax(s, state, scale);
      drop(p, s, index, high - 1, my_first);
      pack(probabilities, s);

      uint32_t accumulate = 0;
#pragma unroll 1
      for (int block = high - 2; block >= low; --block) {
        if (unseen_values(p, rows, block + 1)) {
          shared.v_ring().wait(v_at.stage, v_at.phase);
          clean_values(p, rows, block + 1, shared.v(v_at.stage), group, kv_index(p, index));
        }
        shared.k_ring().wait(k_at.stage, k_at.phase);
        wgmma_fence();
        scores(s, q, q_tile, shared.k(k_at.stage));
        wgmma_commit();
        shared.v_ring().wait(v_at.stage, v_at.phase);
        values(o, probabilities, shared.v(v_at.stage), accumulate);
        wgmma_commit();
        accumulate = 1;
        wgmma_wait<C::kOverlaps ? 1 : 0>();
        pin(s);
        float factor[2] = {1.0f, 1.0f};
        bool again;
        if constexpr (kGeneral) {
          score(p, rows, s, index, block, my_first);
          online_softmax(s, state, factor);
          drop(p, s, index, block, my_first);
          again = __any_sync(0xffffffffu, factor[0] != 1.0f || factor[1] != 1.0f);
        } else {
          const bool masked = block >= mine.clear_high || block < mine.clear_low;
          if (masked) mask(p, rows, s, block, my_first);
          float sums[2];
          const bool fits = speculative_softmax(s, state, scale, sums);
          again = !__all_sync(0xffffffffu, fits);
          if (again) {
            repeat_block(s, q, q_tile, shared.k(k_at.stage), state, scale, sums, factor, masked, p, rows,
                         block, my_first);
          }
          state.l[0] += sums[0];
          state.l[1] += sums[1];
        }
        __syncwarp();
        release(shared.k_ring(), k_at.stage, lane);
        k_at.next();
        wgmma_wait<0>();
        pin(o);
        release(shared.v_ring(), v_at.stage, lane);
        v_at.next();
        if (again) {
#pragma unroll
          for (int i = 0; i < D / 2; ++i) o[i] *= factor[(i >> 1) & 1];
        }
        pack(probabilities, s);
      }
      if constexpr (!C::kQInRegisters && !C::kOInQ) {
        __syncwarp();
        if (lane == 0) shared.q_ring().release(q_stage);
      }
      shared.v_ring().wait(v_at.stage, v_at.phase);
      if (unseen_values(p, rows, low))
        clean_values(p, rows, low, shared.v(v_at.stage), group, kv_index(p, index));
      wgmma_fence();
      values(o, probabilities, shared.v(v_at.stage), accumulate);
      wgmma_commit();
      wgmma_wait<0>();
      pin(o);
      release(shared.v_ring(), v_at.stage, lane);
      v_at.next();
#pragma unroll 1
      for (int block = low - 1; block >= all.low; --block) skip(shared, k_at, v_at, lane);

      finish(p, shared, group, tile, o, state);
      tile = next_tile(shared, tiles, tile, lane);
    }
    if (thread == 0) bulk_wait_read<0>();  // shared memory must outlive the last store's reads
  }

  static __device__ __forceinline__ int next_tile(const Shared& shared, RingPosition<2>& tiles, int tile,
                                                  int lane) {
    if constexpr (!C::kDynamic) return tile + static_cast<int>(gridDim.x);
    shared.tile_ring().wait(tiles.stage, tiles.phase);
    const int next = __shfl_sync(0xffffffffu, shared.load_tile(tiles.stage), 0);
    if (lane == 0) shared.tile_ring().release(tiles.stage);
    tiles.next();
    return next;
  }

  static __device__ __forceinline__ void skip(const Shared& shared, RingPosition<C::kStages>& k_at,
                                              RingPosition<C::kStages>& v_at, int lane) {
    shared.k_ring().wait(k_at.stage, k_at.phase);
    release(shared.k_ring(), k_at.stage, lane);
    k_at.next();
    shared.v_ring().wait(v_at.stage, v_at.phase);
    release(shared.v_ring(), v_at.stage, lane);
    v_at.next();
  }

  // A warp is done with a stage of keys.
  static __device__ __forceinline__ void release(const Ring& ring, uint32_t stage, int lane) {
    if constexpr (C::kElects) {
      mbarrier_arrive_elected(ring.empty(stage));
    } else if (lane == 0) {
      ring.release(stage);
    }
  }

  template <int N>
  static __device__ __forceinline__ void pin(float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(x[i])::"memory");
  }

  static __device__ __forceinline__ void scores(float (&s)[BN / 2], const QFragments& q, uint32_t q_tile,
                                                uint32_t k_tile) {
    const uint64_t k = descriptor_k_major(k_tile);
    if constexpr (C::kQInRegisters) {
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
        Wgmma<T, BN, 0>::rs(s, q[step], k + descriptor_k_step<BN>(step), step != 0);
      }
    } else {
      const uint64_t a = descriptor_k_major(q_tile);
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
        Wgmma<T, BN, 0>::ss(s, a + descriptor_k_step<64>(step), k + descriptor_k_step<BN>(step), step != 0);
      }
    }
  }
  static __device__ __forceinline__ void values(float (&o)[D / 2],
                                                const uint32_t (&probabilities)[BN / 16][4], uint32_t v_tile,
                                                uint32_t accumulate) {
    constexpr int kColumns = D > 128 ? D / 2 : D;  // of one product; 256 at once would be serialised
#pragma unroll
    for (int part = 0; part < D / kColumns; ++part) {
      const uint64_t v = descriptor_mn_major<BN>(v_tile + part * (kColumns / 64) * (BN * 128));
      float(&columns)[kColumns / 2] = reinterpret_cast<float(&)[kColumns / 2]>(o[part * (kColumns / 2)]);
#pragma unroll
      for (int step = 0; step < BN / 16; ++step) {
        Wgmma<T, kColumns, 1>::rs(columns, probabilities[step], v + descriptor_mn_step(step),
                                  step == 0 ? accumulate : 1);
      }
    }
  }
  static __device__ __forceinline__ void pack(uint32_t (&probabilities)[BN / 16][4],
                                              const float (&s)[BN / 2]) {
#pragma unroll
    for (int step = 0; step < BN / 16; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        probabilities[step][i] = pack2<T>(s[8 * step + 2 * i], s[8 * step + 2 * i + 1]);
    }
  }

  static __device__ __forceinline__ float keep_scale(const Params& p) {
    if constexpr (kGeneral) return p.features.keep_scale;
    return 1.0f;
  }

  // Rows of o times inverse, from registers to the tensor. The lanes of a quad exchange words until each
  // holds 16 bytes of a row, so that they write 64 bytes beside each other.
  static __device__ __forceinline__ void store_rows(const Params& p, const TileIndex& index, const Rows& rows,
                                                    int first, int count, const float (&o)[D / 2],
                                                    const float (&inverse)[2]) {
    const int lane = static_cast<int>(threadIdx.x & 31), t = lane & 3;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int at = first + (lane >> 2) + 8 * row;
      char* const out =
          static_cast<char*>(p.o_data) +
          2 * (rows.q_batch * p.o_batch_stride + (index.head + head_at<C::kForm>(p, at)) * p.o_head_stride +
               (rows.q_first + row_at<C::kForm>(p, at)) * p.o_row_stride);
#pragma unroll
      for (int j = 0; j < D / 32; ++j) {
        // Word i: this lane's two columns of the 8 columns 4 * j + i. Transposed within the quad.
        uint32_t w[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int e = 4 * (4 * j + i) + 2 * row;
          w[i] = pack2<T>(o[e] * inverse[row], o[e + 1] * inverse[row]);
        }
#pragma unroll
        for (int distance = 1; distance <= 2; distance *= 2) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if ((i & distance) != 0) continue;
            uint32_t& low = w[i];
            uint32_t& high = w[i + distance];
            const bool upper = (t & distance) != 0;
            const uint32_t came = __shfl_xor_sync(0xffffffffu, upper ? low : high, distance);
            (upper ? low : high) = came;
          }
        }
        const int piece = 4 * j + t;
        if (at < count && !is_idle<C::kForm>(p, at) && 8 * piece < p.v_head_dim)
          *reinterpret_cast<uint4*>(out + 16 * piece) = make_uint4(w[0], w[1], w[2], w[3]);
      }
    }
  }

  // o / l through shared memory to the tensor, LSE from the rows' first lanes.
  static __device__ __forceinline__ void finish(const Params& p, const Shared& shared, int group, int tile,
                                                float (&o)[D / 2], RowPair& state) {
    const int thread = static_cast<int>(threadIdx.x & 127), lane = thread & 31, warp = thread >> 5;
    const TileIndex index = tile_index<C::kDynamic, kGrouped>(p, tile);
    const Rows rows = sequence<C::kForm>(p, index.batch);
    const int my_first = index.m * C::kRows + 64 * group, count = row_count<C::kForm>(p, rows);
    float inverse[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float sum = quad_sum(state.l[row]);
      const bool empty = state.m[row] == -INFINITY;  // nothing seen: o = 0, LSE = -inf
      inverse[row] = empty ? 0.0f : (kGeneral ? keep_scale(p) : 1.0f) * reciprocal_fast(sum);
      const int at = my_first + 16 * warp + (lane >> 2) + 8 * row;
      if (p.lse != nullptr && (lane & 3) == 0 && at < count && !is_idle<C::kForm>(p, at)) {
        float* const lse = p.lse + rows.q_batch * p.lse_batch_stride +
                           (index.head + head_at<C::kForm>(p, at)) * p.lse_head_stride + rows.q_first;
        lse[row_at<C::kForm>(p, at)] = empty ? -INFINITY : (state.m[row] + log2_fast(sum)) * kLn2;
      }
    }
    // The warpgroup's four warps meet here, twice a tile: without it they drift apart from tile to tile, and
    // short causal tiles had wrong bits (docs/decisions/hopper-forward.md).
    if (!C::kOInQ && !C::kFromRegisters && thread == 0) bulk_wait_read<0>();  // the store of the tile before
    named_barrier_sync(1 + group, 128);
    if constexpr (C::kFromRegisters) {
      store_rows(p, index, rows, my_first + 16 * warp, count, o, inverse);
    } else {
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
        uint32_t r[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          r[i] = pack2<T>(o[8 * step + 2 * i] * inverse[i & 1], o[8 * step + 2 * i + 1] * inverse[i & 1]);
        }
        stmatrix_x4(shared.o(group) + swizzled_offset<64>(16 * warp + (lane & 15), 2 * step + (lane >> 4)),
                    r[0], r[1], r[2], r[3]);
      }
      const int left = count - my_first;
      if (kRagged && left < 64) {
        // The rows behind are another sequence's.
        named_barrier_sync(1 + group, 128);
        char* const out = static_cast<char*>(p.o_data) +
                          2 * (rows.q_batch * p.o_batch_stride + index.head * p.o_head_stride +
                               (rows.q_first + (kGrouped ? 0 : my_first)) * p.o_row_stride);
        const int pieces = p.v_head_dim / 8;
#pragma unroll 1
        for (int at = thread; at < left * pieces; at += 128) {
          const int row = at / pieces, piece = at - row * pieces;
          uint4 value;
          asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                       : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                       : "r"(shared.o(group) + swizzled_offset<64>(row, piece))
                       : "memory");
          int64_t at_row = row * p.o_row_stride;
          if constexpr (kGrouped) {
            at_row = row_at<C::kForm>(p, my_first + row) * p.o_row_stride +
                     head_at<C::kForm>(p, my_first + row) * p.o_head_stride;
          }
          *reinterpret_cast<uint4*>(out + 2 * (at_row + 8 * piece)) = value;
        }
        named_barrier_sync(1 + group, 128);
      } else {
        fence_async_shared();
        named_barrier_sync(1 + group, 128);
        if (thread == 0) {
#pragma unroll
          for (int panel = 0; panel < kPanels; ++panel) {
            const int row = rows.q_first + row_at<C::kForm>(p, my_first);
            tma_store_4d(&p.o, shared.o(group) + panel * (64 * 128), 64 * panel, kGrouped ? index.head : row,
                         kGrouped ? row : index.head, rows.q_batch);
          }
          bulk_commit();
          if constexpr (C::kOInQ) bulk_wait_read<0>();
        }
      }
      if constexpr (C::kOInQ) {
        if (thread == 0) shared.q_ring().release(group);
      }
    }
  }
};

template <typename C>
__global__ __launch_bounds__(C::kThreads,
                             1) void prefill_kernel(const __grid_constant__ typename C::Params p) {
  using Kernel = Prefill<C>;
  extern __shared__ uint8_t raw[];
  typename Kernel::Shared shared{(shared_address(raw) + 1023) & ~1023u};
  asm volatile("" : "+r"(shared.base));  // or the address is computed again in every iteration
  const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0) - 1;
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&p.q);
    prefetch_tensor_map(&p.k);
    prefetch_tensor_map(&p.v);
    prefetch_tensor_map(&p.o);
    const int producers = Kernel::kRagged && p.block_table != nullptr ? 2 : 1;  // of K, and of V
    shared.k_ring().init(C::kStages, producers, 4 * C::kGroups);
    shared.v_ring().init(C::kStages, producers, 4 * C::kGroups);
    shared.q_ring().init(C::kGroups * C::kQBuffers, 1, C::kOInQ ? 1 : 4);
    shared.tile_ring().init(2, 1, 4 * C::kGroups + 2 * producers - 1);
    fence_barrier_init();
  }
  if constexpr (C::kForm == Form::grouped) {
    // Idle rows of Q are never loaded: numbers, so that no NaN among them asks for a block once more.
    for (uint32_t at = 16 * threadIdx.x; at < C::kGroups * C::kQBuffers * C::kQBytes;
         at += 16 * C::kThreads) {
      asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(shared.base + at), "r"(0) : "memory");
    }
    fence_async_shared();
  }
  __syncthreads();
  if (group < 0) {
    registers_down<C::kProducerRegisters>();
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x & 31);
    if (!Kernel::kRagged || p.block_table == nullptr) {
      if (warp < 2 && lane == 0) PrefillProducer<C, ThreadRole>{p, shared, {warp == 1}, lane}.run();
      return;
    }
    if constexpr (Kernel::kRagged) {
      if (warp == 0) PrefillProducer<C, PagesRole<false, false>>{p, shared, {}, lane}.run();
      if (warp == 1) PrefillProducer<C, PagesRole<true, false>>{p, shared, {}, lane}.run();
      if (warp == 2) PrefillProducer<C, PagesRole<false, true>>{p, shared, {}, lane}.run();
      if (warp == 3) PrefillProducer<C, PagesRole<true, true>>{p, shared, {}, lane}.run();
    }
  } else {
    registers_up<C::kConsumerRegisters>();
    Kernel::consume(p, shared, group);
  }
}

}  // namespace tessera::attention::cuda::sm90
