// Every vec name against plain C++ on the ISA that TESSERA_ISA forces.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "simd/isa.h"
#include "tessera/dtype.h"
#include "tests/simd/vec_probe.h"

namespace tessera::simd {
namespace {

constexpr uint32_t kSeed = 20261;

const VecProbe& probe() {
  switch (*requested_isa()) {
    case Isa::scalar:
      return kProbeScalar;
    case Isa::avx2:
      return kProbeAvx2;
    case Isa::avx512:
      return kProbeAvx512;
    case Isa::avx512bf16:
    case Isa::amx:  // has no vectors of its own
      return kProbeAvx512bf16;
  }
  return kProbeScalar;
}

std::vector<float> random_floats(int n, float low, float high) {
  std::mt19937 random(kSeed);
  std::uniform_real_distribution<float> uniform(low, high);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& value : x) value = uniform(random);
  return x;
}

using Map = void (*)(const float*, float*, int);

// The largest relative error of `f` against `exact` on [low, high].
double worst_relative(Map f, double (*exact)(double), float low, float high) {
  const int n = 1 << 16;
  std::vector<float> x(n), y(n);
  for (int i = 0; i < n; ++i) x[size_t(i)] = low + (high - low) * float(i) / float(n - 1);
  f(x.data(), y.data(), n);
  double worst = 0;
  for (int i = 0; i < n; ++i) {
    const double want = exact(x[size_t(i)]);
    const double error = want == 0 ? std::abs(double(y[size_t(i)])) : std::abs(y[size_t(i)] / want - 1);
    if (!(error <= worst)) worst = error;
  }
  return worst;
}

float one(Map f, float value) {
  std::vector<float> x(16, value), y(16);
  f(x.data(), y.data(), 16);
  return y[3];
}

TEST(Vec, TableBelongsToTheForcedIsa) {
  const Isa vectors = std::min(*requested_isa(), Isa::avx512bf16);  // amx has none of its own
  EXPECT_STREQ(probe().name, name(vectors));
}

TEST(Vec, Exp2IsAccurateAndExactAtZero) {
  EXPECT_LE(worst_relative(
                probe().exp2, [](double x) { return std::exp2(x); }, -126.0f, 127.0f),
            1.3e-7);
  EXPECT_LE(worst_relative(
                probe().exp2_coarse, [](double x) { return std::exp2(x); }, -126.0f, 127.0f),
            1.1e-4);
  for (Map f : {probe().exp2, probe().exp2_coarse}) {
    EXPECT_EQ(one(f, 0.0f), 1.0f);
    EXPECT_EQ(one(f, -0.0f), 1.0f);
    EXPECT_EQ(one(f, -20.0f), std::exp2(-20.0f));
    EXPECT_EQ(one(f, -1e30f), 0.0f);
    EXPECT_EQ(one(f, -3e38f), 0.0f);
    EXPECT_EQ(one(f, 200.0f), std::numeric_limits<float>::infinity());
    EXPECT_TRUE(std::isnan(one(f, std::nanf(""))));
  }
}

TEST(Vec, ExpAndTanhAreAccurate) {
  EXPECT_LE(worst_relative(
                probe().exp, [](double x) { return std::exp(x); }, -87.0f, 88.0f),
            2.5e-7);
  EXPECT_EQ(one(probe().exp, 0.0f), 1.0f);
  EXPECT_LE(one(probe().exp, -1e30f), 1e-37f);
  EXPECT_EQ(one(probe().exp, 1e30f), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(one(probe().exp, std::nanf(""))));
  EXPECT_LE(worst_relative(
                probe().tanh, [](double x) { return std::tanh(x); }, -12.0f, 12.0f),
            4e-7);
  EXPECT_EQ(one(probe().tanh, 1e20f), 1.0f);
  EXPECT_EQ(one(probe().tanh, -1e20f), -1.0f);
  EXPECT_EQ(one(probe().tanh, 1e-20f), 1e-20f);
  EXPECT_TRUE(std::isnan(one(probe().tanh, std::nanf(""))));
}

TEST(Vec, RoundGoesToNearestEven) {
  for (float x : {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 0.49f, 100000.4f, -77.6f}) {
    EXPECT_EQ(one(probe().round, x), std::nearbyint(x)) << x;
  }
}

TEST(Vec, ArithmeticIsLaneByLane) {
  const int lanes = probe().lanes;
  const std::vector<float> a = random_floats(16, -3, 3), b = random_floats(32, 0.5f, 3),
                           c = random_floats(48, -3, 3);
  std::vector<float> out(160);
  probe().arithmetic(a.data(), b.data() + 16, c.data() + 32, out.data());
  const bool fused = *requested_isa() != Isa::scalar;
  for (int i = 0; i < lanes; ++i) {
    const float x = a[size_t(i)], y = b[size_t(16 + i)], z = c[size_t(32 + i)];
    const float product = x * y;
    const float want[10] = {x + y,
                            x - y,
                            product,
                            x / y,
                            fused ? std::fma(x, y, z) : product + z,
                            fused ? std::fma(-x, y, z) : z - product,
                            std::max(x, y),
                            std::min(x, y),
                            std::sqrt(std::abs(x)),
                            std::abs(x)};
    for (int k = 0; k < 10; ++k) EXPECT_EQ(out[size_t(k * lanes + i)], want[k]) << "operation " << k;
  }
}

TEST(Vec, MaxAndMinKeepTheSecondOperandWhenNaN) {
  std::vector<float> limit(16, 1.0f), nan(16, std::nanf("")), out(160);
  probe().arithmetic(limit.data(), nan.data(), nan.data(), out.data());
  EXPECT_TRUE(std::isnan(out[size_t(6 * probe().lanes)]));
  EXPECT_TRUE(std::isnan(out[size_t(7 * probe().lanes)]));
  probe().arithmetic(nan.data(), limit.data(), nan.data(), out.data());
  EXPECT_EQ(out[size_t(6 * probe().lanes)], 1.0f);
  EXPECT_EQ(out[size_t(7 * probe().lanes)], 1.0f);
}

TEST(Vec, ComparisonsAreFalseForNaN) {
  const int lanes = probe().lanes;
  std::vector<float> a(16), b(16), out(80);
  const float cases[4][2] = {{1, 2}, {2, 1}, {2, 2}, {std::nanf(""), 1}};
  for (int i = 0; i < 16; ++i) a[size_t(i)] = cases[i % 4][0], b[size_t(i)] = cases[i % 4][1];
  probe().compare(a.data(), b.data(), out.data());
  for (int i = 0; i < lanes; ++i) {
    const float x = a[size_t(i)], y = b[size_t(i)];
    const bool want[5] = {x<y, x <= y, x> y, x >= y, x == y};
    for (int k = 0; k < 5; ++k)
      EXPECT_EQ(out[size_t(k * lanes + i)], want[k] ? 1.0f : 0.0f) << k << " lane " << i;
  }
}

TEST(Vec, TailsTouchOnlyTheirLanes) {
  const int lanes = probe().lanes;
  for (int n = 0; n <= lanes; ++n) {
    // Exact allocations: AddressSanitizer sees a read or write past n.
    std::vector<float> x = random_floats(std::max(n, 1), -1, 1);
    std::vector<float> y(size_t(n) + 1, 7.0f);
    probe().tails(x.data(), y.data(), n);
    for (int i = 0; i < n; ++i) EXPECT_EQ(y[size_t(i)], x[size_t(i)]);
    EXPECT_EQ(y[size_t(n)], 7.0f);

    std::vector<uint16_t> narrow(size_t(n) + 1, 0x1234);
    std::vector<float> wide(16, 7.0f);
    probe().bf16_tail(x.data(), narrow.data(), wide.data(), n);
    for (int i = 0; i < lanes; ++i) {
      EXPECT_EQ(wide[size_t(i)], i < n ? bf16_to_f32(f32_to_bf16(x[size_t(i)])) : 0.0f);
    }
    EXPECT_EQ(narrow[size_t(n)], 0x1234);
  }
}

TEST(Vec, ReductionsHalveTheLanes) {
  const int lanes = probe().lanes;
  std::vector<float> x = random_floats(16, -1, 1);
  float out[3];
  probe().reduce(x.data(), out);
  std::vector<float> sum(x.begin(), x.begin() + lanes);
  for (int half = lanes / 2; half >= 1; half /= 2) {
    for (int i = 0; i < half; ++i) sum[size_t(i)] = sum[size_t(i)] + sum[size_t(i + half)];
  }
  EXPECT_EQ(out[0], sum[0]);
  EXPECT_EQ(out[1], *std::max_element(x.begin(), x.begin() + lanes));
  EXPECT_EQ(out[2], *std::min_element(x.begin(), x.begin() + lanes));
}

TEST(Vec, Bf16RoundsToNearestEvenAndKeepsNaN) {
  std::vector<float> x = random_floats(1024, -1e3f, 1e3f), wide(1024);
  std::vector<uint16_t> narrow(1024);
  const float special[8] = {
      1.0f + 0x1p-8f, 1.0f + 3 * 0x1p-8f, -0.0f,  std::numeric_limits<float>::infinity(),
      3.4e38f,        std::nanf(""),      1e-30f, -std::numeric_limits<float>::infinity()};
  std::copy(special, special + 8, x.begin());
  probe().bf16(x.data(), narrow.data(), wide.data(), 1024);
  for (size_t i = 0; i < 1024; ++i) {
    if (std::isnan(x[i])) {
      EXPECT_TRUE(std::isnan(wide[i]));
    } else {
      EXPECT_EQ(narrow[i], f32_to_bf16(x[i])) << x[i];
      EXPECT_EQ(wide[i], bf16_to_f32(narrow[i]));
    }
  }
}

TEST(Isa, TheDefaultHasNoSlowDotProductAndSaysSo) {
  const char* forced = std::getenv("TESSERA_ISA");
  const std::string kept = forced == nullptr ? "" : forced;
  unsetenv("TESSERA_ISA");
  const Isa isa = *requested_isa();
  EXPECT_EQ(isa, fastest_isa());
  EXPECT_TRUE(supported(isa));
  if (isa < Isa::avx512bf16 && supported(Isa::avx512bf16)) {
    EXPECT_EQ(isa, Isa::avx512);
    EXPECT_NE(why_not(Isa::avx512bf16, isa).find("slower than f32 FMA"), std::string::npos);
  }
  setenv("TESSERA_ISA", "scalar", 1);
  if (supported(Isa::avx2)) {
    EXPECT_EQ(why_not(Isa::avx2, Isa::scalar), "TESSERA_ISA=scalar forbids avx2");
  }
  if (forced == nullptr) {
    unsetenv("TESSERA_ISA");
  } else {
    setenv("TESSERA_ISA", kept.c_str(), 1);
  }
}

TEST(Vec, Bf16PairsSplitAndDot) {
  const int lanes = probe().lanes;
  std::vector<float> x = random_floats(64, -2, 2);
  std::vector<uint32_t> a(16), b(16);
  for (size_t i = 0; i < 16; ++i) {
    a[i] = f32_to_bf16(x[4 * i]) | uint32_t(f32_to_bf16(x[4 * i + 1])) << 16;
    b[i] = f32_to_bf16(x[4 * i + 2]) | uint32_t(f32_to_bf16(x[4 * i + 3])) << 16;
  }
  std::vector<float> low(16), high(16), out(16), acc(16, 0.25f);
  probe().bf16_pairs(a.data(), low.data(), high.data());
  for (int i = 0; i < lanes; ++i) {
    EXPECT_EQ(low[size_t(i)], bf16_to_f32(uint16_t(a[size_t(i)])));
    EXPECT_EQ(high[size_t(i)], bf16_to_f32(uint16_t(a[size_t(i)] >> 16)));
  }
  ASSERT_EQ(probe().has_bf16_dot, *requested_isa() >= Isa::avx512bf16);
  if (!probe().has_bf16_dot) return;
  probe().dot2(acc.data(), a.data(), b.data(), out.data());
  for (int i = 0; i < lanes; ++i) {
    const double want = 0.25 + double(low[size_t(i)]) * bf16_to_f32(uint16_t(b[size_t(i)])) +
                        double(high[size_t(i)]) * bf16_to_f32(uint16_t(b[size_t(i)] >> 16));
    EXPECT_NEAR(out[size_t(i)], want, 1e-6);
  }
}

TEST(Vec, HalvesConvertAsTheCoreDoes) {
  std::vector<float> x = random_floats(1024, -100, 100), wide(1024);
  std::vector<uint16_t> narrow(1024);
  const float special[8] = {65519.0f, 65520.0f, 0x1p-24f, 0x1p-25f, 0x1.8p-24f, -0.0f, 1e-3f, 6e-6f};
  std::copy(special, special + 8, x.begin());
  probe().f16(x.data(), narrow.data(), wide.data(), 1024);
  for (size_t i = 0; i < 1024; ++i) {
    EXPECT_EQ(narrow[i], f32_to_f16(x[i])) << x[i];
    EXPECT_EQ(wide[i], f16_to_f32(narrow[i]));
  }
}

TEST(Vec, IntegersWrapAndShift) {
  const int lanes = probe().lanes;
  std::mt19937 random(kSeed);
  std::vector<int32_t> a(16), b(16), out(160);
  for (size_t i = 0; i < 16; ++i) a[i] = int32_t(random()), b[i] = int32_t(random());
  probe().integers(a.data(), b.data(), out.data());
  for (int i = 0; i < lanes; ++i) {
    const int32_t x = a[size_t(i)], y = b[size_t(i)];
    const uint32_t ux = uint32_t(x), uy = uint32_t(y);
    const int32_t whole = int32_t(std::nearbyint(float(x >> 8)));
    const int32_t greater = x > y ? 1 : 0;
    const int32_t high = int32_t(uint64_t{ux} * uy >> 32);
    const int32_t want[10] = {int32_t(ux + uy),
                              int32_t(ux - uy),
                              int32_t(ux * uy),
                              int32_t(ux << 3),
                              x >> 3,
                              x & y,
                              whole,
                              greater,
                              x ^ y,
                              high};
    for (int k = 0; k < 10; ++k) EXPECT_EQ(out[size_t(k * lanes + i)], want[k]) << "operation " << k;
  }
}

TEST(Vec, BytesWidenNarrowAndDot) {
  const int lanes = probe().lanes;
  std::mt19937 random(kSeed);
  std::vector<int8_t> s(64), narrow(16);
  std::vector<uint8_t> u(64);
  std::vector<int32_t> wide(16), out(32), acc(16, 5);
  for (size_t i = 0; i < 64; ++i) s[i] = int8_t(random()), u[i] = uint8_t(random() % 128);
  for (size_t i = 0; i < 16; ++i) wide[i] = int32_t(random() % 512) - 256;
  probe().bytes(s.data(), u.data(), wide.data(), out.data(), narrow.data());
  for (int i = 0; i < lanes; ++i) {
    EXPECT_EQ(out[size_t(i)], s[size_t(i)]);
    EXPECT_EQ(out[size_t(lanes + i)], u[size_t(i)]);
    EXPECT_EQ(narrow[size_t(i)], std::clamp(wide[size_t(i)], -128, 127));
  }
  probe().dot4(acc.data(), u.data(), s.data(), out.data());
  for (int i = 0; i < lanes; ++i) {
    int32_t want = 5;
    for (int k = 0; k < 4; ++k) want += u[size_t(4 * i + k)] * s[size_t(4 * i + k)];
    EXPECT_EQ(out[size_t(i)], want);
  }
}

}  // namespace
}  // namespace tessera::simd
