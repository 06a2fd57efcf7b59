// common/mma.cuh and common/tile_copy.cuh: fragments by every way of loading them, products against double
// precision, tiles in and out of shared memory.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "attention/cuda/common/mma_tiles.cuh"
#include "attention/cuda/common/tile_copy.cuh"
#include "tests/cuda/support/device_array.h"

namespace tessera::attention::cuda {
namespace {

using cuda_test::DeviceArray;

uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
float bits_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
// As the tensor cores get it: tf32 is rounded to 10 bits of mantissa, halves away from zero.
float operand(DType type, float x) {
  if (type == DType::f16) return f16_to_f32(f32_to_f16(x));
  if (type == DType::bf16) return bf16_to_f32(f32_to_bf16(x));
  return bits_float((float_bits(x) + 0x1000u) & ~0x1fffu);
}

// Elements of a dtype as bytes.
std::vector<uint8_t> packed(DType type, const std::vector<float>& values) {
  const size_t size = type == DType::f32 ? 4 : 2;
  std::vector<uint8_t> bytes(values.size() * size);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half = type == DType::f16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
    std::memcpy(bytes.data() + i * size, type == DType::f32 ? static_cast<const void*>(&values[i]) : &half,
                size);
  }
  return bytes;
}

// [rows][row_bytes] to rows `pitch` bytes apart.
__device__ void place(uint8_t* shared, int pitch, const uint8_t* from, int rows, int row_bytes) {
  for (int i = static_cast<int>(threadIdx.x); i < rows * row_bytes; i += static_cast<int>(blockDim.x))
    shared[i / row_bytes * pitch + i % row_bytes] = from[i];
}

constexpr int kM = 2, kN = 3, kSteps = 4;  // 32 x 48, four steps along k

// c [16 kM][16 kN] += a b by one warp.
template <DType kType, Stored kStoredA, Stored kStoredB>
__global__ void multiply_kernel(const uint8_t* a, const uint8_t* b, float* c) {
  constexpr int K = kSteps * kStep<kType>, M = 16 * kM, N = 16 * kN;
  constexpr int kARows = kStoredA == Stored::k_last ? M : K, kAColumns = kStoredA == Stored::k_last ? K : M;
  constexpr int kBRows = kStoredB == Stored::k_last ? N : K, kBColumns = kStoredB == Stored::k_last ? K : N;
  constexpr int kPitchA = kPitch<kType, kAColumns>, kPitchB = kPitch<kType, kBColumns>;
  __shared__ __align__(16) uint8_t tile_a[kARows * kPitchA], tile_b[kBRows * kPitchB];
  place(tile_a, kPitchA, a, kARows, kAColumns * kBytes<kType>);
  place(tile_b, kPitchB, b, kBRows, kBColumns * kBytes<kType>);
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x);
  const auto at = [&](int m, int i) {
    return (16 * m + lane / 4 + 8 * (i / 2 % 2)) * N + 8 * (i / 4) + 2 * (lane % 4) + i % 2;
  };
  float acc[kM][8 * kN];
  for (int m = 0; m < kM; ++m)
    for (int i = 0; i < 8 * kN; ++i) acc[m][i] = c[at(m, i)];
  multiply<kType, kM, kN, kSteps, kStoredA, kPitchA, kStoredB, kPitchB>(
      acc, lane_a<kType, kStoredA, kPitchA>(shared_address(tile_a)),
      lane_b<kType, kStoredB, kPitchB>(shared_address(tile_b)));
  for (int m = 0; m < kM; ++m)
    for (int i = 0; i < 8 * kN; ++i) c[at(m, i)] = acc[m][i];
}

// c [16][16 kN] = p [16][K] v [K][16 kN], p out of accumulators: what attention does with probabilities.
template <DType kType>
__global__ void second_product_kernel(const float* p, const uint8_t* v, float* c) {
  constexpr int K = kSteps * kStep<kType>, N = 16 * kN;
  constexpr int kPitchV = kPitch<kType, N>;
  __shared__ __align__(16) uint8_t tile[K * kPitchV];
  place(tile, kPitchV, v, K, N * kBytes<kType>);
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x);
  float probabilities[K / 2], acc[8 * kN];
#pragma unroll
  for (int i = 0; i < K / 2; ++i)
    probabilities[i] = p[(lane / 4 + 8 * (i / 2 % 2)) * K + 8 * (i / 4) + 2 * (lane % 4) + i % 2];
#pragma unroll
  for (int i = 0; i < 8 * kN; ++i) acc[i] = 0.0f;
  const uint32_t address = lane_b_permuted<kType, kPitchV>(shared_address(tile));
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    uint32_t a[4], b[4];
    fragment_of<kType>(a, probabilities, step);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      load_b_permuted<kType, kPitchV>(b, address, n, step);
      mma<kType>(acc + 8 * n, a, b[0], b[1]);
      mma<kType>(acc + 8 * n + 4, a, b[2], b[3]);
    }
  }
#pragma unroll
  for (int i = 0; i < 8 * kN; ++i)
    c[(lane / 4 + 8 * (i / 2 % 2)) * N + 8 * (i / 4) + 2 * (lane % 4) + i % 2] = acc[i];
}

// Random operands; integers of up to 3 are exact in every dtype and every order of additions. Otherwise a
// step adds at most 16 exact products and the accumulator, cut off no less than 22 bits below the largest.
struct Operands {
  std::mt19937 random;
  bool integers;
  std::vector<float> make(size_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& x : values)
      x = integers ? static_cast<float>(static_cast<int>(random() % 7) - 3) : normal(random);
    return values;
  }
};
double step_error(double sizes) {
  return kSteps * 17 * std::ldexp(sizes, -22);
}

template <DType kType, Stored kStoredA, Stored kStoredB>
void check_multiply() {
  constexpr int K = kSteps * kStep<kType>, M = 16 * kM, N = 16 * kN;
  for (const bool integers : {true, false}) {
    for (const uint32_t seed : {1u, 2u}) {
      const std::string what = std::string(name(kType)) +
                               (kStoredA == Stored::k_last ? " a[m][k]" : " a[k][m]") +
                               (kStoredB == Stored::k_last ? " b[n][k]" : " b[k][n]") +
                               (integers ? " integers" : " normal") + " seed " + std::to_string(seed);
      Operands make{std::mt19937(seed), integers};
      const std::vector<float> a = make.make(M * K), b = make.make(N * K), c = make.make(M * N);
      const DeviceArray<uint8_t> a_at(packed(kType, a)), b_at(packed(kType, b));
      const DeviceArray<float> c_at(c);
      multiply_kernel<kType, kStoredA, kStoredB><<<1, 32>>>(a_at.data(), b_at.data(), c_at.data());
      if (!cuda_test::ran("multiply", what)) return;
      std::vector<double> want(M * N), bound(M * N);
      for (int m = 0; m < M; ++m) {
        for (int n = 0; n < N; ++n) {
          const size_t at = static_cast<size_t>(m * N + n);
          double sum = c[at], sizes = std::abs(sum);
          for (int k = 0; k < K; ++k) {
            const float x =
                operand(kType, a[static_cast<size_t>(kStoredA == Stored::k_last ? m * K + k : k * M + m)]);
            const float y =
                operand(kType, b[static_cast<size_t>(kStoredB == Stored::k_last ? n * K + k : k * N + n)]);
            sum += double{x} * y;
            sizes += std::abs(double{x} * y);
          }
          want[at] = sum;
          bound[at] = integers ? 0.0 : step_error(sizes);
        }
      }
      if (!cuda_test::expect_near(what, c_at.read(), want, bound, N)) return;
    }
  }
}
template <DType kType>
void check_every_multiply() {
  check_multiply<kType, Stored::k_last, Stored::k_last>();
  check_multiply<kType, Stored::k_last, Stored::k_first>();
  check_multiply<kType, Stored::k_first, Stored::k_last>();
  check_multiply<kType, Stored::k_first, Stored::k_first>();
}

TEST(Mma, ProductsOfBf16) {
  check_every_multiply<DType::bf16>();
}
TEST(Mma, ProductsOfF16) {
  check_every_multiply<DType::f16>();
}
TEST(Mma, ProductsOfF32AreOfTf32) {
  check_every_multiply<DType::f32>();
}

template <DType kType>
void check_second_product() {
  constexpr int K = kSteps * kStep<kType>, N = 16 * kN;
  for (const bool integers : {true, false}) {
    const std::string what =
        std::string("second product of ") + name(kType) + (integers ? " integers" : " normal");
    Operands make{std::mt19937(7), integers};
    const std::vector<float> p = make.make(16 * K), v = make.make(K * N);
    const DeviceArray<float> p_at(p), c_at(16 * N);
    const DeviceArray<uint8_t> v_at(packed(kType, v));
    second_product_kernel<kType><<<1, 32>>>(p_at.data(), v_at.data(), c_at.data());
    if (!cuda_test::ran("second_product", what)) return;
    std::vector<double> want(16 * N), bound(16 * N);
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < N; ++n) {
        double sum = 0, sizes = 0;
        for (int k = 0; k < K; ++k) {
          const double product = double{operand(kType, p[static_cast<size_t>(m * K + k)])} *
                                 double{operand(kType, v[static_cast<size_t>(k * N + n)])};
          sum += product;
          sizes += std::abs(product);
        }
        want[static_cast<size_t>(m * N + n)] = sum;
        bound[static_cast<size_t>(m * N + n)] = integers ? 0.0 : step_error(sizes);
      }
    }
    cuda_test::expect_near(what, c_at.read(), want, bound, N);
  }
}
TEST(Mma, ASecondProductTakesTheFirstOnesAccumulators) {
  check_second_product<DType::bf16>();
  check_second_product<DType::f16>();
  check_second_product<DType::f32>();
}

// ---- Conversions ------------------------------------------------------------------------------------------

template <DType kType>
__global__ void pack_kernel(const float* x, uint32_t* packed_pairs, float* low, float* high, int pairs) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= pairs) return;
  packed_pairs[i] = pack2<kType>(x[2 * i], x[2 * i + 1]);
  low[i] = unpack_low<kType>(packed_pairs[i]);
  high[i] = unpack_high<kType>(packed_pairs[i]);
}

template <DType kType>
void check_packing() {
  // Every value of the type, and floats between and beyond them.
  std::vector<float> values;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    values.push_back(kType == DType::f16 ? f16_to_f32(half) : bf16_to_f32(half));
  }
  std::mt19937 random(3);
  for (int i = 0; i < 65536; ++i) values.push_back(bits_float(random()));
  const int pairs = static_cast<int>(values.size() / 2);
  const DeviceArray<float> x(values), low(values.size() / 2), high(values.size() / 2);
  const DeviceArray<uint32_t> out(values.size() / 2);
  pack_kernel<kType><<<(pairs + 255) / 256, 256>>>(x.data(), out.data(), low.data(), high.data(), pairs);
  if (!cuda_test::ran("pack", name(kType))) return;
  const std::vector<uint32_t> got = out.read();
  const std::vector<float> lows = low.read(), highs = high.read();
  cuda_test::expect_each(
      std::string("packing to ") + name(kType), values.size(), 2,
      [&](size_t i) {
        const auto half = static_cast<uint16_t>(got[i / 2] >> (16 * (i % 2)));
        const float back = i % 2 == 0 ? lows[i / 2] : highs[i / 2];
        const float want = kType == DType::f16 ? f16_to_f32(half) : bf16_to_f32(half);
        if (std::isnan(values[i])) return std::isnan(back) && std::isnan(want);
        const uint16_t rounded = kType == DType::f16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
        return half == rounded && float_bits(back) == float_bits(want);
      },
      [&](size_t i) {
        return std::to_string(values[i]) + " became " + std::to_string(got[i / 2] >> (16 * (i % 2)) & 0xffff);
      });
}
// A matrix of 8 x 8 elements of 16 bits, two neighbours of a row in each lane's register.
__global__ void movmatrix_kernel(const uint32_t* from, uint32_t* to) {
  to[threadIdx.x] = movmatrix(from[threadIdx.x]);
}

TEST(Mma, MovmatrixTransposes) {
  std::vector<uint32_t> matrix(32), want(32);
  const auto element = [](uint32_t row, uint32_t column) { return 0x100u * row + column + 0x8001u; };
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t row = lane / 4, column = 2 * (lane % 4);
    matrix[lane] = element(row, column) | element(row, column + 1) << 16;
    want[lane] = element(column, row) | element(column + 1, row) << 16;
  }
  const DeviceArray<uint32_t> from(matrix), to(matrix.size());
  movmatrix_kernel<<<1, 32>>>(from.data(), to.data());
  if (!cuda_test::ran("movmatrix", "")) return;
  cuda_test::expect_equal("movmatrix", to.read(), want, 4);
}

TEST(Mma, PacksAsTheHostRounds) {
  check_packing<DType::bf16>();
  check_packing<DType::f16>();
}

// ---- Tiles ------------------------------------------------------------------------------------------------

constexpr int kTileRows = 64, kTileThreads = 128;

struct TileRun {
  const uint8_t* from;  // row 0 of the head
  uint8_t *tile, *to;   // the tile's rows without their pitch; the tensor again
  const uint8_t* seen;
  int64_t row_stride;
  int first, begin, end, dim, out_rows;
};

template <DType kType, int kDim>
__global__ void __launch_bounds__(kTileThreads) tile_kernel(TileRun run) {
  constexpr int kRow = kPitch<kType, kDim>, kRowBytes = kDim * kBytes<kType>;
  __shared__ __align__(16) uint8_t tile[kTileRows * kRow];
  for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kRow; i += kTileThreads) tile[i] = 0xee;
  __syncthreads();
  const TileCopy<kType, kDim, kTileRows, kTileThreads> copy(run.from, run.row_stride, run.dim);
  copy.copy(shared_address(tile), run.first, run.begin, run.end, run.seen);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kRowBytes; i += kTileThreads)
    run.tile[i] = tile[i / kRowBytes * kRow + i % kRowBytes];
  copy_out<kType, kDim, kTileRows, kTileThreads>(shared_address(tile), run.to, run.row_stride, run.out_rows,
                                                 run.dim);
}

template <DType kType, int kDim>
void check_tile_copy(int dim, int begin, int end, bool with_seen) {
  constexpr int kSize = kBytes<kType>;
  const int64_t row_stride = dim + 8;
  const int rows = 100, first = 32, out_rows = 50;
  const std::string what = std::string(name(kType)) + " dim " + std::to_string(dim) + " of " +
                           std::to_string(kDim) + ", rows " + std::to_string(begin) + " to " +
                           std::to_string(end) + (with_seen ? ", some unseen" : "");
  // 0xff where nothing may be read: NaN.
  std::vector<uint8_t> from(static_cast<size_t>(rows * row_stride * kSize), 0xff),
      seen(static_cast<size_t>(rows), 1);
  std::mt19937 random(5);
  for (uint8_t& x : seen) x = !with_seen || random() % 3 != 0 ? 1 : 0;
  std::vector<uint8_t> want(static_cast<size_t>(kTileRows * kDim * kSize), 0), stored(from.size(), 0xff);
  for (int row = 0; row < rows; ++row) {
    if (row < begin || row >= end || seen[static_cast<size_t>(row)] == 0) continue;
    for (int i = 0; i < dim * kSize; ++i) {
      const auto x = static_cast<uint8_t>(random() % 255);
      from[static_cast<size_t>(row * row_stride * kSize + i)] = x;
      if (row >= first && row < first + kTileRows)
        want[static_cast<size_t>((row - first) * kDim * kSize + i)] = x;
    }
  }
  for (int row = 0; row < out_rows; ++row) {
    for (int i = 0; i < dim * kSize; ++i)
      stored[static_cast<size_t>(row * row_stride * kSize + i)] =
          want[static_cast<size_t>(row * kDim * kSize + i)];
  }
  const DeviceArray<uint8_t> from_at(from), seen_at(seen), tile_at(want.size()), to_at(stored.size());
  tile_kernel<kType, kDim><<<1, kTileThreads>>>({from_at.data(), tile_at.data(), to_at.data(),
                                                 with_seen ? seen_at.data() : nullptr, row_stride, first,
                                                 begin, end, dim, out_rows});
  if (!cuda_test::ran("tile", what)) return;
  cuda_test::expect_equal(what + ", copied", tile_at.read(), want, static_cast<size_t>(kDim * kSize));
  cuda_test::expect_equal(what + ", copied out", to_at.read(), stored,
                          static_cast<size_t>(row_stride * kSize));
}

template <DType kType, int kDim>
void check_tile_copies() {
  for (const int dim : {8, kDim - 8, kDim}) {
    for (const bool with_seen : {false, true}) {
      check_tile_copy<kType, kDim>(dim, 0, 100, with_seen);
      check_tile_copy<kType, kDim>(dim, 40, 70, with_seen);
      check_tile_copy<kType, kDim>(dim, 32, 77, with_seen);
      check_tile_copy<kType, kDim>(dim, 50, 50, with_seen);
    }
  }
}
TEST(TileCopies, ZerosOutsideTheRowsAndTheDim) {
  check_tile_copies<DType::bf16, 64>();
  check_tile_copies<DType::f16, 96>();
  check_tile_copies<DType::bf16, 128>();
  check_tile_copies<DType::f32, 64>();
  check_tile_copies<DType::f32, 96>();
}

template <DType kType, int kDim>
__global__ void store_kernel(const float* c, const float* factor, uint8_t* to, int64_t row_stride, int rows,
                             int dim) {
  __shared__ __align__(16) uint8_t tile[kM * 16 * kPitch<kType, kDim>];
  const int lane = static_cast<int>(threadIdx.x);
  float acc[kM][kDim / 2], factors[kM][2];
  for (int m = 0; m < kM; ++m) {
    for (int half = 0; half < 2; ++half) factors[m][half] = factor[16 * m + lane / 4 + 8 * half];
    for (int i = 0; i < kDim / 2; ++i)
      acc[m][i] = c[(16 * m + lane / 4 + 8 * (i / 2 % 2)) * kDim + 8 * (i / 4) + 2 * (lane % 4) + i % 2];
  }
  store_rows<kType, kDim, kM>(acc, factors, shared_address(tile), to, row_stride, rows, dim);
}

template <DType kType, int kDim>
void check_store_rows() {
  Operands make{std::mt19937(9), false};
  const std::vector<float> c = make.make(16 * kM * kDim), factor = make.make(16 * kM);
  for (const int rows : {0, 1, 15, 16, 17, 31, 32}) {
    for (const int dim : {8, kDim - 8, kDim}) {
      const int64_t stride = dim + 16;
      const std::string what = std::string("store_rows of ") + name(kType) + ", " + std::to_string(rows) +
                               " rows, dim " + std::to_string(dim) + " of " + std::to_string(kDim);
      const DeviceArray<float> c_at(c), factor_at(factor);
      const DeviceArray<uint8_t> to(static_cast<size_t>(32 * stride * kBytes<kType>));
      store_kernel<kType, kDim><<<1, 32>>>(c_at.data(), factor_at.data(), to.data(), stride, rows, dim);
      if (!cuda_test::ran("store_rows", what)) return;
      std::vector<float> values(static_cast<size_t>(32 * stride));
      std::vector<uint8_t> want(values.size() * kBytes<kType>, 0xff);
      for (int row = 0; row < rows; ++row) {
        for (int d = 0; d < dim; ++d)
          values[static_cast<size_t>(row * stride + d)] =
              c[static_cast<size_t>(row * kDim + d)] * factor[static_cast<size_t>(row)];
      }
      const std::vector<uint8_t> bytes = packed(kType, values);
      for (int row = 0; row < rows; ++row) {
        const auto at = row * stride * kBytes<kType>;
        std::copy_n(bytes.begin() + at, dim * kBytes<kType>, want.begin() + at);
      }
      if (!cuda_test::expect_equal(what, to.read(), want, static_cast<size_t>(stride * kBytes<kType>)))
        return;
    }
  }
}
TEST(TileCopies, StoredRowsAreRoundedAndClipped) {
  check_store_rows<DType::bf16, 64>();
  check_store_rows<DType::f16, 128>();
  check_store_rows<DType::f32, 96>();
}

}  // namespace
}  // namespace tessera::attention::cuda
