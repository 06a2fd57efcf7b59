// The ops over rows (norm, rotary, gated unit, arg-max) against the reference.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "ops/glu.h"
#include "ops/logits.h"
#include "ops/reference.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "tests/ops/support.h"

namespace tessera::ops {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class RowsTest : public ::testing::Test {
 protected:
  ThreadPool pool_{{.threads = 2}};
  Context context_{pool_};
};

ConstRowsView view(const std::vector<float>& x, int64_t rows, int64_t n) {
  return {x.data(), rows, n};
}

// x * factor * weight: the sum of n squares in lanes, a division, a root and two products.
TEST_F(RowsTest, RmsNormStaysWithinItsRoundingOfTheReference) {
  Random random(1);
  for (int64_t n : {1, 3, 16, 31, 32, 33, 64, 576, 1000}) {
    for (int64_t rows : {int64_t{1}, int64_t{5}, int64_t{19}}) {
      const std::vector<float> x = random.rows(rows * n), weight = random.rows(n);
      const RmsNorm norm{weight.data(), n, 1e-5f};
      GuardedRows y(rows, n);
      rms_norm(context_, norm, view(x, rows, n), y.view());
      std::vector<double> expected(static_cast<size_t>(n));
      for (int64_t r = 0; r < rows; ++r) {
        reference::rms_norm(norm, &x[static_cast<size_t>(r * n)], expected.data());
        for (int64_t i = 0; i < n; ++i) {
          const double want = expected[static_cast<size_t>(i)];
          EXPECT_TRUE(std::fabs(y.row(r)[i] - want) <=
                      (8.0 + static_cast<double>(n) / 8) * 0x1p-24 * std::fabs(want))
              << "n " << n << " got " << y.row(r)[i] << " want " << want;
        }
      }
      EXPECT_EQ(y.damage(), 0);
    }
  }
}

TEST_F(RowsTest, RmsNormOfZerosIsZeroAndOfNanIsNan) {
  const int64_t n = 64;
  std::vector<float> x(3 * n, 0.0f), weight(n, 2.0f), y(3 * n);
  x[n + 5] = std::nanf("");
  x[2 * n] = 3.0f;
  rms_norm(context_, {weight.data(), n, 1e-5f}, view(x, 3, n), RowsView{y.data(), 3, n});
  for (int64_t i = 0; i < n; ++i) {
    EXPECT_EQ(y[static_cast<size_t>(i)], 0.0f);
    EXPECT_TRUE(std::isnan(y[static_cast<size_t>(n + i)]));
    EXPECT_TRUE(std::isfinite(y[static_cast<size_t>(2 * n + i)]));
  }
}

bool same_quantized(const QuantizedRows& a, const QuantizedRows& b) {
  return a.rows() == b.rows() && a.k() == b.k() &&
         std::memcmp(a.view().data, b.view().data,
                     static_cast<size_t>(QuantizedRowsView::bytes(a.rows(), a.k()))) == 0;
}

TEST_F(RowsTest, FusedNormsGiveTheBitsOfTheirSteps) {
  Random random(2);
  for (int64_t n : {32, 96, 576}) {
    for (int64_t rows : {int64_t{1}, int64_t{6}, int64_t{13}}) {
      const std::vector<float> delta = random.rows(rows * n), start = random.rows(rows * n),
                               weight = random.rows(n);
      const RmsNorm norm{weight.data(), n, 1e-6f};
      std::vector<float> sum(start), plain(start.size());
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += delta[i];
      rms_norm(context_, norm, view(sum, rows, n), RowsView{plain.data(), rows, n});
      QuantizedRows expected, quantized;
      quantize(context_, view(plain, rows, n), n, expected);
      rms_norm(context_, norm, view(sum, rows, n), quantized);
      EXPECT_TRUE(same_quantized(quantized, expected));

      std::vector<float> residual(start), y(start.size());
      add_rms_norm(context_, norm, view(delta, rows, n), {residual.data(), rows, n},
                   RowsView{y.data(), rows, n});
      EXPECT_EQ(residual, sum);
      EXPECT_EQ(y, plain);
      residual = start;
      QuantizedRows fused;
      add_rms_norm(context_, norm, view(delta, rows, n), {residual.data(), rows, n}, fused);
      EXPECT_EQ(residual, sum);
      EXPECT_TRUE(same_quantized(fused, expected));
    }
  }
}

TEST_F(RowsTest, RmsNormMayWorkInPlace) {
  Random random(3);
  const int64_t n = 40, rows = 3;
  std::vector<float> x = random.rows(rows * n), weight = random.rows(n), y(x.size());
  rms_norm(context_, {weight.data(), n, 1e-5f}, view(x, rows, n), RowsView{y.data(), rows, n});
  rms_norm(context_, {weight.data(), n, 1e-5f}, view(x, rows, n), RowsView{x.data(), rows, n});
  EXPECT_EQ(x, y);
}

// The table's angle is f32(position * f32(frequency)): off by at most 2^-22 of itself (three roundings); cos,
// sin and the two fma add a few more of the pair's length.
TEST_F(RowsTest, RopeStaysWithinTheRoundingOfItsAngle) {
  Random random(4);
  for (int dims : {2, 6, 16, 20, 64}) {
    for (RopeStyle style : {RopeStyle::half, RopeStyle::interleaved}) {
      for (float factor : {1.0f, 4.0f}) {
        const RopeConfig config{.dims = dims,
                                .base = 100000.0f,
                                .style = style,
                                .scaling = factor == 1.0f ? RopeScaling::none : RopeScaling::linear,
                                .factor = factor,
                                .max_positions = 5000};
        const Result<RopeTable> table = RopeTable::create(config);
        ASSERT_TRUE(table.ok());
        const std::vector<int32_t> positions = {0, 1, 2, 511, 512, 4999, 7};
        const int heads = 3, head_dim = dims + 5;
        const int64_t rows = static_cast<int64_t>(positions.size());
        const std::vector<float> x = random.rows(rows * heads * head_dim);
        GuardedRows y(rows, heads * head_dim);
        for (int64_t r = 0; r < rows; ++r) {
          std::copy_n(&x[static_cast<size_t>(r * heads * head_dim)], heads * head_dim, y.view().row(r));
        }
        rope(context_, *table, y.view(), heads, head_dim, positions);
        for (int64_t r = 0; r < rows; ++r) {
          for (int head = 0; head < heads; ++head) {
            const float* in = &x[static_cast<size_t>((r * heads + head) * head_dim)];
            const float* out = y.row(r) + head * head_dim;
            std::vector<double> source(in, in + head_dim), expected(source);
            reference::rope(config, positions[static_cast<size_t>(r)], source.data(), expected.data());
            const double angle = positions[static_cast<size_t>(r)] / factor;
            for (int i = 0; i < dims; ++i) {
              EXPECT_TRUE(std::fabs(out[i] - expected[static_cast<size_t>(i)]) <=
                          8.0 * (angle * 0x1p-22 + 0x1p-22))
                  << "dims " << dims << " style " << int(style) << " row " << r << " element " << i;
            }
            for (int i = dims; i < head_dim; ++i) EXPECT_EQ(out[i], in[i]);
            if (positions[static_cast<size_t>(r)] == 0) {
              EXPECT_EQ(std::vector<float>(out, out + dims), std::vector<float>(in, in + dims));
            }
          }
        }
        EXPECT_EQ(y.damage(), 0);
      }
    }
  }
}

TEST_F(RowsTest, RopeTableRefusesWhatItCannotHold) {
  const auto field = [](RopeConfig config) { return RopeTable::create(config).status().field(); };
  EXPECT_EQ(field({.dims = 3, .max_positions = 8}), "dims");
  EXPECT_EQ(field({.dims = 0, .max_positions = 8}), "dims");
  EXPECT_EQ(field({.dims = 4, .base = 0.0f, .max_positions = 8}), "base");
  EXPECT_EQ(field({.dims = 4, .base = std::nanf(""), .max_positions = 8}), "base");
  EXPECT_EQ(field({.dims = 4, .scaling = RopeScaling::linear, .factor = 0.0f, .max_positions = 8}), "factor");
  EXPECT_EQ(field({.dims = 4, .max_positions = 0}), "max_positions");
}

TEST_F(RowsTest, SiluStaysWithinAFewUlpOfTheReference) {
  std::vector<float> x;
  for (float value = -90.0f; value <= 90.0f; value += 0.37f) x.push_back(value);
  x.insert(x.end(), {0.0f, -0.0f, 1e-30f, -1e-30f, 1e4f, kInfinity});
  const int64_t n = static_cast<int64_t>(x.size());
  std::vector<float> y(x.size());
  silu(context_, view(x, 1, n), n, RowsView{y.data(), 1, n});
  for (size_t i = 0; i + 1 < x.size(); ++i) {
    const double want = reference::silu(x[i]);
    EXPECT_TRUE(std::fabs(y[i] - want) <= 1e-6 * std::fabs(want) + 1e-36)
        << x[i] << " got " << y[i] << " want " << want;
  }
  EXPECT_EQ(y.back(), kInfinity);
  const std::vector<float> ends = {-1e4f, std::nanf("")};
  silu(context_, view(ends, 1, 2), 2, RowsView{y.data(), 1, 2});
  EXPECT_EQ(y[0], 0.0f);
  EXPECT_TRUE(std::isnan(y[1]));
}

TEST_F(RowsTest, SiluMulIsTheProductAndTouchesItsColumnsOnly) {
  Random random(5);
  for (int64_t n : {1, 7, 16, 33, 100}) {
    const int64_t rows = 3;
    const std::vector<float> gate = random.rows(rows * n), up = random.rows(rows * n);
    std::vector<float> activated(gate.size());
    silu(context_, view(gate, rows, n), n, RowsView{activated.data(), rows, n});
    GuardedRows y(rows, n);
    silu_mul(context_, view(gate, rows, n), view(up, rows, n), n, y.view());
    for (int64_t i = 0; i < rows * n; ++i) {
      const size_t at = static_cast<size_t>(i);
      EXPECT_TRUE(same_bits(y.row(i / n)[i % n], activated[at] * up[at]));
    }
    EXPECT_EQ(y.damage(), 0);
  }
}

TEST_F(RowsTest, ArgmaxIsTheFirstOfTheLargest) {
  for (int64_t n : {1, 2, 15, 16, 17, 33, 70}) {
    for (int64_t first = 0; first < n; ++first) {
      std::vector<float> x(static_cast<size_t>(n), -5.0f);
      x[static_cast<size_t>(first)] = -1.0f;
      x.back() = -1.0f;  // a tie further on
      int32_t found = -2;
      argmax(context_, view(x, 1, n), n, &found);
      EXPECT_EQ(found, first) << "n " << n;
    }
  }
}

TEST_F(RowsTest, ArgmaxTakesInfinitiesAndRefusesNan) {
  const int64_t n = 20;
  std::vector<float> x(4 * n, -kInfinity);
  x[n + 9] = kInfinity;
  x[2 * n + 2] = std::nanf("");
  x[3 * n + 19] = std::nanf("");
  int32_t found[4];
  argmax(context_, view(x, 4, n), n, found);
  EXPECT_EQ(found[0], 0);
  EXPECT_EQ(found[1], 9);
  EXPECT_EQ(found[2], -1);
  EXPECT_EQ(found[3], -1);
}

TEST_F(RowsTest, AnyNonfiniteFindsEveryPlace) {
  const int64_t n = 37;
  const std::vector<float> clean(static_cast<size_t>(n), std::numeric_limits<float>::max());
  bool found = true;
  any_nonfinite(context_, view(clean, 1, n), n, &found);
  EXPECT_FALSE(found);
  for (float bad : {kInfinity, -kInfinity, std::nanf("")}) {
    for (size_t at = 0; at < clean.size(); ++at) {
      std::vector<float> x(clean);
      x[at] = bad;
      any_nonfinite(context_, view(x, 1, n), n, &found);
      EXPECT_TRUE(found) << at;
    }
  }
}

}  // namespace
}  // namespace tessera::ops
