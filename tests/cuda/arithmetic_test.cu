// Fast exponentials and what softmax.cuh makes of them, Philox and the dropout bits: known answers, the
// host's functions, and double precision with the bounds that the headers promise.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "attention/cuda/common/philox.cuh"
#include "attention/cuda/common/ptx.cuh"
#include "attention/cuda/common/softmax.cuh"
#include "attention/dropout.h"
#include "tests/cuda/support/device_array.h"

namespace tessera::attention::cuda {
namespace {

using cuda_test::DeviceArray;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr double kLeastNormal = 0x1p-126;

enum class Function { exp2, log2, reciprocal, tanh, subtractable };

__global__ void apply(Function function, const float* x, float* y, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= count) return;
  switch (function) {
    case Function::exp2:
      y[i] = exp2_fast(x[i]);
      break;
    case Function::log2:
      y[i] = log2_fast(x[i]);
      break;
    case Function::reciprocal:
      y[i] = reciprocal_fast(x[i]);
      break;
    case Function::tanh:
      y[i] = tanh_fast(x[i]);
      break;
    case Function::subtractable:
      y[i] = subtractable(x[i]);
      break;
  }
}
std::vector<float> applied(Function function, const std::vector<float>& x) {
  const DeviceArray<float> in(x), out(x.size());
  const int count = static_cast<int>(x.size());
  apply<<<(count + 255) / 256, 256>>>(function, in.data(), out.data(), count);
  cuda_test::ran("apply", "function " + std::to_string(static_cast<int>(function)));
  return out.read();
}

// Bit for bit, any NaN for NaN.
void expect_exactly(Function function, const std::vector<float>& x, const std::vector<float>& want) {
  const std::vector<float> got = applied(function, x);
  cuda_test::expect_each(
      "special values of function " + std::to_string(static_cast<int>(function)), x.size(), 1,
      [&](size_t i) {
        return std::isnan(want[i]) ? std::isnan(got[i])
                                   : got[i] == want[i] && std::signbit(got[i]) == std::signbit(want[i]);
      },
      [&](size_t i) {
        return std::to_string(got[i]) + " for " + std::to_string(want[i]) + " of " + std::to_string(x[i]);
      });
}

std::vector<float> between(float low, float high, int count, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(low, high);
  std::vector<float> x(static_cast<size_t>(count));
  for (float& value : x) value = uniform(random);
  return x;
}
template <typename Want, typename Bound>
void expect_close(const char* what, Function function, const std::vector<float>& x, Want&& want,
                  Bound&& bound) {
  const std::vector<float> got = applied(function, x);
  std::vector<double> wanted, bounds;
  for (const float value : x) {
    wanted.push_back(want(double{value}));
    bounds.push_back(bound(wanted.back()));
  }
  cuda_test::expect_near(what, got, wanted, bounds, 1);
}

// 2 ulp of the rounded result, so 2.5 * 2^-23 of the exact one; where that is subnormal, it may be flushed.
double exp2_bound(double want) {
  return want < kLeastNormal * 1.000001 ? kLeastNormal * 1.000001 : 2.5 * std::ldexp(want, -23);
}

TEST(Arithmetic, Exp2OfSpecialValues) {
  expect_exactly(Function::exp2,
                 {-kInfinity, kInfinity, kNan, -kNan, 0.0f, -0.0f, 1e-40f, -1e-40f, kLargest, -kLargest,
                  128.0f, -200.0f},
                 {0.0f, kInfinity, kNan, kNan, 1.0f, 1.0f, 1.0f, 1.0f, kInfinity, 0.0f, kInfinity, 0.0f});
}
TEST(Arithmetic, Exp2IsWithinTwoUnits) {
  const auto want = [](double x) { return std::exp2(x); };
  expect_close("2^x of scores", Function::exp2, between(-30, 0, 200000, 1), want, exp2_bound);
  expect_close("2^x", Function::exp2, between(-160, 127.9f, 200000, 2), want, exp2_bound);
  expect_close("2^x near 0", Function::exp2, between(-1e-3f, 1e-3f, 50000, 3), want, exp2_bound);
}

TEST(Arithmetic, Log2OfSpecialValues) {
  expect_exactly(Function::log2, {0.0f, -0.0f, kInfinity, kNan, -1.0f, -kInfinity, 1e-40f},
                 {-kInfinity, -kInfinity, kInfinity, kNan, kNan, kNan, -kInfinity});
}
TEST(Arithmetic, Log2IsWithinItsBound) {
  // 2^-22 absolute near 1, relative elsewhere, and the rounding.
  const auto bound = [](double want) { return std::ldexp(1.125 * std::max(1.0, std::abs(want)), -22); };
  const auto want = [](double x) { return std::log2(x); };
  expect_close("log2 near 1", Function::log2, between(0.5f, 2, 200000, 4), want, bound);
  expect_close("log2 of sums", Function::log2, between(1, 1e6f, 200000, 5), want, bound);
  std::vector<float> wide;
  for (const float x : between(-126, 127.9f, 100000, 6)) wide.push_back(std::exp2(x));
  for (float& x : wide) x = std::max(x, static_cast<float>(kLeastNormal));
  expect_close("log2", Function::log2, wide, want, bound);
}

TEST(Arithmetic, ReciprocalsOfSpecialValues) {
  expect_exactly(Function::reciprocal, {0.0f, -0.0f, kInfinity, -kInfinity, kNan, kLargest, 1e-40f},
                 {kInfinity, -kInfinity, 0.0f, -0.0f, kNan, 0.0f, kInfinity});
}
TEST(Arithmetic, ReciprocalsAreWithinOneUnit) {
  const auto bound = [](double want) { return 1.5 * std::ldexp(std::abs(want), -23); };
  const auto want = [](double x) { return 1.0 / x; };
  expect_close("1 / x", Function::reciprocal, between(1, 1e6f, 200000, 7), want, bound);
  std::vector<float> wide;
  for (const float x : between(-125, 125, 100000, 8)) wide.push_back(std::exp2(x));
  expect_close("1 / x, wide", Function::reciprocal, wide, want, bound);
}

TEST(Arithmetic, Tanh) {
  expect_exactly(Function::tanh, {kInfinity, -kInfinity, kNan, 0.0f, -0.0f},
                 {1.0f, -1.0f, kNan, 0.0f, -0.0f});
  // PTX promises 2^-11 relative.
  expect_close(
      "tanh", Function::tanh, between(-10, 10, 200000, 9), [](double x) { return std::tanh(x); },
      [](double want) { return 1.01 * std::ldexp(std::abs(want), -11); });
}

// ---- Softmax ----------------------------------------------------------------------------------------------

__global__ void quads(const float* x, float* maximum, float* sum) {
  const int i = static_cast<int>(threadIdx.x);
  maximum[i] = quad_max(x[i]);
  sum[i] = quad_sum(x[i]);
}
TEST(Softmax, QuadsReduceTheirFourLanes) {
  std::vector<float> x;
  std::mt19937 random(10);
  for (int i = 0; i < 32; ++i) x.push_back(static_cast<float>(static_cast<int>(random() % 2001) - 1000));
  // Quad 0: NaN in one lane does not hide the others' maximum, but makes the sum NaN. 1: nothing but NaN.
  // 2 and 3: infinities.
  x[1] = kNan;
  for (size_t i = 4; i < 8; ++i) x[i] = kNan;
  for (size_t i = 8; i < 12; ++i) x[i] = -kInfinity;
  x[13] = -kInfinity, x[14] = kInfinity;
  const DeviceArray<float> in(x), maximum(32), sum(32);
  quads<<<1, 32>>>(in.data(), maximum.data(), sum.data());
  ASSERT_TRUE(cuda_test::ran("quads", "a warp"));
  const std::vector<float> most = maximum.read(), sums = sum.read();
  for (size_t i = 0; i < 32; ++i) {
    SCOPED_TRACE("lane " + std::to_string(i));
    float want_most = kNan, want_sum = 0;
    for (size_t j = i / 4 * 4; j < i / 4 * 4 + 4; ++j) {
      want_most = std::fmax(want_most, x[j]);
      want_sum += x[j];  // integers: exact in any order
    }
    if (std::isnan(want_most)) {
      EXPECT_TRUE(std::isnan(most[i])) << most[i];
    } else {
      EXPECT_EQ(most[i], want_most);
    }
    if (std::isnan(want_sum)) {
      EXPECT_TRUE(std::isnan(sums[i])) << sums[i];
    } else {
      EXPECT_EQ(sums[i], want_sum);
    }
  }
}

TEST(Softmax, AMaximumOfNothingIsSubtractedAsZero) {
  expect_exactly(Function::subtractable, {-kInfinity, kInfinity, kNan, 0.0f, -3.5f, -kLargest},
                 {0.0f, kInfinity, kNan, 0.0f, -3.5f, -kLargest});
}

__global__ void lse_kernel(const float* maximum, const float* sum, float* lse, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) lse[i] = natural_lse(maximum[i], sum[i]);
}
TEST(Softmax, NaturalLse) {
  std::vector<float> maximum = between(-200, 200, 50000, 11), sum = between(1, 70000, 50000, 12);
  std::vector<double> want, bound;
  for (size_t i = 0; i < sum.size(); ++i) {
    const double a = double{maximum[i]} * std::log(2.0), b = std::log(double{sum[i]});
    want.push_back(a + b);
    // ln 2 and three roundings of half a unit each, and logf's one.
    bound.push_back(4 * std::ldexp(std::abs(a) + std::abs(b), -24));
  }
  const size_t normal = sum.size();
  maximum.insert(maximum.end(), {-kInfinity, -kInfinity, kNan, 1.0f, 0.0f, kInfinity});
  sum.insert(sum.end(), {0.0f, kNan, 1.0f, kNan, 1.0f, 1.0f});
  const std::array<float, 6> special = {-kInfinity, -kInfinity, kNan, kNan, 0.0f, kInfinity};
  const DeviceArray<float> m_at(maximum), l_at(sum), lse(sum.size());
  const int count = static_cast<int>(sum.size());
  lse_kernel<<<(count + 255) / 256, 256>>>(m_at.data(), l_at.data(), lse.data(), count);
  ASSERT_TRUE(cuda_test::ran("natural_lse", "rows"));
  std::vector<float> got = lse.read();
  for (size_t i = 0; i < special.size(); ++i) {
    SCOPED_TRACE("maximum " + std::to_string(maximum[normal + i]) + ", sum " +
                 std::to_string(sum[normal + i]));
    if (std::isnan(special[i])) {
      EXPECT_TRUE(std::isnan(got[normal + i])) << got[normal + i];
    } else {
      EXPECT_EQ(got[normal + i], special[i]);
    }
  }
  got.resize(normal);
  cuda_test::expect_near("natural_lse", got, want, bound, 1);
}

// ---- Philox -----------------------------------------------------------------------------------------------

struct Draw {
  uint32_t counter[4], key[2];
};
__global__ void draw(const Draw* draws, uint32_t* words, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= count) return;
  const Draw& d = draws[i];
  const PhiloxWords w =
      philox4x32_device(d.counter[0], d.counter[1], d.counter[2], d.counter[3], d.key[0], d.key[1]);
  for (int j = 0; j < 4; ++j) words[4 * i + j] = w.word[j];
}
std::vector<uint32_t> drawn(const std::vector<Draw>& draws) {
  const DeviceArray<Draw> at(draws);
  const DeviceArray<uint32_t> words(4 * draws.size());
  const int count = static_cast<int>(draws.size());
  draw<<<(count + 255) / 256, 256>>>(at.data(), words.data(), count);
  cuda_test::ran("philox", "draws");
  return words.read();
}

// The vectors published with Random123 (kat_vectors, philox 4x32 10).
TEST(Philox, KnownAnswers) {
  const std::vector<uint32_t> got =
      drawn({{{0, 0, 0, 0}, {0, 0}},
             {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}},
             {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}}});
  const std::vector<uint32_t> want = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8, 0x408f276d, 0x41c83b0e,
                                      0xa20bc7c6, 0x6d5451fd, 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1};
  cuda_test::expect_equal("known answers", got, want, 4);
}
TEST(Philox, IsTheHosts) {
  std::mt19937 random(13);
  std::vector<Draw> draws(20000);
  std::vector<uint32_t> want;
  for (Draw& d : draws) {
    for (uint32_t& word : d.counter) word = random();
    for (uint32_t& word : d.key) word = random();
    for (const uint32_t word :
         philox4x32({d.counter[0], d.counter[1], d.counter[2], d.counter[3]}, {d.key[0], d.key[1]})) {
      want.push_back(word);
    }
  }
  cuda_test::expect_equal("draws", drawn(draws), want, 4);
}

// A slab of 16 rows and 64 columns: dropout_keeps() by element, dropout_bits32() by fragment.
__global__ void kept(DropoutKey key, uint32_t batch, uint32_t head, uint32_t row, uint32_t pair,
                     uint8_t* by_element, uint8_t* by_fragment) {
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 16 * 64; i += 32)
    by_element[i] = dropout_keeps(key, batch, head, row + i / 64, 32 * pair + i % 64) ? 1 : 0;
  for (int p = 0; p < 2; ++p) {
    const uint32_t bits = dropout_bits32(key, batch, head, row + lane / 4, pair + p);
    for (int e = 0; e < 16; ++e) {
      const int r = lane / 4 + 8 * (e / 2 % 2), c = 32 * p + 8 * (e / 4) + 2 * (lane % 4) + e % 2;
      by_fragment[r * 64 + c] = bits >> e & 1;
    }
  }
}
TEST(Philox, DropoutBitsAreTheHosts) {
  std::mt19937 random(14);
  for (int trial = 0; trial < 20; ++trial) {
    Dropout dropout;
    dropout.p = trial % 4 == 0 ? 0.0039f : 0.1f * static_cast<float>(1 + trial % 9);
    dropout.seed = (uint64_t{random()} << 32) | random();
    dropout.offset = (uint64_t{random()} << 32) | random();
    dropout.batch0 = trial, dropout.head0 = 3 * trial;
    dropout.row0 = static_cast<int64_t>(random() % 1000);
    dropout.col0 = 16 * static_cast<int64_t>(random() % 1000);
    const DropoutKey key = dropout_key(dropout);
    const uint32_t batch = random() % 8, head = random() % 64, row = random() % 5000, pair = random() % 300;
    const DeviceArray<uint8_t> by_element(16 * 64), by_fragment(16 * 64);
    kept<<<1, 32>>>(key, batch, head, row, pair, by_element.data(), by_fragment.data());
    if (!cuda_test::ran("dropout_bits32", "trial " + std::to_string(trial))) return;
    std::vector<uint8_t> want(16 * 64);
    for (size_t i = 0; i < want.size(); ++i) {
      const auto column = static_cast<int64_t>(32 * pair + i % 64);
      const std::array<uint32_t, 4> bytes =
          dropout_bytes(key, batch, head, static_cast<int64_t>(row + i / 64), column / 16);
      const auto in_block = static_cast<size_t>(column % 16);
      want[i] = (bytes[in_block / 4] >> (8 * (in_block % 4)) & 255) <= key.threshold ? 1 : 0;
    }
    const std::string what = "trial " + std::to_string(trial) + ", p " + std::to_string(dropout.p);
    cuda_test::expect_equal(what + ", dropout_keeps", by_element.read(), want, 64);
    cuda_test::expect_equal(what + ", dropout_bits32", by_fragment.read(), want, 64);
  }
}

}  // namespace
}  // namespace tessera::attention::cuda
