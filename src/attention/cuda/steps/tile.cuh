// A warp's arithmetic on one tile of keys (work.h) for up to 8 rows: m16n8k16 with keys, then dims, as m and
// rows as n, so that 1 to 8 rows cost the same; f32 as m16n8k8 in tf32. Where a tile's bytes come from and
// when is the kernel's.
//
// In shared memory 16 keys of 128 bytes are 2048 bytes under the 128-byte swizzle (common/tile.cuh).
// kPanelBytes: from 128 bytes of a row to the next; kSliceBytes: from 16 keys to the next.
//
// Fragments: lane holds row lane / 4 of q (B); in scores keys lane / 4 and 8 more of each 16 and rows 2 (lane
// % 4) + {0, 1}; in o those rows and columns lane / 4 and 8 more of each 16.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "attention/cuda/common/mma.cuh"
#include "attention/cuda/steps/params.h"
#include "attention/cuda/steps/state.cuh"

namespace tessera::attention::cuda::steps {

template <typename T>
inline constexpr DType kTypeOf = std::is_same_v<T, float>    ? DType::f32
                                 : std::is_same_v<T, __half> ? DType::f16
                                                             : DType::bf16;
// A row of kDim elements as an operand: steps of 32 bytes, 16 elements or 8.
template <typename T, int kDim>
inline constexpr int kRowSteps = kDim* static_cast<int>(sizeof(T)) / 32;

// Which keys a lane's two rows see, and from where they look.
struct RowView {
  int32_t first[2], end[2], position[2];
  float slope[2];
  int32_t least;  // no row of the piece sees a key before it: nothing need be written there
};

// Lane offsets of ldmatrix inside 16 keys of a panel, for the four pairs of 16-byte groups.
struct TileOffsets {
  uint32_t k[4], v[4];
  __device__ __forceinline__ explicit TileOffsets(int lane) {
    const int v_row = (lane & 7) + ((lane >> 4) << 3);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      k[j] = static_cast<uint32_t>((lane & 15) * 128 + (((2 * j) | (lane >> 4)) ^ (lane & 7)) * 16);
      v[j] = static_cast<uint32_t>(v_row * 128 + (((2 * j) | ((lane >> 3) & 1)) ^ (lane & 7)) * 16);
    }
  }
};

template <typename T, int kDim, bool kFeatures, uint32_t kPanelBytes, uint32_t kSliceBytes>
struct TileMath {
  static constexpr bool kF32 = std::is_same_v<T, float>;
  static constexpr int kSteps = kDim / 16;             // of 16 columns of o
  static constexpr int kQSteps = kRowSteps<T, kDim>;   // of q and K
  static constexpr int kProbabilities = kF32 ? 4 : 2;  // registers of 16 keys
  const DecodeParams& p;
  const int lane;

  // s of the 16 keys of slices [kFirst, kFirst + kCount); slice kFirst lies at `k`.
  template <int kFirst, int kCount>
  __device__ __forceinline__ void multiply_keys(float (&s)[4][4], const uint32_t (&q)[kQSteps][2], uint32_t k,
                                                const TileOffsets& offsets) const {
    const uint32_t at[4] = {k + offsets.k[0], k + offsets.k[1], k + offsets.k[2], k + offsets.k[3]};
#pragma unroll
    for (int i = 0; i < kQSteps; ++i) {
#pragma unroll
      for (int block = 0; block < kCount; ++block) {
        uint32_t a[4];
        ldmatrix_x4(a, at[i % 4] + static_cast<uint32_t>((i / 4) * kPanelBytes + block * kSliceBytes));
        round_fragment<kTypeOf<T>>(a);
        mma<kTypeOf<T>>(s[kFirst + block], a, q[i][0], q[i][1]);
      }
    }
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

  // From products to probabilities, as B fragments of the steps of PV; m, l and o follow a maximum that
  // moves. The tile begins at `key`; keys from end_key on are replaced.
  __device__ __forceinline__ void softmax(float (&s)[4][4], uint32_t (&probability)[4][kProbabilities],
                                          float (&m)[2], float (&l)[2], float (&o)[kSteps][4], int key,
                                          int end_key, const RowView& view) const {
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
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        s[i][j] = exp2_fast(__fsub_rn(s[i][j], reference[j % 2]));
        l[j % 2] = __fadd_rn(l[j % 2], s[i][j]);
      }
      if constexpr (kF32) {
        turn(s[i], probability[i]);
      } else {
        probability[i][0] = movmatrix(pack2<T>(s[i][0], s[i][1]));
        probability[i][1] = movmatrix(pack2<T>(s[i][2], s[i][3]));
      }
    }
  }
  // movmatrix() of f32: keys lane % 4 and 4 more, then 8 more, of row lane / 4.
  __device__ __forceinline__ void turn(const float (&s)[4], uint32_t (&probability)[4]) const {
    const int from = lane % 4 * 4 + lane / 8;
    const bool is_second = (lane / 4) % 2 != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = from + 16 * (i % 2);
      const float first = __shfl_sync(~0u, s[i / 2 * 2], key);
      const float second = __shfl_sync(~0u, s[i / 2 * 2 + 1], key);
      probability[i] = round_tf32(is_second ? second : first);
    }
  }

  // Does the tile hold keys whose V is not there: NaN perhaps, and p = 0 does not help?
  __device__ __forceinline__ bool has_gaps(int key, int end_key, const RowView& view) const {
    if constexpr (kFeatures) return key + kTile > end_key || key < view.least;
    return key + kTile > end_key;
  }

  // o += p v of the tile at `v`.
  __device__ __forceinline__ void multiply_values(float (&o)[kSteps][4],
                                                  const uint32_t (&probability)[4][kProbabilities],
                                                  uint32_t v, const TileOffsets& offsets) const {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      multiply_slice<false>(o, probability[step], v + step * kSliceBytes, offsets, 0, 0, {});
    }
  }
  // The same where has_gaps(); kept small, since no registers are to be had for what is rare.
  __device__ __forceinline__ void multiply_values_with_gaps(float (&o)[kSteps][4],
                                                            uint32_t (&probability)[4][kProbabilities],
                                                            uint32_t v, const TileOffsets& offsets, int key,
                                                            int end_key, const RowView& view) const {
#pragma unroll 1
    for (int step = 0; step < 4; ++step) {
      multiply_slice<true>(o, probability[0], v + step * kSliceBytes, offsets, key + 16 * step, end_key,
                           view);
#pragma unroll
      for (int i = 0; i < 3; ++i) {
#pragma unroll
        for (int j = 0; j < kProbabilities; ++j) probability[i][j] = probability[i + 1][j];
      }
    }
  }
  // o += p v of the 16 keys from `key` on, at `v`. kGaps: V of keys that are not there is taken as 0, in
  // registers, since other warps read the same bytes.
  template <bool kGaps>
  __device__ __forceinline__ void multiply_slice(float (&o)[kSteps][4],
                                                 const uint32_t (&probability)[kProbabilities], uint32_t v,
                                                 const TileOffsets& offsets, int key, int end_key,
                                                 const RowView& view) const {
    if constexpr (kF32) {
      static_assert(!kGaps, "kernels of f32 have zeros there");
      multiply_slice_of_elements(o, probability, v);
    } else {
      const uint32_t at[4] = {v + offsets.v[0], v + offsets.v[1], v + offsets.v[2], v + offsets.v[3]};
      uint32_t keep[2] = {~0u, ~0u};
      if constexpr (kGaps) {
        const auto kept = [&](int of) {
          bool is_there = of < end_key;
          if constexpr (kFeatures) is_there = is_there && of >= view.least;
          return is_there ? 0xffffu : 0u;
        };
        const int own = key + 2 * (lane % 4);
        keep[0] = kept(own) | kept(own + 1) << 16;
        keep[1] = kept(own + 8) | kept(own + 9) << 16;
      }
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        uint32_t a[4];
        ldmatrix_x4_transposed(a, at[i % 4] + static_cast<uint32_t>((i / 4) * kPanelBytes));
        if constexpr (kGaps) {
          a[0] &= keep[0], a[1] &= keep[0];
          a[2] &= keep[1], a[3] &= keep[1];
        }
        mma<kTypeOf<T>>(o[i], a, probability[0], probability[1]);
      }
    }
  }
  // Of f32, which no transposed load is for: columns lane / 4 and 8 more of keys lane % 4 and 4 more.
  __device__ __forceinline__ void multiply_slice_of_elements(float (&o)[kSteps][4],
                                                             const uint32_t (&probability)[kProbabilities],
                                                             uint32_t v) const {
    const auto quad = static_cast<uint32_t>(lane % 4), column = static_cast<uint32_t>(lane / 4);
    const uint32_t at = v + quad * 128 + column % 4 * 4;
    const uint32_t group = (column / 4 ^ quad) * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        uint32_t a[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t four_keys_on = j / 2, eight_columns_on = j % 2;
          const uint32_t chunk = (i % 2 * 4u + eight_columns_on * 2u) ^ (four_keys_on * 4u);
          a[j] = load_shared32(at + static_cast<uint32_t>(i / 2) * kPanelBytes +
                               (half * 8u + four_keys_on * 4u) * 128u + (group ^ chunk * 16u));
        }
        round_fragment<kTypeOf<T>>(a);
        mma<kTypeOf<T>>(o[i], a, probability[2 * half], probability[2 * half + 1]);
      }
    }
  }
};

}  // namespace tessera::attention::cuda::steps
