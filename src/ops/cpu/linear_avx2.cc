// The linear kernels in AVX2 and FMA: two ymm an output vector, tiles of up to 3 rows x 16 outputs (blocks)
// or 6 x 16 (plain).
//
// Nibbles: vpmaddubsw adds two products in 16 bits, and a whole block fits there: 8 groups * 2 * 15 * 127 =
// 30,480 < 32,768. So a block costs one vpmaddubsw and one 16-bit addition a group and a single widening at
// its end. 8-bit weights would saturate (2 * 255 * 127), so the sign moves to the activation: 2 * 128 * 127 =
// 32,512 fits, and each group is widened at once.
#include "ops/cpu/kernels.h"

#include <immintrin.h>

namespace tessera::ops::avx2 {
namespace {

constexpr int64_t kAhead = 4096;  // as in the AVX-512 form

inline __m256i broadcast_i32(const uint8_t* from) {
  int32_t value;
  __builtin_memcpy(&value, from, sizeof value);
  return _mm256_set1_epi32(value);
}
inline __m256 broadcast_f32(const uint8_t* from) {
  float value;
  __builtin_memcpy(&value, from, sizeof value);
  return _mm256_set1_ps(value);
}
inline __m256i load_bytes(const uint8_t* from) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(from));
}
inline __m256 load_f16(const uint8_t* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

template <int M>
inline void store(const Tile& tile, int first, int p, const __m256 (&acc)[M][2]) {
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
    float* y = tile.y + (first + r) * tile.y_stride + p * tile.y_step;
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      _mm256_storeu_ps(y + 8 * h,
                       tile.add ? _mm256_add_ps(_mm256_loadu_ps(y + 8 * h), acc[r][h]) : acc[r][h]);
    }
  }
}

enum class Kind { q4_0, q4_1, q8_0 };

// The integer dots of one block: out[r][h] for rows r and halves h of 8 lanes.
template <int M>
inline void dots_of_nibbles(const uint8_t* groups, const uint8_t* rows, __m256i (&out)[M][2]) {
  const __m256i mask = _mm256_set1_epi8(15);
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) out[r][0] = out[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    const __m256i bytes[2] = {load_bytes(groups + g * 64), load_bytes(groups + g * 64 + 32)};
#pragma GCC unroll 2
    for (int part = 0; part < 2; ++part) {
      const __m256i w0 = _mm256_and_si256(part == 0 ? bytes[0] : _mm256_srli_epi16(bytes[0], 4), mask);
      const __m256i w1 = _mm256_and_si256(part == 0 ? bytes[1] : _mm256_srli_epi16(bytes[1], 4), mask);
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
        const __m256i a = broadcast_i32(rows + r * kQuantBlock + part * 16 + g * 4);
        out[r][0] = _mm256_add_epi16(out[r][0], _mm256_maddubs_epi16(w0, a));
        out[r][1] = _mm256_add_epi16(out[r][1], _mm256_maddubs_epi16(w1, a));
      }
    }
  }
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
    out[r][0] = _mm256_madd_epi16(out[r][0], ones);
    out[r][1] = _mm256_madd_epi16(out[r][1], ones);
  }
}

template <int M>
inline void dots_of_bytes(const uint8_t* groups, const uint8_t* rows, __m256i (&out)[M][2]) {
  const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80)), ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) out[r][0] = out[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
    const __m256i w0 = _mm256_xor_si256(load_bytes(groups + g * 64), flip);
    const __m256i w1 = _mm256_xor_si256(load_bytes(groups + g * 64 + 32), flip);
    const __m256i size0 = _mm256_abs_epi8(w0), size1 = _mm256_abs_epi8(w1);
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
      const __m256i a = broadcast_i32(rows + r * kQuantBlock + g * 4);
      const __m256i pair0 = _mm256_maddubs_epi16(size0, _mm256_sign_epi8(a, w0));
      const __m256i pair1 = _mm256_maddubs_epi16(size1, _mm256_sign_epi8(a, w1));
      out[r][0] = _mm256_add_epi32(out[r][0], _mm256_madd_epi16(pair0, ones));
      out[r][1] = _mm256_add_epi32(out[r][1], _mm256_madd_epi16(pair1, ones));
    }
  }
}

// Rows [first, first + M) of panel p.
template <Kind kKind, int M>
void blocks(const Tile& tile, const BlockInput& input, int first, int p) {
  constexpr int kGroups = kKind == Kind::q8_0 ? 8 : 4;
  constexpr int kScaleBytes = kKind == Kind::q4_1 ? 64 : 32;
  const int64_t quant_bytes = input.blocks * kGroups * 64;
  const int64_t scale_bytes = (input.blocks * kScaleBytes + 63) / 64 * 64;
  const int64_t field = tile.rows * 4, step = tile.rows * kQuantBytes;
  const uint8_t* panel = tile.panel + p * tile.panel_step;
  const uint8_t* scale = panel + quant_bytes;
  const uint8_t* rows = input.tile + first * kQuantBlock;
  const uint8_t* fields = input.tile + tile.rows * kQuantBlock + first * 4;
  __m256 acc[M][2];
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
  for (int64_t at = 0; at < quant_bytes; at += kGroups * 64) {
    const uint8_t* groups = panel + at;
    const uint8_t* ahead = groups + kAhead + (at + kAhead >= quant_bytes ? scale_bytes : 0);
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g) __builtin_prefetch(ahead + g * 64);
    __builtin_prefetch(scale + quant_bytes + scale_bytes);

    __m256i dot[M][2];
    if constexpr (kKind == Kind::q8_0) {
      dots_of_bytes<M>(groups, rows, dot);
    } else {
      dots_of_nibbles<M>(groups, rows, dot);
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m256 d_w = load_f16(scale + h * 16);
      const __m256 m_w = kKind == Kind::q4_1 ? load_f16(scale + 32 + h * 16) : _mm256_setzero_ps();
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
        __m256i sum = dot[r][h];
        if constexpr (kKind == Kind::q4_0)
          sum = _mm256_add_epi32(sum, broadcast_i32(fields + 2 * field + r * 4));
        const __m256 part = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), broadcast_f32(fields + r * 4));
        acc[r][h] = _mm256_fmadd_ps(d_w, part, acc[r][h]);
        if constexpr (kKind == Kind::q4_1) {
          acc[r][h] = _mm256_fmadd_ps(m_w, broadcast_f32(fields + field + r * 4), acc[r][h]);
        }
      }
    }
    scale += kScaleBytes;
    rows += step;
    fields += step;
  }
  store<M>(tile, first, p, acc);
}

template <Kind kKind>
void blocks_any(const Tile& tile, const BlockInput& input) {
  for (int p = 0; p < tile.panels; ++p) {
    switch (tile.rows) {
      case 6:
        blocks<kKind, 3>(tile, input, 3, p);
        [[fallthrough]];
      case 3:
        blocks<kKind, 3>(tile, input, 0, p);
        break;
      case 5:
        blocks<kKind, 3>(tile, input, 2, p);
        [[fallthrough]];
      case 2:
        blocks<kKind, 2>(tile, input, 0, p);
        break;
      case 4:
        blocks<kKind, 4>(tile, input, 0, p);
        break;
      default:
        blocks<kKind, 1>(tile, input, 0, p);
        break;
    }
  }
}

struct F32 {
  static constexpr int kBytes = 4;
  static __m256 load(const uint8_t* from) { return _mm256_load_ps(reinterpret_cast<const float*>(from)); }
};
struct F16 {
  static constexpr int kBytes = 2;
  static __m256 load(const uint8_t* from) { return load_f16(from); }
};
struct Bf16 {
  static constexpr int kBytes = 2;
  static __m256 load(const uint8_t* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
};

// All M rows of panel p: 2 M chains of fma, 8 of them hide the latency.
template <typename Element, int M>
void plain(const Tile& tile, const PlainInput& input, int p) {
  const uint8_t* panel = tile.panel + p * tile.panel_step;
  const float* x = input.x;
  __m256 acc[M][2];
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
#pragma GCC unroll 4
  for (int64_t i = 0; i < input.k; ++i) {
    const __m256 w0 = Element::load(panel), w1 = Element::load(panel + 8 * Element::kBytes);
    __builtin_prefetch(panel + kAhead);
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
      const __m256 value = _mm256_set1_ps(x[r * input.stride]);
      acc[r][0] = _mm256_fmadd_ps(value, w0, acc[r][0]);
      acc[r][1] = _mm256_fmadd_ps(value, w1, acc[r][1]);
    }
    panel += kPanel * Element::kBytes;
    ++x;
  }
  store<M>(tile, 0, p, acc);
}

template <typename Element>
void plain_any(const Tile& tile, const PlainInput& input) {
  for (int p = 0; p < tile.panels; ++p) {
    switch (tile.rows) {
      case 1:
        plain<Element, 1>(tile, input, p);
        break;
      case 2:
        plain<Element, 2>(tile, input, p);
        break;
      case 3:
        plain<Element, 3>(tile, input, p);
        break;
      case 4:
        plain<Element, 4>(tile, input, p);
        break;
      case 5:
        plain<Element, 5>(tile, input, p);
        break;
      default:
        plain<Element, 6>(tile, input, p);
        break;
    }
  }
}

}  // namespace

const LinearKernels kLinear = {blocks_any<Kind::q4_0>, blocks_any<Kind::q4_1>, blocks_any<Kind::q8_0>,
                               plain_any<F32>,         plain_any<F16>,         plain_any<Bf16>};

}  // namespace tessera::ops::avx2
