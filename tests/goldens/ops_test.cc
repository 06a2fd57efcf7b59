// Single operations against PyTorch, transformers and gguf-py (tests/goldens/README.md), on every ISA.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>

#include "core/context.h"
#include "ops/glu.h"
#include "ops/packed_weight.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "tests/support/golden.h"

namespace tessera::ops {
namespace {

using test::Golden;
using test::GoldenCase;

// The goldens are right to half a unit in the last place, so what is left is the op's own float32 rounding.
constexpr double kUnit = 1.0 / (1 << 24);  // half an ulp, relative

struct Rows {
  explicit Rows(const GoldenCase& c, std::string_view tensor)
      : values(c.f32(tensor).begin(), c.f32(tensor).end()), rows(c.shape(tensor)[0]) {}
  Rows(int64_t rows_in, int64_t columns) : values(rows_in * columns, std::nanf("")), rows(rows_in) {}
  int64_t columns() const { return static_cast<int64_t>(values.size()) / rows; }
  operator RowsView() { return {values.data(), rows, columns()}; }
  operator ConstRowsView() const { return {values.data(), rows, columns()}; }
  std::vector<float> values;
  int64_t rows;
};

// |got - expected| <= units half-ulps of the expected value, plus `floor`.
void expect_close(std::span<const float> got, std::span<const float> expected, double units, double floor) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = std::abs(static_cast<double>(got[i]) - expected[i]);
    const double limit = units * kUnit * std::abs(static_cast<double>(expected[i])) + floor;
    ASSERT_TRUE(difference <= limit) << "element " << i << ": " << got[i] << ", expected " << expected[i];
  }
}

class OpGoldens : public ::testing::Test {
 protected:
  ThreadPool pool_{{.threads = 2}};
  Context context_{pool_};
};

TEST_F(OpGoldens, RmsNormAlone) {
  const Golden golden = Golden::load("ops_rms_norm");
  for (const GoldenCase& c : golden.cases()) {
    SCOPED_TRACE(c.name());
    const Rows x(c, "x");
    const RmsNorm norm{c.f32("weight").data(), x.columns(), static_cast<float>(c.number("epsilon"))};
    Rows y(x.rows, x.columns());
    rms_norm(context_, norm, x, y);
    // The sum of squares is all positive: its relative error is at most the depth of its tree, halved by the
    // root.
    expect_close(y.values, c.f32("y"), 16, 0);
  }
}

TEST_F(OpGoldens, RmsNormOfASumThatStaysInTheResidual) {
  const Golden golden = Golden::load("ops_rms_norm");
  for (const GoldenCase& c : golden.cases()) {
    SCOPED_TRACE(c.name());
    Rows residual(c, "x");
    const Rows delta(c, "delta");
    const RmsNorm norm{c.f32("weight").data(), delta.columns(), static_cast<float>(c.number("epsilon"))};
    Rows y(delta.rows, delta.columns());
    add_rms_norm(context_, norm, delta, residual, y);
    expect_close(residual.values, c.f32("sum"), 0, 0);
    expect_close(y.values, c.f32("y_of_sum"), 16, 0);
  }
}

void rope_agrees(Context& context, RopeStyle style, std::string_view expected) {
  const Golden golden = Golden::load("ops_rope");
  for (const GoldenCase& c : golden.cases()) {
    SCOPED_TRACE(c.name());
    RopeConfig config;
    config.dims = static_cast<int>(c.integer("dims"));
    config.base = static_cast<float>(c.number("base"));
    config.style = style;
    config.factor = static_cast<float>(c.number("factor"));
    config.scaling = config.factor == 1.0f ? RopeScaling::none : RopeScaling::linear;
    config.max_positions = 8192;
    const Result<RopeTable> table = RopeTable::create(config);
    ASSERT_TRUE(table.ok()) << table.status().message();
    Rows x(c, "x");
    const int heads = static_cast<int>(c.shape("x")[1]), head_dim = static_cast<int>(c.shape("x")[2]);
    rope(context, *table, x, heads, head_dim, c.i32("positions"));
    const std::span<const float> want = c.f32(expected);
    for (int64_t row = 0; row < x.rows; ++row) {
      // A frequency that differs in its last bit turns the angle by position * 2^-24 at most; cos and sin
      // follow.
      const double turn = (c.i32("positions")[static_cast<size_t>(row)] + 4) * 2 * kUnit;
      const size_t width = static_cast<size_t>(heads) * static_cast<size_t>(head_dim);
      const std::span<const float> expected_row = want.subspan(static_cast<size_t>(row) * width, width);
      const double limit = turn * test::max_magnitude(expected_row) * std::sqrt(2.0);
      const double difference = test::max_difference({ConstRowsView(x).row(row), width}, expected_row);
      EXPECT_TRUE(difference <= limit) << "row " << row << ": " << difference << " > " << limit;
    }
  }
}
TEST_F(OpGoldens, RopeOfHalves) {
  rope_agrees(context_, RopeStyle::half, "half");
}
TEST_F(OpGoldens, RopeOfNeighbours) {
  rope_agrees(context_, RopeStyle::interleaved, "interleaved");
}

TEST_F(OpGoldens, SiluAndTheGatedUnit) {
  const Golden golden = Golden::load("ops_glu");
  for (const GoldenCase& c : golden.cases()) {
    SCOPED_TRACE(c.name());
    const Rows gate(c, "gate"), up(c, "up");
    Rows y(gate.rows, gate.columns());
    silu(context_, gate, gate.columns(), y);
    // Below the normal range a result may become zero.
    expect_close(y.values, c.f32("silu"), 8, 1.2e-36);
    silu_mul(context_, gate, up, gate.columns(), y);
    expect_close(y.values, c.f32("silu_mul"), 10, 1.2e-36);
  }
}

TEST_F(OpGoldens, WeightsMeanWhatGgufPySaysBitForBit) {
  const Golden golden = Golden::load("ops_dequantize");
  const std::map<int64_t, DType> types = {
      {1, DType::f16}, {2, DType::q4_0}, {3, DType::q4_1}, {8, DType::q8_0}, {30, DType::bf16}};
  for (const GoldenCase& c : golden.cases()) {
    SCOPED_TRACE(c.name());
    const std::vector<int64_t>& shape = c.shape("values");
    const WeightSource source{types.at(c.integer("type")), c.u8("bytes").data(), shape[0]};
    for (const Compute compute : {Compute::f32, Compute::quantized}) {
      const Result<PackedWeight> packed = PackedWeight::pack(context_, {&source, 1}, shape[1], compute);
      ASSERT_TRUE(packed.ok()) << packed.status().message();
      std::vector<float> row(static_cast<size_t>(shape[1]));
      for (int64_t r = 0; r < shape[0]; ++r) {
        packed->dequantize_row(r, row.data());
        const float* expected = c.f32("values").data() + r * shape[1];
        EXPECT_EQ(0, std::memcmp(row.data(), expected, row.size() * sizeof(float))) << "row " << r;
      }
    }
  }
}

}  // namespace
}  // namespace tessera::ops
