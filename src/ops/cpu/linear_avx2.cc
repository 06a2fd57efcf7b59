// The linear kernels in AVX2 and FMA: two ymm an output vector, tiles of up to 4 rows x 16 outputs.
//
// Nibbles: vpmaddubsw adds two products in 16 bits, and a whole block fits there: 8 groups * 2 * 15 * 127 =
// 30,480 < 32,768. So a block costs one vpmaddubsw and one 16-bit addition a group and a single widening at
// its end. 8-bit weights would saturate (2 * 255 * 127), so the sign moves to the activation: 2 * 128 * 127 =
// 32,512 fits, and each group is widened at once.
#include "ops/cpu/linear_avx2.h"

#include <immintrin.h>

namespace tessera::ops::avx2 {
namespace {

constexpr int64_t kAhead = 2560;  // as in the AVX-512 form

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

inline void store(float* y, __m256 value, bool add) {
  _mm256_storeu_ps(y, add ? _mm256_add_ps(_mm256_loadu_ps(y), value) : value);
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

// Rows [first, first + M) of the tile.
template <Kind kKind, int M>
void blocks(const BlockArgs& args, int first) {
  constexpr int kGroups = kKind == Kind::q8_0 ? 8 : 4;
  constexpr int kScaleBytes = kKind == Kind::q4_1 ? 64 : 32;
  const int64_t quant_bytes = args.blocks * kGroups * 64;
  const int64_t scale_bytes = (args.blocks * kScaleBytes + 63) / 64 * 64;
  const int64_t field = args.rows * 4, step = args.rows * kQuantBytes;
  const uint8_t* scale = args.panel + quant_bytes;
  const uint8_t* rows = args.tile + first * kQuantBlock;
  const uint8_t* fields = args.tile + args.rows * kQuantBlock + first * 4;
  __m256 acc[M][2];
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
  for (int64_t at = 0; at < quant_bytes; at += kGroups * 64) {
    const uint8_t* groups = args.panel + at;
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
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
    float* y = args.y + (first + r) * args.y_stride;
    store(y, acc[r][0], args.add);
    store(y + 8, acc[r][1], args.add);
  }
}

template <Kind kKind>
void blocks_any(const BlockArgs& args) {
  int first = 0;
  for (; args.rows - first >= 4; first += 4) blocks<kKind, 4>(args, first);
  switch (args.rows - first) {
    case 3:
      return blocks<kKind, 3>(args, first);
    case 2:
      return blocks<kKind, 2>(args, first);
    case 1:
      return blocks<kKind, 1>(args, first);
    default:
      return;
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

// Rows [first, first + M), one panel: 2 M chains of fma, 8 of them hide the latency.
template <typename Element, int M>
void plain(const PlainArgs& args, int first, int index) {
  const uint8_t* panel = args.panel + index * args.panel_step;
  const float* x = args.x + first * args.x_stride;
  __m256 acc[M][2];
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
#pragma GCC unroll 4
  for (int64_t i = 0; i < args.k; ++i) {
    const __m256 w0 = Element::load(panel), w1 = Element::load(panel + 8 * Element::kBytes);
    __builtin_prefetch(panel + kAhead);
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
      const __m256 value = _mm256_set1_ps(x[r * args.x_stride]);
      acc[r][0] = _mm256_fmadd_ps(value, w0, acc[r][0]);
      acc[r][1] = _mm256_fmadd_ps(value, w1, acc[r][1]);
    }
    panel += kPanel * Element::kBytes;
    ++x;
  }
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
    float* y = args.y + (first + r) * args.y_stride + index * kPanel;
    store(y, acc[r][0], args.add);
    store(y + 8, acc[r][1], args.add);
  }
}

template <typename Element>
void plain_any(const PlainArgs& args) {
  for (int p = 0; p < args.panels; ++p) {
    int first = 0;
    for (; args.rows - first >= 4; first += 4) plain<Element, 4>(args, first, p);
    switch (args.rows - first) {
      case 3:
        plain<Element, 3>(args, first, p);
        break;
      case 2:
        plain<Element, 2>(args, first, p);
        break;
      case 1:
        plain<Element, 1>(args, first, p);
        break;
      default:
        break;
    }
  }
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

}  // namespace tessera::ops::avx2
