// The linear kernels in AVX-512 with VNNI: a tile of M rows x 16 outputs, one zmm an output vector.
//
// Blocks: a group of 64 bytes is the unsigned operand of vpdpbusd, four bytes of a row broadcast the signed
// one. Per row and block 8 vpdpbusd, one conversion, one multiplication and one or two fma: where all of them
// share the same ports the bound is 8/11 of the vpdpbusd peak (8/10 without minima). Unpacking (12
// instructions a block) is shared by the M rows. Registers at M = 8: 8 float and 8 integer accumulators, 2
// weights, mask, scales.
#include "ops/cpu/linear_avx512.h"

#include <immintrin.h>

namespace tessera::ops::avx512 {
namespace {

// Bytes between a load and its prefetch: the hardware prefetchers stop at 4 KiB and lose the first lines of a
// panel. About 8 blocks of q4_1.
constexpr int64_t kAhead = 2560;

inline __m512i broadcast_i32(const uint8_t* from) {
  int32_t value;
  __builtin_memcpy(&value, from, sizeof value);
  return _mm512_set1_epi32(value);
}
inline __m512 broadcast_f32(const uint8_t* from) {
  float value;
  __builtin_memcpy(&value, from, sizeof value);
  return _mm512_set1_ps(value);
}
inline __m512 load_f16(const uint8_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline void store(float* y, __m512 value, bool add) {
  _mm512_storeu_ps(y, add ? _mm512_add_ps(_mm512_loadu_ps(y), value) : value);
}

enum class Kind { q4_0, q4_1, q8_0 };

template <Kind kKind, int M>
void blocks(const BlockArgs& args) {
  constexpr bool kNibbles = kKind != Kind::q8_0;
  constexpr int kGroups = kNibbles ? 4 : 8;
  constexpr int kScaleBytes = kKind == Kind::q4_1 ? 64 : 32;
  const int64_t quant_bytes = args.blocks * kGroups * 64;
  const int64_t scale_bytes = (args.blocks * kScaleBytes + 63) / 64 * 64;
  const uint8_t* scale = args.panel + quant_bytes;
  const uint8_t* tile = args.tile;
  const __m512i mask = _mm512_set1_epi8(15);
  __m512 acc[M];
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) acc[r] = _mm512_setzero_ps();
  for (int64_t at = 0; at < quant_bytes; at += kGroups * 64) {
    const uint8_t* group = args.panel + at;
    // The panels lie one after the other in the order of use: quants, scales, next quants.
    const uint8_t* ahead = group + kAhead + (at + kAhead >= quant_bytes ? scale_bytes : 0);
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g) __builtin_prefetch(ahead + g * 64);
    __builtin_prefetch(scale + quant_bytes + scale_bytes);

    __m512i dot[M];
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
      const uint8_t* fields = tile + M * kQuantBlock + r * 4;
      dot[r] = kKind == Kind::q4_1   ? _mm512_setzero_si512()
               : kKind == Kind::q4_0 ? broadcast_i32(fields + 2 * M * 4)
                                     : broadcast_i32(fields + 3 * M * 4);
    }
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g) {
      const __m512i bytes = _mm512_load_si512(group + g * 64);
      if constexpr (kNibbles) {
        const __m512i low = _mm512_and_si512(bytes, mask);
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask);
#pragma GCC unroll 8
        for (int r = 0; r < M; ++r) {
          dot[r] = _mm512_dpbusd_epi32(dot[r], low, broadcast_i32(tile + r * kQuantBlock + g * 4));
        }
#pragma GCC unroll 8
        for (int r = 0; r < M; ++r) {
          dot[r] = _mm512_dpbusd_epi32(dot[r], high, broadcast_i32(tile + r * kQuantBlock + 16 + g * 4));
        }
      } else {
#pragma GCC unroll 8
        for (int r = 0; r < M; ++r) {
          dot[r] = _mm512_dpbusd_epi32(dot[r], bytes, broadcast_i32(tile + r * kQuantBlock + g * 4));
        }
      }
    }
    const __m512 d_w = load_f16(scale);
    const __m512 m_w = kKind == Kind::q4_1 ? load_f16(scale + 32) : _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
      const uint8_t* fields = tile + M * kQuantBlock + r * 4;
      const __m512 part = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[r]), broadcast_f32(fields));
      acc[r] = _mm512_fmadd_ps(d_w, part, acc[r]);
      if constexpr (kKind == Kind::q4_1) acc[r] = _mm512_fmadd_ps(m_w, broadcast_f32(fields + M * 4), acc[r]);
    }
    scale += kScaleBytes;
    tile += M * kQuantBytes;
  }
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) store(args.y + r * args.y_stride, acc[r], args.add);
}

template <Kind kKind>
void blocks_any(const BlockArgs& args) {
  constexpr BlockKernel kByRows[] = {blocks<kKind, 1>, blocks<kKind, 2>, blocks<kKind, 3>, blocks<kKind, 4>,
                                     blocks<kKind, 5>, blocks<kKind, 6>, blocks<kKind, 7>, blocks<kKind, 8>};
  kByRows[args.rows - 1](args);
}

struct F32 {
  static constexpr int kBytes = 4;
  static __m512 load(const uint8_t* from) { return _mm512_load_ps(from); }
};
struct F16 {
  static constexpr int kBytes = 2;
  static __m512 load(const uint8_t* from) { return load_f16(from); }
};
struct Bf16 {
  static constexpr int kBytes = 2;
  static __m512 load(const uint8_t* from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
};

// Two panels share each broadcast: M + P loads feed M * P fma.
template <typename Element, int M, int P>
void plain(const PlainArgs& args) {
  constexpr int kStep = kPanel * Element::kBytes;
  __m512 acc[M][P];
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) acc[r][p] = _mm512_setzero_ps();
  }
  const uint8_t* panel = args.panel;
  const float* x = args.x;
#pragma GCC unroll 4
  for (int64_t i = 0; i < args.k; ++i) {
    __m512 w[P];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
      w[p] = Element::load(panel + p * args.panel_step);
      __builtin_prefetch(panel + p * args.panel_step + kAhead);
    }
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
      const __m512 value = _mm512_set1_ps(x[r * args.x_stride]);
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) acc[r][p] = _mm512_fmadd_ps(value, w[p], acc[r][p]);
    }
    panel += kStep;
    ++x;
  }
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) store(args.y + r * args.y_stride + p * kPanel, acc[r][p], args.add);
  }
}

template <typename Element, int P>
void plain_rows(const PlainArgs& args) {
  constexpr PlainKernel kByRows[] = {plain<Element, 1, P>, plain<Element, 2, P>, plain<Element, 3, P>,
                                     plain<Element, 4, P>, plain<Element, 5, P>, plain<Element, 6, P>,
                                     plain<Element, 7, P>, plain<Element, 8, P>};
  kByRows[args.rows - 1](args);
}

template <typename Element>
void plain_any(const PlainArgs& args) {
  args.panels == 2 ? plain_rows<Element, 2>(args) : plain_rows<Element, 1>(args);
}

}  // namespace

void linear_q4_0(const BlockArgs& args) {
  blocks_any<Kind::q4_0>(args);
}
void linear_q4_1(const BlockArgs& args) {
  blocks_any<Kind::q4_1>(args);
}
void linear_q8_0(const BlockArgs& args) {
  blocks_any<Kind::q8_0>(args);
}
void linear_f32(const PlainArgs& args) {
  plain_any<F32>(args);
}
void linear_f16(const PlainArgs& args) {
  plain_any<F16>(args);
}
void linear_bf16(const PlainArgs& args) {
  plain_any<Bf16>(args);
}

}  // namespace tessera::ops::avx512
