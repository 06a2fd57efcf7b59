// linear, its fused forms and the packing of weights, against the reference.
#include "ops/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "ops/embed.h"
#include "ops/glu.h"
#include "ops/reference.h"
#include "simd/isa.h"
#include "tests/ops/support.h"

namespace tessera::ops {
namespace {

constexpr int64_t kRowCounts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 65, 70, 100};
constexpr int64_t kMostRows = 100;

struct Shape {
  int64_t n, k;
};
std::vector<Shape> shapes_of(DType dtype) {
  std::vector<Shape> shapes = {{1, 32}, {16, 64}, {17, 96}, {50, 224}, {33, 576}};
  if (!info(dtype).quantized) shapes.insert(shapes.end(), {{5, 1}, {32, 7}, {40, 45}});
  return shapes;
}

PackedWeight pack(Context& context, std::initializer_list<WeightSource> sources, int64_t k, Compute compute,
                  PanelOrder order = PanelOrder::concatenated) {
  Result<PackedWeight> packed =
      PackedWeight::pack(context, {sources.begin(), sources.size()}, k, compute, order);
  EXPECT_TRUE(packed.ok()) << packed.status().message();
  return std::move(packed).value();
}

ConstRowsView view(const std::vector<float>& x, int64_t rows, int64_t k) {
  return {x.data(), rows, k};
}

class LinearTest : public ::testing::Test {
 protected:
  ThreadPool pool_{{.threads = 2}};
  Context context_{pool_};
};

// The chain of the reference, bit for bit, for every number of rows: law 1 follows.
TEST_F(LinearTest, GivesTheBitsOfTheReferenceForEveryNumberOfRows) {
  Random random(1);
  for (DType dtype : kWeightTypes) {
    for (const auto& [n, k] : shapes_of(dtype)) {
      const std::vector<uint8_t> bytes = random.weights(dtype, n, k);
      const WeightSource source{dtype, bytes.data(), n};
      const std::vector<float> x = random.rows(kMostRows * k);
      for (Compute compute : {Compute::f32, Compute::quantized}) {
        const PackedWeight weight = pack(context_, {source}, k, compute);
        std::vector<float> expected(static_cast<size_t>(kMostRows * n));
        for (int64_t r = 0; r < kMostRows; ++r) {
          for (int64_t o = 0; o < n; ++o) {
            expected[static_cast<size_t>(r * n + o)] =
                reference::dot_chain(source, o, k, &x[static_cast<size_t>(r * k)], compute);
          }
        }
        for (int64_t rows : kRowCounts) {
          GuardedRows y(rows, n);
          linear(context_, weight, view(x, rows, k), y.view());
          int64_t different = 0;
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t o = 0; o < n; ++o)
              different += !same_bits(y.row(r)[o], expected[static_cast<size_t>(r * n + o)]);
          }
          ASSERT_EQ(different, 0) << name(dtype) << " n " << n << " k " << k << " rows " << rows
                                  << " compute " << int(compute);
          ASSERT_EQ(y.damage(), 0) << name(dtype) << " n " << n << " k " << k << " rows " << rows;
        }
      }
    }
  }
}

TEST_F(LinearTest, GivesTheSameBitsForEveryNumberOfThreads) {
  Random random(2);
  const int64_t n = 200, k = 96;
  for (DType dtype : kWeightTypes) {
    const std::vector<uint8_t> bytes = random.weights(dtype, n, k);
    const PackedWeight weight = pack(context_, {{dtype, bytes.data(), n}}, k, Compute::quantized);
    const std::vector<float> x = random.rows(kMostRows * k);
    for (int64_t rows : {int64_t{1}, int64_t{9}, kMostRows}) {
      std::vector<float> first;
      for (int threads : {1, 2, 3}) {
        ThreadPool pool({.threads = threads});
        Context context(pool);
        std::vector<float> y(static_cast<size_t>(rows * n));
        linear(context, weight, view(x, rows, k), RowsView{y.data(), rows, n});
        if (threads == 1) first = y;
        ASSERT_EQ(std::memcmp(y.data(), first.data(), y.size() * sizeof(float)), 0)
            << name(dtype) << " " << rows;
      }
    }
  }
}

// Quantising an activation moves it by at most d / 2, so an output by at most sum |w| d / 2; the f32 chain
// adds at most one rounding of its magnitude an operation.
TEST_F(LinearTest, StaysWithinTheBoundOfTheExactResult) {
  Random random(3);
  const int64_t n = 20, k = 576, rows = 3;
  for (DType dtype : kWeightTypes) {
    const std::vector<uint8_t> bytes = random.weights(dtype, n, k);
    const WeightSource source{dtype, bytes.data(), n};
    const std::vector<float> x = random.rows(rows * k);
    for (Compute compute : {Compute::f32, Compute::quantized}) {
      const PackedWeight weight = pack(context_, {source}, k, compute);
      std::vector<float> y(static_cast<size_t>(rows * n));
      linear(context_, weight, view(x, rows, k), RowsView{y.data(), rows, n});
      for (int64_t r = 0; r < rows; ++r) {
        const float* row = &x[static_cast<size_t>(r * k)];
        const reference::QuantizedRow a = reference::quantize(row, k);
        for (int64_t o = 0; o < n; ++o) {
          const std::vector<float> w = reference::weight_row(source, o, k);
          double moved = 0, magnitude = 0;
          for (int64_t i = 0; i < k; ++i) {
            moved += std::fabs(w[static_cast<size_t>(i)]) * a.d[static_cast<size_t>(i / 32)] * 0.5001;
            // A weight d q + m is summed as two terms; neither exceeds 31 times its scale here.
            magnitude += (std::fabs(w[static_cast<size_t>(i)]) + 2.0) *
                         (std::fabs(row[i]) + a.d[static_cast<size_t>(i / 32)]);
          }
          const bool rounds = compute == Compute::quantized && info(dtype).quantized;
          const double bound = (rounds ? moved : 0) + static_cast<double>(k) * 0x1p-24 * magnitude;
          const double error =
              std::fabs(y[static_cast<size_t>(r * n + o)] - reference::dot_exact(source, o, k, row));
          EXPECT_TRUE(error <= bound) << name(dtype) << " error " << error << " bound " << bound;
        }
      }
    }
  }
}

// The largest sums that int16 and int32 steps of any kernel can meet.
TEST_F(LinearTest, ExtremeWeightsAndActivationsDoNotSaturate) {
  const int64_t n = 16, k = 64;
  for (DType dtype : {DType::q4_0, DType::q4_1, DType::q8_0}) {
    for (uint8_t fill : {uint8_t{0x00}, uint8_t{0xff}, uint8_t{0x80}, uint8_t{0x7f}, uint8_t{0x0f}}) {
      std::vector<uint8_t> bytes(static_cast<size_t>(n * k / 32 * info(dtype).block_bytes), fill);
      const uint16_t one = f32_to_f16(1.0f);
      for (size_t at = 0; at < bytes.size(); at += static_cast<size_t>(info(dtype).block_bytes)) {
        std::memcpy(&bytes[at], &one, 2);
        if (dtype == DType::q4_1) std::memcpy(&bytes[at + 2], &one, 2);
      }
      const WeightSource source{dtype, bytes.data(), n};
      const PackedWeight weight = pack(context_, {source}, k, Compute::quantized);
      for (float sign : {1.0f, -1.0f}) {
        for (bool alternate : {false, true}) {
          std::vector<float> x(static_cast<size_t>(k));
          for (size_t i = 0; i < x.size(); ++i) x[i] = alternate && i % 2 ? -sign : sign;
          std::vector<float> y(static_cast<size_t>(n));
          linear(context_, weight, view(x, 1, k), RowsView{y.data(), 1, n});
          for (int64_t o = 0; o < n; ++o) {
            EXPECT_TRUE(same_bits(y[static_cast<size_t>(o)],
                                  reference::dot_chain(source, o, k, x.data(), Compute::quantized)))
                << name(dtype) << " fill " << int(fill);
          }
        }
      }
    }
  }
}

TEST_F(LinearTest, NonFiniteRowsStayAmongThemselves) {
  Random random(4);
  const int64_t n = 24, k = 64, rows = 11;
  for (DType dtype : kWeightTypes) {
    const std::vector<uint8_t> bytes = random.weights(dtype, n, k);
    const PackedWeight weight = pack(context_, {{dtype, bytes.data(), n}}, k, Compute::quantized);
    std::vector<float> x = random.rows(rows * k), clean(static_cast<size_t>(rows * n)), y = clean;
    linear(context_, weight, view(x, rows, k), RowsView{clean.data(), rows, n});
    x[3 * k + 40] = std::nanf("");
    x[8 * k + 5] = -INFINITY;
    linear(context_, weight, view(x, rows, k), RowsView{y.data(), rows, n});
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t o = 0; o < n; ++o) {
        const float value = y[static_cast<size_t>(r * n + o)];
        if (r == 3 || r == 8) {
          EXPECT_FALSE(std::isfinite(value)) << name(dtype) << " row " << r;
        } else {
          EXPECT_TRUE(same_bits(value, clean[static_cast<size_t>(r * n + o)])) << name(dtype) << " row " << r;
        }
      }
    }
  }
}

TEST_F(LinearTest, ANanWeightReachesItsOutputOnly) {
  Random random(5);
  const int64_t n = 20, k = 64;
  for (DType dtype : kWeightTypes) {
    std::vector<uint8_t> bytes = random.weights(dtype, n, k);
    const size_t row_bytes = bytes.size() / n;
    const uint16_t nan16 = dtype == DType::bf16 ? 0x7fc0 : 0x7e00;
    const float nan32 = std::nanf("");
    dtype == DType::f32 ? std::memcpy(&bytes[7 * row_bytes], &nan32, 4)
                        : std::memcpy(&bytes[7 * row_bytes], &nan16, 2);
    const PackedWeight weight = pack(context_, {{dtype, bytes.data(), n}}, k, Compute::quantized);
    const std::vector<float> x = random.rows(k);
    std::vector<float> y(static_cast<size_t>(n));
    linear(context_, weight, view(x, 1, k), RowsView{y.data(), 1, n});
    for (int64_t o = 0; o < n; ++o) EXPECT_EQ(std::isnan(y[static_cast<size_t>(o)]), o == 7) << name(dtype);
  }
}

TEST_F(LinearTest, AddIsOneAdditionAfterTheChain) {
  Random random(6);
  const int64_t n = 40, k = 64, rows = 10;
  for (DType dtype : kWeightTypes) {
    const std::vector<uint8_t> bytes = random.weights(dtype, n, k);
    const PackedWeight weight = pack(context_, {{dtype, bytes.data(), n}}, k, Compute::quantized);
    const std::vector<float> x = random.rows(rows * k), residual = random.rows(rows * n);
    std::vector<float> product(static_cast<size_t>(rows * n));
    linear(context_, weight, view(x, rows, k), RowsView{product.data(), rows, n});
    GuardedRows y(rows, n);
    for (int64_t r = 0; r < rows; ++r) std::copy_n(&residual[static_cast<size_t>(r * n)], n, y.view().row(r));
    linear_add(context_, weight, view(x, rows, k), y.view());
    for (int64_t i = 0; i < rows * n; ++i) {
      EXPECT_TRUE(
          same_bits(y.row(i / n)[i % n], residual[static_cast<size_t>(i)] + product[static_cast<size_t>(i)]));
    }
    EXPECT_EQ(y.damage(), 0);
  }
}

TEST_F(LinearTest, ConcatenatedSourcesOfAnyKindsEqualTheirOwnProducts) {
  Random random(7);
  const int64_t k = 64, rows = 9;
  const std::vector<float> x = random.rows(rows * k);
  const std::vector<uint8_t> q = random.weights(DType::q4_1, 33, k), w = random.weights(DType::q8_0, 16, k),
                             v = random.weights(DType::bf16, 5, k);
  const WeightSource sources[] = {
      {DType::q4_1, q.data(), 33}, {DType::q8_0, w.data(), 16}, {DType::bf16, v.data(), 5}};
  const PackedWeight all = pack(context_, {sources[0], sources[1], sources[2]}, k, Compute::quantized);
  EXPECT_EQ(all.n(), 54);
  EXPECT_EQ(all.kinds(), "q4_1+q8_0+bf16");
  EXPECT_FALSE(all.takes_quantized());
  EXPECT_TRUE(all.has_quantized());
  GuardedRows together(rows, 54);
  linear(context_, all, view(x, rows, k), together.view());
  int64_t first = 0;
  for (const WeightSource& source : sources) {
    const PackedWeight one = pack(context_, {source}, k, Compute::quantized);
    std::vector<float> y(static_cast<size_t>(rows * one.n()));
    linear(context_, one, view(x, rows, k), RowsView{y.data(), rows, one.n()});
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t o = 0; o < one.n(); ++o) {
        EXPECT_TRUE(same_bits(together.row(r)[first + o], y[static_cast<size_t>(r * one.n() + o)]));
      }
    }
    first += one.n();
  }
  EXPECT_EQ(together.damage(), 0);
}

TEST_F(LinearTest, RowsQuantisedBeforehandGiveTheSameBits) {
  Random random(8);
  const int64_t n = 48, k = 96, rows = 19;
  const std::vector<uint8_t> bytes = random.weights(DType::q4_0, n, k);
  const PackedWeight weight = pack(context_, {{DType::q4_0, bytes.data(), n}}, k, Compute::quantized);
  const std::vector<float> x = random.rows(rows * k);
  std::vector<float> inside(static_cast<size_t>(rows * n)), before = inside;
  linear(context_, weight, view(x, rows, k), RowsView{inside.data(), rows, n});
  QuantizedRows quantized;
  quantize(context_, view(x, rows, k), k, quantized);
  linear(context_, weight, quantized, RowsView{before.data(), rows, n});
  EXPECT_EQ(std::memcmp(inside.data(), before.data(), inside.size() * sizeof(float)), 0);
}

// silu(gate) * up in the epilogue is the unfused product, and its quantised form the quantised product.
TEST_F(LinearTest, GateUpSiluEqualsTheUnfusedOps) {
  Random random(9);
  const int64_t k = 64;
  for (int64_t f : {int64_t{1}, int64_t{20}, int64_t{32}, int64_t{96}}) {
    for (DType dtype : kWeightTypes) {
      const DType up_type = dtype == DType::q4_1 ? DType::q8_0 : dtype;
      const std::vector<uint8_t> gate_bytes = random.weights(dtype, f, k),
                                 up_bytes = random.weights(up_type, f, k);
      const WeightSource gate{dtype, gate_bytes.data(), f}, up{up_type, up_bytes.data(), f};
      const PackedWeight fused = pack(context_, {gate, up}, k, Compute::quantized, PanelOrder::interleaved);
      const PackedWeight apart = pack(context_, {gate, up}, k, Compute::quantized);
      for (int64_t rows : {int64_t{1}, int64_t{8}, int64_t{13}, int64_t{66}}) {
        const std::vector<float> x = random.rows(rows * k);
        std::vector<float> both(static_cast<size_t>(rows * 2 * f)), product(static_cast<size_t>(rows * f));
        linear(context_, apart, view(x, rows, k), RowsView{both.data(), rows, 2 * f});
        silu_mul(context_, {both.data(), rows, 2 * f}, {both.data() + f, rows, 2 * f}, f,
                 {product.data(), rows, f});
        GuardedRows y(rows, f);
        gate_up_silu(context_, fused, view(x, rows, k), y.view());
        for (int64_t i = 0; i < rows * f; ++i) {
          ASSERT_TRUE(same_bits(y.row(i / f)[i % f], product[static_cast<size_t>(i)]))
              << name(dtype) << " f " << f;
        }
        EXPECT_EQ(y.damage(), 0);
        // An interleaved weight still multiplies as a plain one.
        std::vector<float> plain(both.size());
        linear(context_, fused, view(x, rows, k), RowsView{plain.data(), rows, 2 * f});
        EXPECT_EQ(std::memcmp(plain.data(), both.data(), both.size() * sizeof(float)), 0);
        if (f % 32 != 0) continue;
        QuantizedRows expected, quantized;
        quantize(context_, view(product, rows, f), f, expected);
        gate_up_silu(context_, fused, view(x, rows, k), quantized);
        EXPECT_EQ(std::memcmp(quantized.view().data, expected.view().data,
                              static_cast<size_t>(QuantizedRowsView::bytes(rows, f))),
                  0);
      }
    }
  }
}

TEST_F(LinearTest, ExplainNamesTheKernel) {
  Random random(10);
  const std::vector<uint8_t> a = random.weights(DType::q4_1, 16, 32), b = random.weights(DType::f32, 16, 32);
  const PackedWeight weight =
      pack(context_, {{DType::q4_1, a.data(), 16}, {DType::f32, b.data(), 16}}, 32, Compute::quantized);
  std::string isa = simd::name(*simd::requested_isa());
  if (isa == "avx512bf16" || isa == "amx") isa = "avx512";  // integer dots are the same there
  EXPECT_EQ(explain_linear(weight, 100), "q4_1:" + isa + ":6x32 f32:" + isa + ":6x32");
  EXPECT_EQ(explain_linear(weight, 1), "q4_1:" + isa + ":1x32 f32:" + isa + ":1x32");
}

TEST_F(LinearTest, EmbedReadsRowsOfThePackedTable) {
  Random random(11);
  const int64_t n = 37, k = 64;
  for (DType dtype : kWeightTypes) {
    const std::vector<uint8_t> bytes = random.weights(dtype, n, k);
    const WeightSource source{dtype, bytes.data(), n};
    for (Compute compute : {Compute::f32, Compute::quantized}) {
      const PackedWeight table = pack(context_, {source}, k, compute);
      const std::vector<int32_t> tokens = {0, 36, 15, 16, 36, 7, 31};
      GuardedRows out(static_cast<int64_t>(tokens.size()), k);
      embed(context_, table, tokens, out.view());
      for (size_t t = 0; t < tokens.size(); ++t) {
        const std::vector<float> expected = reference::weight_row(source, tokens[t], k);
        EXPECT_EQ(
            std::memcmp(out.row(static_cast<int64_t>(t)), expected.data(), expected.size() * sizeof(float)),
            0)
            << name(dtype);
      }
      EXPECT_EQ(out.damage(), 0);
    }
  }
}

// Blocks written by hand from the format's description: d = 0.5, m = -3, quants that count.
TEST_F(LinearTest, BlocksDecodeAsTheFormatSays) {
  std::vector<uint8_t> q4_0 = {0x00, 0x38}, q4_1 = {0x00, 0x38, 0x00, 0xc2}, q8_0 = {0x00, 0x38};
  for (int i = 0; i < 16; ++i) q4_0.push_back(static_cast<uint8_t>(i | (15 - i) << 4));
  for (int i = 0; i < 16; ++i) q4_1.push_back(static_cast<uint8_t>(i | (15 - i) << 4));
  for (int i = 0; i < 32; ++i) q8_0.push_back(static_cast<uint8_t>(i * 8 - 128));
  for (Compute compute : {Compute::f32, Compute::quantized}) {
    const PackedWeight a = pack(context_, {{DType::q4_0, q4_0.data(), 1}}, 32, compute);
    const PackedWeight b = pack(context_, {{DType::q4_1, q4_1.data(), 1}}, 32, compute);
    const PackedWeight c = pack(context_, {{DType::q8_0, q8_0.data(), 1}}, 32, compute);
    float of_a[32], of_b[32], of_c[32];
    a.dequantize_row(0, of_a);
    b.dequantize_row(0, of_b);
    c.dequantize_row(0, of_c);
    for (int i = 0; i < 32; ++i) {
      const float nibble = static_cast<float>(i < 16 ? i : 31 - i);
      EXPECT_EQ(of_a[i], 0.5f * (nibble - 8.0f)) << i;
      EXPECT_EQ(of_b[i], 0.5f * nibble - 3.0f) << i;
      EXPECT_EQ(of_c[i], 0.5f * static_cast<float>(i * 8 - 128)) << i;
    }
  }
}

TEST_F(LinearTest, PackedBlocksTakeTheBytesOfTheFile) {
  Random random(12);
  const int64_t n = 48, k = 576;
  for (DType dtype : kWeightTypes) {
    const std::vector<uint8_t> bytes = random.weights(dtype, n, k);
    const PackedWeight weight = pack(context_, {{dtype, bytes.data(), n}}, k, Compute::quantized);
    EXPECT_EQ(weight.bytes(), static_cast<int64_t>(bytes.size())) << name(dtype);
  }
}

TEST_F(LinearTest, PackRefusesWhatItCannotHold) {
  const float data[64] = {};
  const auto code = [&](std::vector<WeightSource> sources, int64_t k,
                        PanelOrder order = PanelOrder::concatenated) {
    return PackedWeight::pack(context_, sources, k, Compute::quantized, order).status().code();
  };
  EXPECT_EQ(code({}, 32), StatusCode::invalid_argument);
  EXPECT_EQ(code({{DType::f32, data, 1}}, 0), StatusCode::invalid_argument);
  EXPECT_EQ(code({{DType::f32, data, 1}}, int64_t{1} << 40), StatusCode::invalid_argument);
  EXPECT_EQ(code({{DType::f32, nullptr, 1}}, 32), StatusCode::invalid_argument);
  EXPECT_EQ(code({{DType::f32, data, 0}}, 32), StatusCode::invalid_argument);
  EXPECT_EQ(code({{DType::q8_0, data, 1}}, 33), StatusCode::invalid_argument);
  EXPECT_EQ(code({{DType::i8, data, 1}}, 32), StatusCode::unsupported);
  EXPECT_EQ(code({{DType::f32, data, 1}, {DType::f32, data, 2}}, 32, PanelOrder::interleaved),
            StatusCode::invalid_argument);
  EXPECT_EQ(code({{DType::f32, data, 1}}, 32, PanelOrder::interleaved), StatusCode::invalid_argument);
}

TEST_F(LinearTest, PackReportsMemoryOut) {
  class Empty final : public Allocator {
   public:
    void* allocate(size_t) override { return nullptr; }
    void deallocate(void*, size_t) override {}
  } empty;
  const float data[32] = {};
  const WeightSource source{DType::f32, data, 1};
  const Result<PackedWeight> packed =
      PackedWeight::pack(context_, {&source, 1}, 32, Compute::f32, PanelOrder::concatenated, empty);
  EXPECT_EQ(packed.status().code(), StatusCode::resource_exhausted);
}

TEST_F(LinearTest, TheQuantiserGivesTheBitsOfTheReference) {
  Random random(13);
  const int64_t k = 160;
  for (int64_t rows : {int64_t{1}, int64_t{8}, int64_t{11}}) {
    std::vector<float> x = random.rows(rows * k);
    for (int64_t i = 0; i < 32; ++i) x[static_cast<size_t>(i)] = 0.0f;
    for (int64_t i = 32; i < 64; ++i) x[static_cast<size_t>(i)] *= 0x1p-125f;  // 127 / a would be infinite
    for (int64_t i = 64; i < 96; ++i) x[static_cast<size_t>(i)] *= 0x1p120f;
    x[100] = std::nanf("");
    x[130] = INFINITY;
    QuantizedRows out;
    quantize(context_, view(x, rows, k), k, out);
    for (int64_t r = 0; r < rows; ++r) {
      const reference::QuantizedRow expected = reference::quantize(&x[static_cast<size_t>(r * k)], k);
      const QuantizedRowPointer at = out.view().row(r);
      for (int64_t b = 0; b < k / 32; ++b) {
        float d, s;
        int32_t minus8, minus128;
        std::memcpy(&d, at.f + b * at.step, 4);
        std::memcpy(&s, at.f + b * at.step + at.field, 4);
        std::memcpy(&minus8, at.f + b * at.step + 2 * at.field, 4);
        std::memcpy(&minus128, at.f + b * at.step + 3 * at.field, 4);
        int sum = 0;
        for (int i = 0; i < 32; ++i) {
          const int q = static_cast<int8_t>(at.q[b * at.step + i]);
          EXPECT_EQ(q, expected.q[static_cast<size_t>(b * 32 + i)]);
          sum += q;
        }
        const float want_d = expected.d[static_cast<size_t>(b)];
        EXPECT_TRUE(std::isnan(want_d) ? std::isnan(d) && std::isnan(s) : same_bits(d, want_d))
            << r << " " << b;
        EXPECT_TRUE(std::isnan(want_d) || same_bits(s, expected.s[static_cast<size_t>(b)]));
        EXPECT_EQ(minus8, -8 * sum);
        EXPECT_EQ(minus128, -128 * sum);
      }
    }
  }
}

}  // namespace
}  // namespace tessera::ops
