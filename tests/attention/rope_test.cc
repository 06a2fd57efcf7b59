// Rotary embedding: frequencies against transformers, rows against a double calculation, backward as the
// transposed map, strides and dtypes, refusals.
#include "tessera/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "core/context.h"
#include "tests/support/golden.h"

namespace tessera::attention {
namespace {

using test::Golden;
using test::GoldenCase;

RopeScaling scaling_of(const std::string& text) {
  if (text == "linear") return RopeScaling::linear;
  if (text == "ntk") return RopeScaling::ntk;
  if (text == "dynamic_ntk") return RopeScaling::dynamic_ntk;
  if (text == "yarn") return RopeScaling::yarn;
  if (text == "llama3") return RopeScaling::llama3;
  EXPECT_EQ(text, "none");
  return RopeScaling::none;
}

TEST(RopeFrequencies, AreThoseOfTransformers) {
  const Golden golden = Golden::load("rope_frequencies");
  for (const GoldenCase& c : golden.cases()) {
    SCOPED_TRACE(c.name());
    RopeConfig config;
    config.rotary_dim = static_cast<int>(c.integer("rotary_dim"));
    config.base = c.number("base");
    config.scaling = scaling_of(c.text("scaling"));
    if (c.has_param("original")) config.original_max_positions = c.integer("original");
    if (c.has_param("seqlen")) config.seqlen = c.integer("seqlen");
    if (c.has_param("truncate")) config.truncate = c.boolean("truncate");
    const auto read = [&](const char* name, double& value) {
      if (c.has_param(name)) value = c.number(name);
    };
    read("factor", config.factor);
    read("beta_fast", config.beta_fast);
    read("beta_slow", config.beta_slow);
    read("attention_factor", config.attention_factor);
    read("mscale", config.mscale);
    read("mscale_all_dim", config.mscale_all_dim);
    read("low_freq_factor", config.low_freq_factor);
    read("high_freq_factor", config.high_freq_factor);
    const auto made = rope_frequencies(config);
    ASSERT_TRUE(made.ok()) << made.status().message();
    const std::span<const float> want = c.f32("frequency");
    ASSERT_EQ(made->frequency.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      // A power, a quotient and the ramp: a few roundings of f32 each.
      const double limit = 8 * 0x1p-24 * std::abs(want[i]);
      EXPECT_TRUE(std::abs(double{made->frequency[i]} - want[i]) <= limit)
          << i << ": " << made->frequency[i] << " for " << want[i];
    }
    EXPECT_TRUE(std::abs(made->attention_scaling - c.number("attention_scaling")) <= 1e-6);
  }
}

TEST(RopeFrequencies, NameTheBadField) {
  RopeConfig good;
  good.rotary_dim = 64;
  good.factor = 2;
  good.original_max_positions = 2048;
  const auto field = [&](RopeConfig config) { return rope_frequencies(config).status().field(); };
  const auto with = [&](auto&& change) {
    RopeConfig config = good;
    change(config);
    return field(config);
  };
  EXPECT_EQ(field(good), "");
  EXPECT_EQ(with([](RopeConfig& c) { c.rotary_dim = 63; }), "rotary_dim");
  EXPECT_EQ(with([](RopeConfig& c) { c.rotary_dim = 0; }), "rotary_dim");
  EXPECT_EQ(with([](RopeConfig& c) { c.base = NAN; }), "base");
  EXPECT_EQ(with([](RopeConfig& c) { c.scaling = RopeScaling::linear, c.factor = 0; }), "factor");
  EXPECT_EQ(with([](RopeConfig& c) { c.scaling = RopeScaling::yarn, c.factor = 0.5; }), "factor");
  EXPECT_EQ(with([](RopeConfig& c) { c.scaling = RopeScaling::ntk, c.rotary_dim = 2; }), "rotary_dim");
  EXPECT_EQ(with([](RopeConfig& c) { c.scaling = RopeScaling::dynamic_ntk, c.seqlen = -1; }), "seqlen");
  EXPECT_EQ(with([](RopeConfig& c) { c.scaling = RopeScaling::yarn, c.original_max_positions = 0; }),
            "original_max_positions");
  EXPECT_EQ(with([](RopeConfig& c) { c.scaling = RopeScaling::yarn, c.beta_fast = 0.5; }), "beta_fast");
  EXPECT_EQ(with([](RopeConfig& c) { c.scaling = RopeScaling::llama3, c.high_freq_factor = 1; }),
            "high_freq_factor");
  EXPECT_EQ(with([](RopeConfig& c) { c.struct_size = 8; }), "struct_size");
}

// Values of a dtype in memory, with NaN between what is read and canaries where nothing may be written.
struct Tensor {
  DType dtype;
  std::vector<float> f32;
  std::vector<uint16_t> half;

  Tensor(DType dtype_in, size_t count) : dtype(dtype_in), f32(count, NAN), half(count, 0x7fff) {}
  void* data() { return dtype == DType::f32 ? static_cast<void*>(f32.data()) : half.data(); }
  float get(size_t i) const {
    return dtype == DType::f32 ? f32[i] : dtype == DType::f16 ? f16_to_f32(half[i]) : bf16_to_f32(half[i]);
  }
  void set(size_t i, float value) {
    if (dtype == DType::f32) f32[i] = value;
    if (dtype == DType::f16) half[i] = f32_to_f16(value);
    if (dtype == DType::bf16) half[i] = f32_to_bf16(value);
  }
};

double unit_of(DType dtype) {
  return dtype == DType::f32 ? 0x1p-24 : dtype == DType::f16 ? 0x1p-11 : 0x1p-8;
}

constexpr int kBatch = 2, kSeqlen = 5, kHeads = 3, kPositions = 40;

struct Case {
  DType dtype;
  RopeStyle style;
  int head_dim, rotary_dim;
};

class Rope : public ::testing::TestWithParam<Case> {};

TEST_P(Rope, RotatesEachPairAndBackwardIsTheTransposedMap) {
  const auto [dtype, style, head_dim, rotary_dim] = GetParam();
  const uint32_t seed = 11;
  std::printf("seed: %u\n", seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  RopeConfig config;
  config.rotary_dim = rotary_dim;
  config.style = style;
  config.scaling = RopeScaling::yarn;  // cos and sin are not of length 1
  config.factor = 4;
  config.original_max_positions = 16;
  const auto table = RopeTable::create(config, kPositions);
  ASSERT_TRUE(table.ok());

  const int64_t head_stride = head_dim + 3, row_stride = kHeads * head_stride + 5,
                batch_stride = kSeqlen * row_stride + 7;
  Tensor x(dtype, static_cast<size_t>(kBatch * batch_stride)), out = x, dout = x, dx = x, in_place = x;
  RopeProblem problem;
  problem.batch = kBatch;
  problem.seqlen = kSeqlen;
  problem.heads = kHeads;
  problem.head_dim = head_dim;
  problem.dtype = dtype;
  problem.rotary = rotary(*table);
  const int32_t positions[] = {0, 39, 2, 2, 17, 5, 6, 7, 1, 30};
  problem.positions = positions;
  problem.positions_batch_stride = kSeqlen;
  const auto each = [&](auto&& fn) {
    for (int64_t b = 0; b < kBatch; ++b)
      for (int64_t t = 0; t < kSeqlen; ++t)
        for (int64_t h = 0; h < kHeads; ++h)
          fn(static_cast<size_t>(b * batch_stride + t * row_stride + h * head_stride),
             positions[b * kSeqlen + t]);
  };
  each([&](size_t at, int32_t) {
    for (int d = 0; d < head_dim; ++d) {
      x.set(at + size_t(d), normal(random));
      dout.set(at + size_t(d), normal(random));
      in_place.set(at + size_t(d), x.get(at + size_t(d)));
    }
  });
  ThreadPool pool({.threads = 2});
  Context context(pool);
  const auto strided = [&](Tensor& t) {
    return Strided<void*>{t.data(), batch_stride, row_stride, head_stride};
  };
  const auto read_only = [&](Tensor& t) {
    return Strided<const void*>{t.data(), batch_stride, row_stride, head_stride};
  };
  ASSERT_TRUE(rope_forward(context, problem, read_only(x), strided(out)).ok());
  ASSERT_TRUE(rope_backward(context, problem, read_only(dout), strided(dx)).ok());
  ASSERT_TRUE(rope_forward(context, problem, read_only(in_place), strided(in_place)).ok());
  EXPECT_EQ(std::memcmp(in_place.data(), out.data(), out.half.size() * 2), 0) << "in place";

  double forward_product = 0, backward_product = 0, size = 0;
  size_t written = 0;
  each([&](size_t at, int32_t position) {
    for (int i = 0; i < rotary_dim / 2; ++i) {
      const size_t a = at + size_t(style == RopeStyle::half ? i : 2 * i);
      const size_t b = at + size_t(style == RopeStyle::half ? i + rotary_dim / 2 : 2 * i + 1);
      const double c = table->cos()[position * rotary_dim / 2 + i],
                   s = table->sin()[position * rotary_dim / 2 + i];
      const double want_a = x.get(a) * c - x.get(b) * s, want_b = x.get(a) * s + x.get(b) * c;
      // Rounded once to the dtype, on top of f32's own.
      const double limit = (unit_of(dtype) + 2 * 0x1p-24) * 1.5 * (std::abs(x.get(a)) + std::abs(x.get(b)));
      EXPECT_TRUE(std::abs(out.get(a) - want_a) <= limit);
      EXPECT_TRUE(std::abs(out.get(b) - want_b) <= limit);
    }
    for (int d = 0; d < head_dim; ++d) {
      const size_t i = at + size_t(d);
      if (d >= rotary_dim) {
        EXPECT_EQ(out.get(i), x.get(i)) << "passes unchanged";
      }
      forward_product += double{out.get(i)} * dout.get(i);
      backward_product += double{x.get(i)} * dx.get(i);
      size += std::abs(double{out.get(i)} * dout.get(i)) + std::abs(double{x.get(i)} * dx.get(i));
      ++written;
    }
  });
  // <R x, dout> = <x, R' dout>
  EXPECT_TRUE(std::abs(forward_product - backward_product) <= 2 * unit_of(dtype) * size);
  size_t numbers = 0;
  for (size_t i = 0; i < out.f32.size(); ++i) numbers += !std::isnan(out.get(i));
  EXPECT_EQ(numbers, written) << "something between the rows was written";
}

INSTANTIATE_TEST_SUITE_P(DtypesAndStyles, Rope,
                         ::testing::Values(Case{DType::f32, RopeStyle::half, 64, 64},
                                           Case{DType::f32, RopeStyle::interleaved, 64, 64},
                                           Case{DType::f32, RopeStyle::half, 40, 24},
                                           Case{DType::f32, RopeStyle::interleaved, 24, 2},
                                           Case{DType::bf16, RopeStyle::half, 64, 32},
                                           Case{DType::bf16, RopeStyle::interleaved, 40, 40},
                                           Case{DType::f16, RopeStyle::half, 40, 40},
                                           Case{DType::f16, RopeStyle::interleaved, 128, 64}));

TEST(RopeRows, AgreeWithTransformersRotation) {
  const Golden golden = Golden::load("ops_rope");
  ThreadPool pool({.threads = 1});
  Context context(pool);
  for (const GoldenCase& c : golden.cases()) {
    RopeConfig config;
    config.rotary_dim = static_cast<int>(c.integer("dims"));
    config.base = c.number("base");
    config.factor = c.number("factor");
    config.scaling = config.factor == 1.0 ? RopeScaling::none : RopeScaling::linear;
    for (const char* style : {"half", "interleaved"}) {
      SCOPED_TRACE(c.name() + " " + style);
      config.style = std::string(style) == "half" ? RopeStyle::half : RopeStyle::interleaved;
      const auto table = RopeTable::create(config, 8192);
      ASSERT_TRUE(table.ok());
      RopeProblem problem;
      problem.seqlen = c.shape("x")[0];
      problem.heads = static_cast<int>(c.shape("x")[1]);
      problem.head_dim = static_cast<int>(c.shape("x")[2]);
      problem.rotary = rotary(*table);
      problem.positions = c.i32("positions").data();
      std::vector<float> out(c.f32("x").size());
      const void* x = c.f32("x").data();
      ASSERT_TRUE(rope_forward(context, problem,
                               contiguous(x, problem.seqlen, problem.heads, problem.head_dim),
                               contiguous<void*>(out.data(), problem.seqlen, problem.heads, problem.head_dim))
                      .ok());
      const size_t width = size_t(problem.heads) * size_t(problem.head_dim);
      for (size_t row = 0; row < size_t(problem.seqlen); ++row) {
        // A frequency that differs in its last bit turns the angle by position * 2^-24 at most.
        const std::span<const float> want = c.f32(style).subspan(row * width, width);
        const double limit =
            (c.i32("positions")[row] + 4) * 0x1p-23 * test::max_magnitude(want) * std::sqrt(2.0);
        EXPECT_TRUE(test::max_difference({out.data() + row * width, width}, want) <= limit) << row;
      }
    }
  }
}

TEST(RopeRows, OffsetsVarlenAndTablesOfTheCallersAgree) {
  RopeConfig config;
  config.rotary_dim = 16;
  const auto table = RopeTable::create(config, 32);
  ASSERT_TRUE(table.ok());
  ThreadPool pool({.threads = 2});
  Context context(pool);
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const int32_t cu[] = {0, 3, 3, 8}, offsets[] = {4, 9, 20};
  const int32_t positions[] = {4, 5, 6, 20, 21, 22, 23, 24};
  std::vector<float> x(8 * 2 * 16), by_position(x.size()), by_offset(x.size());
  for (float& value : x) value = normal(random);
  RopeProblem problem;
  problem.batch = 3;
  problem.heads = 2;
  problem.head_dim = 16;
  problem.rotary = rotary(*table);
  problem.cu_seqlens = cu;
  problem.offsets = offsets;
  const Strided<const void*> in = contiguous<const void*>(x.data(), 8, 2, 16);
  ASSERT_TRUE(rope_forward(context, problem, in, contiguous<void*>(by_offset.data(), 8, 2, 16)).ok());
  problem.offsets = nullptr;
  problem.positions = positions;
  ASSERT_TRUE(rope_forward(context, problem, in, contiguous<void*>(by_position.data(), 8, 2, 16)).ok());
  EXPECT_EQ(by_offset, by_position);

  // flash-attn's table: cos and sin in the tensor's own dtype, rows further apart.
  std::vector<uint16_t> cos(32 * 11), sin(32 * 11);
  for (size_t p = 0; p < 32; ++p) {
    for (size_t i = 0; i < 8; ++i) {
      cos[p * 11 + i] = f32_to_bf16(table->cos()[p * 8 + i]);
      sin[p * 11 + i] = f32_to_bf16(table->sin()[p * 8 + i]);
    }
  }
  problem.rotary = {RopeStyle::half, 16, cos.data(), sin.data(), DType::bf16, 32, 11};
  std::vector<float> by_bf16(x.size());
  ASSERT_TRUE(rope_forward(context, problem, in, contiguous<void*>(by_bf16.data(), 8, 2, 16)).ok());
  EXPECT_TRUE(test::max_difference(by_bf16, by_position) <= 0x1p-8 * 4);
  EXPECT_NE(by_bf16, by_position);
}

TEST(RopeRows, RefuseWhatTheyCannotRotateBeforeWriting) {
  RopeConfig config;
  config.rotary_dim = 8;
  const auto table = RopeTable::create(config, 10);
  ASSERT_TRUE(table.ok());
  ThreadPool pool({.threads = 1});
  Context context(pool);
  std::vector<float> x(4 * 8, 1.0f), out(x.size(), -1.0f);
  RopeProblem good;
  good.seqlen = 4;
  good.heads = 1;
  good.head_dim = 8;
  good.rotary = rotary(*table);
  const auto field = [&](auto&& change) {
    RopeProblem problem = good;
    change(problem);
    const Status status = rope_forward(context, problem, contiguous<const void*>(x.data(), 4, 1, 8),
                                       contiguous<void*>(out.data(), 4, 1, 8));
    EXPECT_EQ(out, std::vector<float>(x.size(), -1.0f));
    return status.field();
  };
  EXPECT_EQ(field([](RopeProblem& p) { p.offset = 7; }), "positions");
  EXPECT_EQ(field([](RopeProblem& p) { p.offset = -1; }), "positions");
  EXPECT_EQ(field([](RopeProblem& p) { p.rotary.rotary_dim = 10; }), "rotary_dim");
  EXPECT_EQ(field([](RopeProblem& p) { p.rotary.rotary_dim = 7; }), "rotary_dim");
  EXPECT_EQ(field([](RopeProblem& p) { p.rotary.cos = nullptr; }), "cos");
  EXPECT_EQ(field([](RopeProblem& p) { p.rotary.dtype = DType::i8; }), "dtype");
  EXPECT_EQ(field([](RopeProblem& p) { p.dtype = DType::q8_0; }), "dtype");
  EXPECT_EQ(field([](RopeProblem& p) { p.heads = 0; }), "heads");
  EXPECT_EQ(field([](RopeProblem& p) { p.batch = -1; }), "batch");
  EXPECT_EQ(field([](RopeProblem& p) { p.head_dim = 2048; }), "head_dim");
  const int32_t falling[] = {0, 3, 2};
  EXPECT_EQ(field([&](RopeProblem& p) { p.batch = 2, p.cu_seqlens = falling; }), "cu_seqlens");
  const Status null = rope_forward(context, good, {}, contiguous<void*>(out.data(), 4, 1, 8));
  EXPECT_EQ(null.field(), "x");
  good.seqlen = 0;
  EXPECT_TRUE(rope_forward(context, good, {}, {}).ok()) << "no rows";
}

}  // namespace
}  // namespace tessera::attention
