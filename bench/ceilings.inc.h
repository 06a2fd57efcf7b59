#include "bench/ceilings_kernels.h"
#include "simd/vec.h"
#if defined(TESSERA_TILES)
#include "attention/cpu/amx_tiles.inc.h"
#endif

namespace tessera::bench {
inline namespace TESSERA_SIMD_NAMESPACE {

using namespace simd;
constexpr int kChains = 12;

// The asm keeps the compiler from seeing that every turn is the same.
float f32_turns(int64_t turns) {
  F32 acc[kChains];
  F32 a = set1(0.999f), b = set1(1e-3f);
  for (int i = 0; i < kChains; ++i) acc[i] = set1(static_cast<float>(i));
  for (int64_t turn = 0; turn < turns; ++turn) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) acc[i] = fma(acc[i], a, b);
    asm volatile("" : "+x"(a.v), "+x"(b.v));
  }
  F32 sum = zero();
  for (int i = 0; i < kChains; ++i) sum = sum + acc[i];
  return reduce_add(sum);
}

#if defined(TESSERA_TILES)
// Four products that wait for none of each other, as in the kernels; the operands stay in their registers.
constexpr double kBf16Flops = 4.0 * 2 * 16 * 16 * 32;
float bf16_turns(int64_t turns) {
  using namespace attention;
  alignas(64) uint16_t operand[16 * 32];
  float sums[16 * 64];
  for (uint16_t& x : operand) x = 0x3800;
  enter_tiles();
  tile_load<4>(operand, 64);
  tile_load<6>(operand, 64);
  for (int64_t turn = 0; turn < turns; ++turn) {
    tile_multiply_add<0, 4, 6>();
    tile_multiply_add<1, 4, 6>();
    tile_multiply_add<2, 4, 6>();
    tile_multiply_add<3, 4, 6>();
  }
  store_sums<4>(sums, 256);
  leave_tiles();
  return sums[0];
}
#elif defined(__AVX512BF16__)
constexpr double kBf16Flops = 4.0 * kChains * kLanes;
float bf16_turns(int64_t turns) {
  F32 acc[kChains];
  I32 a = set1_i32(0x3f7f3f7f), b = set1_i32(0x38003800);
  for (int i = 0; i < kChains; ++i) acc[i] = set1(static_cast<float>(i));
  for (int64_t turn = 0; turn < turns; ++turn) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) acc[i] = dot2_bf16(acc[i], a, b);
    asm volatile("" : "+x"(a.v), "+x"(b.v));
  }
  F32 sum = zero();
  for (int i = 0; i < kChains; ++i) sum = sum + acc[i];
  return reduce_add(sum);
}
#endif

float int8_turns(int64_t turns) {
  I32 acc[kChains];
  I32 a = set1_i32(0x01020304), b = set1_i32(0x05060708);
  for (int i = 0; i < kChains; ++i) acc[i] = set1_i32(i);
  for (int64_t turn = 0; turn < turns; ++turn) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) acc[i] = dot4(acc[i], a, b);
    asm volatile("" : "+x"(a.v), "+x"(b.v));
  }
  I32 sum = set1_i32(0);
  for (int i = 0; i < kChains; ++i) sum = sum + acc[i];
  return reduce_add(to_f32(sum));
}

float read_all(const float* data, size_t count) {
  F32 acc[8];
  for (int i = 0; i < 8; ++i) acc[i] = zero();
  for (size_t at = 0; at + 8 * kLanes <= count; at += 8 * kLanes) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) acc[i] = acc[i] + load(data + at + static_cast<size_t>(i) * kLanes);
#pragma GCC unroll 8
    for (int line = 0; line < 8 * kLanes; line += 16) {
      prefetch_near(data + at + line + 512);
      prefetch_far(data + at + line + 3072);
    }
  }
  F32 sum = zero();
  for (int i = 0; i < 8; ++i) sum = sum + acc[i];
  return reduce_add(sum);
}

}  // namespace TESSERA_SIMD_NAMESPACE

const CeilingKernels TESSERA_CEILINGS = {2.0 * kChains * kLanes,
                                         f32_turns,
#if defined(__AVX512BF16__)
                                         kBf16Flops,
                                         bf16_turns,
#else
                                         0,
                                         nullptr,
#endif
                                         8.0 * kChains* kLanes,
                                         int8_turns,
                                         read_all};

}  // namespace tessera::bench
