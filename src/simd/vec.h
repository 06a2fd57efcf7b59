// Vectors of f32 and i32 lanes with the same names on every instruction set.
//
// A kernel is written once over these names and compiled once per ISA, in translation units named
// *_scalar.cc,
// *_avx2.cc, *_avx512.cc, *_avx512bf16.cc, *_amx.cc (cmake/Layers.cmake gives them their flags). The flags of
// the TU pick the header; everything lands in the namespace TESSERA_SIMD_NAMESPACE (scalar, avx2, avx512,
// avx512bf16, amx), which is inline here, so kernels say simd::F32. A kernel puts its own code into a
// namespace of that name too:
//
//   namespace tessera::ops::TESSERA_SIMD_NAMESPACE { ... }
//
// because two TUs that define one inline function under different flags would break the one-definition rule,
// and the linker might keep the AVX-512 copy for every caller. For the same reason such a TU keeps to plain
// pointers and structs: no std:: template or inline function that another TU might share.
//
// Names (F32, I32: kLanes lanes; Mask: one truth a lane):
//   kLanes, kName, kHasBf16Dot
//   F32   zero(), set1(x), load(p), load_n(p, n), store(p, v), store_n(p, v, n); + - * /; fma(a, b, c) = a *
//   b + c,
//         fnma(a, b, c) = c - a * b, max, min, abs, sqrt, round (to nearest even; |x| < 2^22 outside AVX-512)
//         scale_by_power(p, n) = p * 2^n for integral n within what clamp_power(x) leaves (all of it on
//         AVX-512, -127 .. 128 elsewhere)
//   Mask  lt, le, gt, ge (F32 or I32 operands), first_n(n), select(mask, a, b) = mask ? a : b, any(mask),
//   and_(m, m) fold  reduce_add, reduce_max, reduce_min: a tree that halves the lanes, the same in every call
//   I32   set1_i32(x), load_i32(p), store_i32(p, v), iota_i32(); + - *; shift_left<n>, shift_right<n>
//   (arithmetic),
//         and_, xor_, mul_high_u32 (the high half of the unsigned product), to_f32, to_i32 (rounds to nearest
//         even), as_f32, as_i32 (the bits); dot4(acc, u8 a, i8 b)
//   bf16  load_bf16(p), store_bf16(p, v) (to nearest even, NaN stays NaN), load_bf16_n, store_bf16_n,
//   store_bf16_pair(p, low, high); low_bf16(pairs),
//         high_bf16(pairs): the two halves of each 32-bit lane, widened; keep_low(pairs): the high halves
//         zeroed; dot2_bf16(acc, a, b) = acc + a.low * b.low + a.high * b.high where kHasBf16Dot
//   f16   load_f16(p), store_f16(p, v)
//   i8    load_i8(p), load_u8(p) (kLanes bytes, widened), store_i8(p, v) (saturates)
//   prefetch_near(p) to L1, prefetch_far(p) to L2
// max(a, b) and min(a, b) give b when either is NaN, so max(limit, x) keeps a NaN of x. The scalar form
// rounds the product of fma; the others do not: bits are promised per ISA. load_n fills the lanes from n on
// with zero and reads nothing beyond p[n - 1]; 0 <= n <= kLanes. More (exp2, exp, tanh) in vec_math.h.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(TESSERA_TILES)
#define TESSERA_SIMD_NAMESPACE amx
#elif defined(__AVX512F__) && defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define TESSERA_SIMD_NAMESPACE avx512bf16
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && \
    defined(__AVX512VNNI__)
#define TESSERA_SIMD_NAMESPACE avx512
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define TESSERA_SIMD_NAMESPACE avx2
#else
#define TESSERA_SIMD_NAMESPACE scalar
#endif

// Every function of a vec header; small enough that a call would cost more than the work.
#define TESSERA_VEC static inline __attribute__((always_inline))

namespace tessera::simd {
inline namespace TESSERA_SIMD_NAMESPACE {}
}  // namespace tessera::simd

#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#include "simd/vec_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "simd/vec_avx2.h"
#else
#include "simd/vec_scalar.h"
#endif
