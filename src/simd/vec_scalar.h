// The vec names in portable C++: four lanes through the compiler's own vector type, which every target has
// (SSE2 on x86-64, plain code elsewhere). Include simd/vec.h instead.
#pragma once

namespace tessera::simd {
inline namespace TESSERA_SIMD_NAMESPACE {

inline constexpr int kLanes = 4;
inline constexpr const char* kName = "scalar";
inline constexpr bool kHasBf16Dot = false;

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));
typedef uint32_t Uint4 __attribute__((vector_size(16)));

struct F32 {
  Float4 v;
};
struct I32 {
  Int4 v;
};
struct Mask {
  Int4 v;  // -1 or 0
};

TESSERA_VEC F32 as_f32(I32 a) {
  return {reinterpret_cast<Float4>(a.v)};
}
TESSERA_VEC I32 as_i32(F32 a) {
  return {reinterpret_cast<Int4>(a.v)};
}
TESSERA_VEC I32 set1_i32(int32_t x) {
  return {Int4{x, x, x, x}};
}
TESSERA_VEC I32 iota_i32() {
  return {Int4{0, 1, 2, 3}};
}
TESSERA_VEC Mask first_n(int n) {
  return {iota_i32().v < set1_i32(n).v};
}

TESSERA_VEC F32 zero() {
  return {Float4{0, 0, 0, 0}};
}
TESSERA_VEC F32 set1(float x) {
  return {Float4{x, x, x, x}};
}
TESSERA_VEC F32 load(const float* p) {
  F32 a;
  __builtin_memcpy(&a.v, p, sizeof a.v);
  return a;
}
TESSERA_VEC F32 load_n(const float* p, int n) {
  F32 a = zero();
  for (int i = 0; i < n; ++i) a.v[i] = p[i];
  return a;
}
TESSERA_VEC void store(float* p, F32 a) {
  __builtin_memcpy(p, &a.v, sizeof a.v);
}
TESSERA_VEC void store_n(float* p, F32 a, int n) {
  for (int i = 0; i < n; ++i) p[i] = a.v[i];
}
TESSERA_VEC F32 operator+(F32 a, F32 b) {
  return {a.v + b.v};
}
TESSERA_VEC F32 operator-(F32 a, F32 b) {
  return {a.v - b.v};
}
TESSERA_VEC F32 operator*(F32 a, F32 b) {
  return {a.v * b.v};
}
TESSERA_VEC F32 operator/(F32 a, F32 b) {
  return {a.v / b.v};
}
TESSERA_VEC F32 fma(F32 a, F32 b, F32 c) {
  return {a.v * b.v + c.v};
}
TESSERA_VEC F32 fnma(F32 a, F32 b, F32 c) {
  return {c.v - a.v * b.v};
}

TESSERA_VEC Mask lt(F32 a, F32 b) {
  return {a.v < b.v};
}
TESSERA_VEC Mask le(F32 a, F32 b) {
  return {a.v <= b.v};
}
TESSERA_VEC Mask gt(F32 a, F32 b) {
  return {a.v > b.v};
}
TESSERA_VEC Mask ge(F32 a, F32 b) {
  return {a.v >= b.v};
}
TESSERA_VEC Mask lt(I32 a, I32 b) {
  return {a.v < b.v};
}
TESSERA_VEC Mask le(I32 a, I32 b) {
  return {a.v <= b.v};
}
TESSERA_VEC Mask gt(I32 a, I32 b) {
  return {a.v > b.v};
}
TESSERA_VEC Mask ge(I32 a, I32 b) {
  return {a.v >= b.v};
}
TESSERA_VEC Mask and_(Mask a, Mask b) {
  return {a.v & b.v};
}
TESSERA_VEC F32 select(Mask m, F32 a, F32 b) {
  return as_f32(I32{(as_i32(a).v & m.v) | (as_i32(b).v & ~m.v)});
}
TESSERA_VEC bool any(Mask m) {
  return (m.v[0] | m.v[1] | m.v[2] | m.v[3]) != 0;
}

TESSERA_VEC F32 max(F32 a, F32 b) {
  return select(gt(a, b), a, b);
}
TESSERA_VEC F32 min(F32 a, F32 b) {
  return select(lt(a, b), a, b);
}
TESSERA_VEC F32 abs(F32 a) {
  return as_f32(I32{as_i32(a).v & 0x7fffffff});
}
TESSERA_VEC F32 sqrt(F32 a) {
  for (int i = 0; i < kLanes; ++i) a.v[i] = __builtin_sqrtf(a.v[i]);
  return a;
}
// Adding 1.5 * 2^23 leaves no bit below 1, rounded to nearest even by the addition.
TESSERA_VEC F32 round(F32 a) {
  const F32 magic = set1(0x1.8p23f);
  return (a + magic) - magic;
}

TESSERA_VEC float reduce_add(F32 a) {
  return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
}
TESSERA_VEC float larger(float a, float b) {
  return a > b ? a : b;
}
TESSERA_VEC float smaller(float a, float b) {
  return a < b ? a : b;
}
TESSERA_VEC float reduce_max(F32 a) {
  return larger(larger(a.v[0], a.v[2]), larger(a.v[1], a.v[3]));
}
TESSERA_VEC float reduce_min(F32 a) {
  return smaller(smaller(a.v[0], a.v[2]), smaller(a.v[1], a.v[3]));
}

TESSERA_VEC I32 load_i32(const void* p) {
  I32 a;
  __builtin_memcpy(&a.v, p, sizeof a.v);
  return a;
}
TESSERA_VEC void store_i32(void* p, I32 a) {
  __builtin_memcpy(p, &a.v, sizeof a.v);
}
// Sums and products wrap, as the vector instructions do.
TESSERA_VEC I32 wrapped(Uint4 a) {
  return {reinterpret_cast<Int4>(a)};
}
TESSERA_VEC Uint4 bits_of(I32 a) {
  return reinterpret_cast<Uint4>(a.v);
}
TESSERA_VEC I32 operator+(I32 a, I32 b) {
  return wrapped(bits_of(a) + bits_of(b));
}
TESSERA_VEC I32 operator-(I32 a, I32 b) {
  return wrapped(bits_of(a) - bits_of(b));
}
TESSERA_VEC I32 operator*(I32 a, I32 b) {
  return wrapped(bits_of(a) * bits_of(b));
}
template <int n>
TESSERA_VEC I32 shift_left(I32 a) {
  return wrapped(bits_of(a) << n);
}
template <int n>
TESSERA_VEC I32 shift_right(I32 a) {
  return {a.v >> n};
}
TESSERA_VEC I32 and_(I32 a, I32 b) {
  return {a.v & b.v};
}
TESSERA_VEC I32 xor_(I32 a, I32 b) {
  return {a.v ^ b.v};
}
TESSERA_VEC I32 mul_high_u32(I32 a, I32 b) {
  I32 high;
  for (int i = 0; i < kLanes; ++i) {
    high.v[i] = static_cast<int32_t>(uint64_t{bits_of(a)[i]} * bits_of(b)[i] >> 32);
  }
  return high;
}
TESSERA_VEC F32 to_f32(I32 a) {
  return {__builtin_convertvector(a.v, Float4)};
}
// NaN and what an int32 cannot hold give 0x80000000, as the vector instructions do.
TESSERA_VEC I32 to_i32(F32 a) {
  I32 out = set1_i32(INT32_MIN);
  const F32 rounded = round(a);
  for (int i = 0; i < kLanes; ++i) {
    const float whole = __builtin_fabsf(a.v[i]) < 0x1p22f ? rounded.v[i] : a.v[i];
    if (whole >= -0x1p31f && whole < 0x1p31f) out.v[i] = static_cast<int32_t>(whole);
  }
  return out;
}
TESSERA_VEC I32 dot4(I32 acc, I32 a_u8, I32 b_i8) {
  for (int i = 0; i < kLanes; ++i) {
    const uint32_t a = static_cast<uint32_t>(a_u8.v[i]);
    const uint32_t b = static_cast<uint32_t>(b_i8.v[i]);
    for (int shift = 0; shift < 32; shift += 8) {
      acc.v[i] += static_cast<int32_t>((a >> shift) & 0xffu) * static_cast<int8_t>(b >> shift);
    }
  }
  return acc;
}

TESSERA_VEC F32 clamp_power(F32 x) {
  return max(set1(-127.0f), min(set1(128.0f), x));
}
// The factor is built from its bits: n = -127 gives 0 and n = 128 gives inf.
TESSERA_VEC F32 scale_by_power(F32 p, F32 n) {
  // Added to 2^23 + 127, an integral n stands in the low bits: cheaper here than a conversion.
  return p * as_f32(shift_left<23>(as_i32(n + set1(0x1p23f + 127.0f))));
}

TESSERA_VEC F32 low_bf16(I32 pairs) {
  return as_f32(shift_left<16>(pairs));
}
TESSERA_VEC F32 high_bf16(I32 pairs) {
  return as_f32(wrapped(bits_of(pairs) & 0xffff0000u));
}
TESSERA_VEC I32 keep_low(I32 pairs) {
  return wrapped(bits_of(pairs) & 0xffffu);
}
TESSERA_VEC F32 load_bf16_n(const uint16_t* p, int n) {
  Uint4 bits = {0, 0, 0, 0};
  for (int i = 0; i < n; ++i) bits[i] = static_cast<uint32_t>(p[i]) << 16;
  return as_f32(wrapped(bits));
}
TESSERA_VEC F32 load_bf16(const uint16_t* p) {
  return load_bf16_n(p, kLanes);
}
TESSERA_VEC void store_bf16_n(uint16_t* p, F32 a, int n) {
  const Uint4 bits = bits_of(as_i32(a));
  const Uint4 rounded = bits + (0x7fffu + ((bits >> 16) & 1u));
  const Uint4 quiet = bits | 0x400000u;
  for (int i = 0; i < n; ++i) {
    const bool nan = (bits[i] & 0x7fffffffu) > 0x7f800000u;
    p[i] = static_cast<uint16_t>((nan ? quiet[i] : rounded[i]) >> 16);
  }
}
TESSERA_VEC void store_bf16(uint16_t* p, F32 a) {
  store_bf16_n(p, a, kLanes);
}
TESSERA_VEC void store_bf16_pair(uint16_t* p, F32 low, F32 high) {
  store_bf16(p, low);
  store_bf16(p + kLanes, high);
}

TESSERA_VEC F32 load_f16(const uint16_t* p) {
  F32 a;
  for (int i = 0; i < kLanes; ++i) {
    const uint32_t sign = static_cast<uint32_t>(p[i] & 0x8000u) << 16;
    const uint32_t magnitude = p[i] & 0x7fffu;
    if (magnitude < 0x400u) {  // zero and subnormals: a multiple of 2^-24
      const float value = static_cast<float>(magnitude) * 0x1p-24f;
      a.v[i] = sign != 0 ? -value : value;
      continue;
    }
    const uint32_t bits =
        sign | (magnitude >= 0x7c00u ? 0x7f800000u | (magnitude << 13) : (magnitude << 13) + 0x38000000u);
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    a.v[i] = value;
  }
  return a;
}
TESSERA_VEC void store_f16(uint16_t* p, F32 a) {
  for (int i = 0; i < kLanes; ++i) {
    uint32_t bits;
    const float lane = a.v[i];
    __builtin_memcpy(&bits, &lane, sizeof bits);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
      half = 0x7e00u;
    } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or more
      half = 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // a multiple of 2^-24: the addition of 0.5 rounds it
      float value;
      __builtin_memcpy(&value, &magnitude, sizeof value);
      value += 0.5f;
      __builtin_memcpy(&half, &value, sizeof half);
      half -= 0x3f000000u;
    } else {
      half = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
    }
    p[i] = static_cast<uint16_t>(sign | half);
  }
}

TESSERA_VEC I32 load_i8(const int8_t* p) {
  return {Int4{p[0], p[1], p[2], p[3]}};
}
TESSERA_VEC I32 load_u8(const uint8_t* p) {
  return {Int4{p[0], p[1], p[2], p[3]}};
}
TESSERA_VEC void store_i8(int8_t* p, I32 a) {
  for (int i = 0; i < kLanes; ++i) {
    p[i] = static_cast<int8_t>(a.v[i] < -128 ? -128 : a.v[i] > 127 ? 127 : a.v[i]);
  }
}

TESSERA_VEC void prefetch_near(const void* p) {
  __builtin_prefetch(p, 0, 3);
}
TESSERA_VEC void prefetch_far(const void* p) {
  __builtin_prefetch(p, 0, 2);
}

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::simd
