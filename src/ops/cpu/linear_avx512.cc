// The linear kernels in AVX-512 with VNNI: a tile of M <= 6 rows x P <= 2 panels of 16 outputs, one zmm an
// output vector.
//
// Blocks: a group of 64 bytes is the unsigned operand of vpdpbusd, four bytes of a row broadcast the signed
// one. Per row, panel and block 8 vpdpbusd, one conversion, one multiplication and one or two fma: where all
// but the conversion share the same ports (Zen) the bound is 8/11 of the vpdpbusd peak. Two panels share a
// broadcast, because loads are the next limit: 10 a row and block against 11 / 2 cycles. Unpacking (12
// instructions a panel and block) is shared by the M rows. Registers at 6 x 2: 12 float and 12 integer
// accumulators, 2 weights, a broadcast, the mask, scales.
#include "ops/cpu/kernels.h"

#include <immintrin.h>

namespace tessera::ops::avx512 {
namespace {

// Bytes between a load and its prefetch; the hardware prefetchers stop at 4 KiB and lose the first lines of a
// panel. Measured on Zen 5, weights in memory: 4,096 beats 1,024 and 2,560 at every number of rows (1 x 1: 42
// against 29 and 37 GB/s of 46); a second, farther prefetch adds nothing.
constexpr int64_t kAhead = 4096;

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

template <int M, int P>
inline void store(const Tile& tile, const __m512 (&acc)[M][P]) {
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
      float* y = tile.y + r * tile.y_stride + p * tile.y_step;
      _mm512_storeu_ps(y, tile.add ? _mm512_add_ps(_mm512_loadu_ps(y), acc[r][p]) : acc[r][p]);
    }
  }
}

template <int M, int P>
inline void clear(__m512 (&acc)[M][P]) {
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) acc[r][p] = _mm512_setzero_ps();
  }
}

// dot[r][p] += the products of weights[p] and bytes 4 g.. of each row.
template <int M, int P>
inline void add_group(__m512i (&dot)[M][P], const __m512i (&weights)[P], const uint8_t* rows) {
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
    const __m512i a = broadcast_i32(rows + r * kQuantBlock);
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) dot[r][p] = _mm512_dpbusd_epi32(dot[r][p], weights[p], a);
  }
}

enum class Kind { q4_0, q4_1, q8_0 };

template <Kind kKind, int M, int P>
void blocks(const Tile& tile, const BlockInput& input) {
  constexpr bool kNibbles = kKind != Kind::q8_0;
  constexpr int kGroups = kNibbles ? 4 : 8;
  constexpr int kScaleBytes = kKind == Kind::q4_1 ? 64 : 32;
  const int64_t quant_bytes = input.blocks * kGroups * 64;
  const int64_t scale_bytes = (input.blocks * kScaleBytes + 63) / 64 * 64;
  const int64_t step = tile.panel_step;
  const uint8_t* scale = tile.panel + quant_bytes;
  const uint8_t* rows = input.tile;
  const __m512i mask = _mm512_set1_epi8(15);
  __m512 acc[M][P];
  clear(acc);
  for (int64_t at = 0; at < quant_bytes; at += kGroups * 64) {
    const uint8_t* group = tile.panel + at;
    // What is used next after this pair of panels follows it: the prefetch steps over scales and the other
    // panel.
    const uint8_t* ahead = group + kAhead + (at + kAhead >= quant_bytes ? scale_bytes + (P - 1) * step : 0);
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
      for (int g = 0; g < kGroups; ++g) __builtin_prefetch(ahead + p * step + g * 64);
      __builtin_prefetch(scale + (p + P) * step);
    }

    __m512i dot[M][P];
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
      const uint8_t* fields = rows + M * kQuantBlock + r * 4;
      const __m512i start = kKind == Kind::q4_1   ? _mm512_setzero_si512()
                            : kKind == Kind::q4_0 ? broadcast_i32(fields + 2 * M * 4)
                                                  : broadcast_i32(fields + 3 * M * 4);
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) dot[r][p] = start;
    }
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g) {
      __m512i bytes[P], weights[P];
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) bytes[p] = _mm512_load_si512(group + p * step + g * 64);
      if constexpr (kNibbles) {
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) weights[p] = _mm512_and_si512(bytes[p], mask);
        add_group(dot, weights, rows + g * 4);
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) weights[p] = _mm512_and_si512(_mm512_srli_epi16(bytes[p], 4), mask);
        add_group(dot, weights, rows + 16 + g * 4);
      } else {
        add_group(dot, bytes, rows + g * 4);
      }
    }
    __m512 d_w[P], m_w[P];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
      d_w[p] = load_f16(scale + p * step);
      m_w[p] = kKind == Kind::q4_1 ? load_f16(scale + p * step + 32) : _mm512_setzero_ps();
    }
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
      const uint8_t* fields = rows + M * kQuantBlock + r * 4;
      const __m512 d_a = broadcast_f32(fields), s_a = broadcast_f32(fields + M * 4);
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) {
        acc[r][p] = _mm512_fmadd_ps(d_w[p], _mm512_mul_ps(_mm512_cvtepi32_ps(dot[r][p]), d_a), acc[r][p]);
        if constexpr (kKind == Kind::q4_1) acc[r][p] = _mm512_fmadd_ps(m_w[p], s_a, acc[r][p]);
      }
    }
    scale += kScaleBytes;
    rows += M * kQuantBytes;
  }
  store(tile, acc);
}

template <Kind kKind>
void blocks_any(const Tile& tile, const BlockInput& input) {
  constexpr BlockKernel kKernels[2][kTileRows] = {
      {blocks<kKind, 1, 1>, blocks<kKind, 2, 1>, blocks<kKind, 3, 1>, blocks<kKind, 4, 1>,
       blocks<kKind, 5, 1>, blocks<kKind, 6, 1>},
      {blocks<kKind, 1, 2>, blocks<kKind, 2, 2>, blocks<kKind, 3, 2>, blocks<kKind, 4, 2>,
       blocks<kKind, 5, 2>, blocks<kKind, 6, 2>}};
  kKernels[tile.panels - 1][tile.rows - 1](tile, input);
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

// Two panels share each broadcast: M + P loads feed M * P fma, and 12 chains hide their latency.
template <typename Element, int M, int P>
void plain(const Tile& tile, const PlainInput& input) {
  __m512 acc[M][P];
  clear(acc);
  const uint8_t* panel = tile.panel;
  const float* x = input.x;
#pragma GCC unroll 4
  for (int64_t i = 0; i < input.k; ++i) {
    __m512 w[P];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
      w[p] = Element::load(panel + p * tile.panel_step);
      __builtin_prefetch(panel + p * tile.panel_step + kAhead);
    }
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
      const __m512 value = _mm512_set1_ps(x[r * input.stride]);
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) acc[r][p] = _mm512_fmadd_ps(value, w[p], acc[r][p]);
    }
    panel += kPanel * Element::kBytes;
    ++x;
  }
  store(tile, acc);
}

template <typename Element>
void plain_any(const Tile& tile, const PlainInput& input) {
  constexpr PlainKernel kKernels[2][kTileRows] = {
      {plain<Element, 1, 1>, plain<Element, 2, 1>, plain<Element, 3, 1>, plain<Element, 4, 1>,
       plain<Element, 5, 1>, plain<Element, 6, 1>},
      {plain<Element, 1, 2>, plain<Element, 2, 2>, plain<Element, 3, 2>, plain<Element, 4, 2>,
       plain<Element, 5, 2>, plain<Element, 6, 2>}};
  kKernels[tile.panels - 1][tile.rows - 1](tile, input);
}

}  // namespace

const LinearKernels kLinear = {blocks_any<Kind::q4_0>, blocks_any<Kind::q4_1>, blocks_any<Kind::q8_0>,
                               plain_any<F32>,         plain_any<F16>,         plain_any<Bf16>};

}  // namespace tessera::ops::avx512
