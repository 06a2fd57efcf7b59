// One VecProbe table for the ISA of the including TU; TESSERA_PROBE names it.
#include "simd/vec_math.h"
#include "tests/simd/vec_probe.h"

namespace tessera::simd {
inline namespace TESSERA_SIMD_NAMESPACE {

template <F32 (*f)(F32)>
void map(const float* x, float* y, int n) {
  for (int i = 0; i < n; i += kLanes) store(y + i, f(load(x + i)));
}

void arithmetic(const float* pa, const float* pb, const float* pc, float* out) {
  const F32 a = load(pa), b = load(pb), c = load(pc);
  const F32 results[10] = {a + b,         a - b,     a * b,     a / b,        fma(a, b, c),
                           fnma(a, b, c), max(a, b), min(a, b), sqrt(abs(a)), abs(a)};
  for (int i = 0; i < 10; ++i) store(out + i * kLanes, results[i]);
}

void compare(const float* pa, const float* pb, float* out) {
  const F32 a = load(pa), b = load(pb), one = set1(1.0f), none = zero();
  const Mask masks[5] = {lt(a, b), le(a, b), gt(a, b), ge(a, b), and_(le(a, b), ge(a, b))};
  for (int i = 0; i < 5; ++i) store(out + i * kLanes, select(masks[i], one, none));
}

void tails(const float* x, float* y, int n) {
  store_n(y, load_n(x, n), n);
}

void reduce(const float* x, float* out) {
  out[0] = reduce_add(load(x));
  out[1] = reduce_max(load(x));
  out[2] = reduce_min(load(x));
}

void bf16(const float* x, uint16_t* narrow, float* wide, int n) {
  for (int i = 0; i < n; i += kLanes) {
    store_bf16(narrow + i, load(x + i));
    store(wide + i, load_bf16(narrow + i));
  }
}

void bf16_tail(const float* x, uint16_t* narrow, float* wide, int n) {
  store_bf16_n(narrow, load_n(x, n), n);
  store(wide, load_bf16_n(narrow, n));
}

void bf16_pairs(const uint32_t* pairs, float* low, float* high) {
  store(low, low_bf16(load_i32(pairs)));
  store(high, high_bf16(load_i32(pairs)));
}

#if defined(__AVX512BF16__)
void dot2(const float* acc, const uint32_t* a, const uint32_t* b, float* out) {
  store(out, dot2_bf16(load(acc), load_i32(a), load_i32(b)));
}
#endif

void f16(const float* x, uint16_t* narrow, float* wide, int n) {
  for (int i = 0; i < n; i += kLanes) {
    store_f16(narrow + i, load(x + i));
    store(wide + i, load_f16(narrow + i));
  }
}

void integers(const int32_t* pa, const int32_t* pb, int32_t* out) {
  const I32 a = load_i32(pa), b = load_i32(pb);
  const I32 ones = set1_i32(1);
  const I32 results[10] = {a + b,
                           a - b,
                           a * b,
                           shift_left<3>(a),
                           shift_right<3>(a),
                           and_(a, b),
                           to_i32(to_f32(shift_right<8>(a))),
                           as_i32(select(gt(a, b), as_f32(ones), zero())),
                           xor_(a, b),
                           mul_high_u32(a, b)};
  for (int i = 0; i < 10; ++i) store_i32(out + i * kLanes, results[i]);
}

void bytes(const int8_t* s, const uint8_t* u, const int32_t* wide, int32_t* out, int8_t* narrow) {
  store_i32(out, load_i8(s));
  store_i32(out + kLanes, load_u8(u));
  store_i8(narrow, load_i32(wide));
}

void dot4_bytes(const int32_t* acc, const uint8_t* a, const int8_t* b, int32_t* out) {
  store_i32(out, dot4(load_i32(acc), load_i32(a), load_i32(b)));
}

}  // namespace TESSERA_SIMD_NAMESPACE

extern const VecProbe TESSERA_PROBE;
const VecProbe TESSERA_PROBE = {kName,    kLanes,    kHasBf16Dot, map<exp2>,  map<exp2_coarse>,
                                map<exp>, map<tanh>, map<round>,  arithmetic, compare,
                                tails,    reduce,    bf16,        bf16_tail,  bf16_pairs,
#if defined(__AVX512BF16__)
                                dot2,
#else
                                nullptr,
#endif
                                f16,      integers,  bytes,       dot4_bytes};

}  // namespace tessera::simd
