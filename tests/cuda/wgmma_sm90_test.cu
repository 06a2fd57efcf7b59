// Every function of common/wgmma.cuh, over operands that lie as the kernels lay them, against double
// precision: over one k16 step and over several through the descriptor steps of common/tile.cuh.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "attention/cuda/common/ptx.cuh"
#include "attention/cuda/common/tile.cuh"
#include "attention/cuda/common/wgmma.cuh"
#include "tessera/dtype.h"
#include "tests/cuda/support/device_array.h"

namespace tessera::attention::cuda {
namespace {

using cuda_test::DeviceArray;

constexpr int kSharedBytes = 128 * 1024;

// One warpgroup: D [64][N] = A [64][16 kSteps] B + (accumulate ? D : 0). a: [64][k]; b: [N][k], or [k][N]
// with kTranspose.
template <typename T, int N, int kTranspose, bool kRegisters, int kSteps>
__global__ void __launch_bounds__(128, 1)
    wgmma_kernel(const uint16_t* a, const uint16_t* b, float* d, uint32_t accumulate) {
  constexpr int K = 16 * kSteps;
  constexpr int kAPanels = (K + 63) / 64;
  constexpr int kBRows = kTranspose ? K : N, kBColumns = kTranspose ? N : K;
  extern __shared__ uint8_t raw[];
  const uint32_t a_tile = (shared_address(raw) + 1023) & ~1023u;
  const uint32_t b_tile = a_tile + kAPanels * 64 * 128;
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, warp = thread >> 5;
  const auto fill = [&](uint32_t tile, auto offset, const uint16_t* from, int rows, int columns) {
    for (int i = thread; i < rows * columns; i += 128) {
      const int row = i / columns, column = i % columns;
      const uint32_t at = tile + offset(row, column / 8) + column % 8 * 2;
      asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"(from[i]) : "memory");
    }
  };
  fill(
      a_tile, [](int row, int group) { return swizzled_offset<64>(row, group); }, a, 64, K);
  fill(
      b_tile, [](int row, int group) { return swizzled_offset<kBRows>(row, group); }, b, kBRows, kBColumns);
  fence_async_shared();
  __syncthreads();

  uint32_t fragments[kSteps][4];
  if constexpr (kRegisters) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 16 * warp + lane / 4 + 8 * (i % 2), column = 16 * step + 2 * (lane % 4) + 8 * (i / 2);
        fragments[step][i] = a[row * K + column] | static_cast<uint32_t>(a[row * K + column + 1]) << 16;
      }
    }
  }
  float acc[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    const int row = 16 * warp + lane / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
    acc[i] = d[row * N + column];
  }
  const uint64_t a_descriptor = descriptor_k_major(a_tile);
  const uint64_t b_descriptor = kTranspose ? descriptor_mn_major<kBRows>(b_tile) : descriptor_k_major(b_tile);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const uint64_t b_at =
        b_descriptor + (kTranspose ? descriptor_mn_step(step) : descriptor_k_step<kBRows>(step));
    if constexpr (kRegisters) {
      Wgmma<T, N, kTranspose>::rs(acc, fragments[step], b_at, step == 0 ? accumulate : 1);
    } else {
      Wgmma<T, N, kTranspose>::ss(acc, a_descriptor + descriptor_k_step<64>(step), b_at,
                                  step == 0 ? accumulate : 1);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < N / 2; ++i) asm volatile("" : "+f"(acc[i])::"memory");
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    const int row = 16 * warp + lane / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
    d[row * N + column] = acc[i];
  }
}

uint16_t bits_of(DType type, float x) {
  return type == DType::f16 ? f32_to_f16(x) : f32_to_bf16(x);
}
float value_of(DType type, uint16_t bits) {
  return type == DType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

// Integers of up to 3 in size: every sum is exact in f32 whatever its order, so equality is asked for.
// Normal numbers: a k16 step adds 16 exact products and the accumulator, each aligned to the largest and cut
// off at no less than f32's 23 bits below it: at most 17 * 2^-22 of the sum of the sizes.
enum class Numbers { integers, normal };

template <typename T, int N, int kTranspose, bool kRegisters, int kSteps>
void check_product(uint32_t seed) {
  constexpr int K = 16 * kSteps;
  constexpr DType kType = std::is_same_v<T, __half> ? DType::f16 : DType::bf16;
  const auto kernel = wgmma_kernel<T, N, kTranspose, kRegisters, kSteps>;
  ASSERT_EQ(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
            cudaSuccess);
  for (const Numbers numbers : {Numbers::integers, Numbers::normal}) {
    for (const uint32_t accumulate : {0u, 1u}) {
      const std::string name = std::string(kType == DType::f16 ? "f16" : "bf16") + " n" + std::to_string(N) +
                               (kTranspose ? " MN-major" : " K-major") + (kRegisters ? " RS" : " SS") + " k" +
                               std::to_string(K) + " scale-d " + std::to_string(accumulate) +
                               (numbers == Numbers::integers ? " integers" : " normal") + " seed " +
                               std::to_string(seed);
      std::mt19937 random(seed++);
      std::normal_distribution<float> normal;
      const auto number = [&] {
        return numbers == Numbers::integers ? static_cast<float>(static_cast<int>(random() % 7) - 3)
                                            : normal(random);
      };
      std::vector<uint16_t> a(64 * K), b(static_cast<size_t>(N) * K);
      for (uint16_t& x : a) x = bits_of(kType, number());
      for (uint16_t& x : b) x = bits_of(kType, number());
      // Without scale-d what D was must not matter: NaN.
      std::vector<float> d(64 * N, std::nanf(""));
      if (accumulate != 0) {
        for (float& x : d) x = number();
      }
      const DeviceArray<uint16_t> a_at(a), b_at(b);
      const DeviceArray<float> d_at(d);
      kernel<<<1, 128, kSharedBytes>>>(a_at.data(), b_at.data(), d_at.data(), accumulate);
      if (!cuda_test::ran("wgmma", name)) return;
      std::vector<double> want(d.size()), bound(d.size());
      for (int m = 0; m < 64; ++m) {
        for (int n = 0; n < N; ++n) {
          const size_t at = static_cast<size_t>(m * N + n);
          double sum = accumulate != 0 ? d[at] : 0.0, sizes = std::abs(sum);
          for (int k = 0; k < K; ++k) {
            const double product =
                double{value_of(kType, a[static_cast<size_t>(m * K + k)])} *
                double{value_of(kType, b[static_cast<size_t>(kTranspose ? k * N + n : n * K + k)])};
            sum += product;
            sizes += std::abs(product);
          }
          want[at] = sum;
          bound[at] = numbers == Numbers::integers ? 0.0 : kSteps * 17 * std::ldexp(sizes, -22);
        }
      }
      if (!cuda_test::expect_near(name, d_at.read(), want, bound, N)) return;
    }
  }
}

// Steps: one; those of a whole panel and beyond it; and as many rows of V as the kernels' key blocks have.
template <typename T, int N>
void check_shape(uint32_t seed) {
  check_product<T, N, 0, false, 1>(seed + 100);
  check_product<T, N, 0, false, 8>(seed + 200);
  check_product<T, N, 0, true, 1>(seed + 300);
  check_product<T, N, 0, true, 8>(seed + 400);
  check_product<T, N, 1, false, 1>(seed + 500);
  check_product<T, N, 1, false, 8>(seed + 600);
  check_product<T, N, 1, true, 1>(seed + 700);
  check_product<T, N, 1, true, 8>(seed + 800);
}

template <typename T>
class WgmmaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto device = tessera::cuda::device_properties(0);
    ASSERT_TRUE(device.ok());
    if (device->sm() != 90) GTEST_SKIP() << "wgmma is sm_90's";
  }
};
using Types = ::testing::Types<__nv_bfloat16, __half>;
TYPED_TEST_SUITE(WgmmaTest, Types);

TYPED_TEST(WgmmaTest, N64) {
  check_shape<TypeParam, 64>(1);
}
TYPED_TEST(WgmmaTest, N80) {
  check_shape<TypeParam, 80>(2);
}
TYPED_TEST(WgmmaTest, N96) {
  check_shape<TypeParam, 96>(3);
}
TYPED_TEST(WgmmaTest, N128) {
  check_shape<TypeParam, 128>(4);
}
// As kernels use them: 256 dims of 64 and of 80 keys, 96 dims in a panel and a half, V of 80 and of 64 keys.
TYPED_TEST(WgmmaTest, StepsOfTheKernels) {
  check_product<TypeParam, 80, 0, false, 16>(5000);
  check_product<TypeParam, 64, 0, false, 16>(5010);
  check_product<TypeParam, 128, 0, true, 6>(5020);
  check_product<TypeParam, 128, 1, true, 5>(5030);
  check_product<TypeParam, 64, 1, true, 4>(5040);
  check_product<TypeParam, 128, 1, true, 4>(5050);
}

}  // namespace
}  // namespace tessera::attention::cuda
