// Paged decode on sm_90 against float64, and the bits of its rows.
#include "attention/cuda/sm90/decode/decode.h"

#include <gtest/gtest.h>

#include "tests/cuda/support/late_writer.cuh"
#include "tests/cuda/support/paged_case.cuh"

namespace tessera::attention::cuda::sm90 {
namespace {

using cuda_test::CacheLayout;
using cuda_test::OracleFeatures;
using cuda_test::PagedCase;
using cuda_test::PagedShape;

class Decode : public ::testing::Test {
 protected:
  void SetUp() override {
    auto made = tessera::cuda::Launch::create(0);
    ASSERT_TRUE(made.ok()) << made.status().message();
    launch_.emplace(std::move(made).value());
    if (launch_->device.major != 9) GTEST_SKIP() << "needs sm_90, this is sm_" << launch_->device.sm();
  }
  void run(PagedCase& c, AttentionProblem problem, const DecodeTuning& tuning = {}) {
    c.clear();
    problem.mask.causal = false;
    run_exactly(c, problem, tuning);
  }
  void run_exactly(PagedCase& c, const AttentionProblem& problem, const DecodeTuning& tuning = {}) {
    cudaDeviceSynchronize();
    const Status status = decode(*launch_, problem, c.view(), {}, c.tensors(), tuning);
    ASSERT_TRUE(status.ok()) << status.message();
    const Status done = launch_->stream.synchronize();
    ASSERT_TRUE(done.ok()) << done.message();
  }
  void check(const PagedShape& shape, const std::string& name, const DecodeTuning& tuning = {}) {
    PagedCase c(shape);
    run(c, c.problem(), tuning);
    if (HasFatalFailure()) return;
    c.check({}, name);
  }
  std::optional<tessera::cuda::Launch> launch_;
};

TEST_F(Decode, OneSequenceOfOneTile) {
  PagedShape s;
  s.lengths = {64};
  check(s, "64 keys");
}

TEST_F(Decode, RaggedLengthsAndAnEmptySequence) {
  PagedShape s;
  s.lengths = {1, 63, 64, 65, 0, 255, 256, 257, 511, 1000, 1024, 1025, 2049, 4096};
  check(s, "ragged MHA");
  s.heads = 32, s.kv_heads = 8;
  check(s, "ragged 32:8");
  s.dtype = DType::f16;
  check(s, "ragged 32:8 f16");
}

TEST_F(Decode, EveryHeadDim) {
  for (const int dim : {64, 128, 256, 8, 40, 72, 96, 160, 192, 248}) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      PagedShape s;
      s.dtype = dtype, s.head_dim = dim, s.heads = 8, s.kv_heads = 2;
      s.lengths = {5, 64, 300, 1500, 2100};
      check(s, "head_dim " + std::to_string(dim) + (dtype == DType::f16 ? " f16" : " bf16"));
    }
  }
}

TEST_F(Decode, EveryGroup) {
  for (const int group : {1, 2, 3, 4, 5, 8, 9, 16, 17, 24, 32, 40}) {
    PagedShape s;
    s.heads = 2 * group, s.kv_heads = 2;
    s.lengths = {7, 100, 777, 1300, 2500};
    check(s, "group " + std::to_string(group));
  }
}

TEST_F(Decode, EveryPageAndLayout) {
  for (const int page : {0, 8, 16, 24, 32, 48, 64, 128, 256}) {
    for (const CacheLayout layout : {CacheLayout::head_outside, CacheLayout::token_outside}) {
      PagedShape s;
      s.page = page, s.layout = layout, s.heads = 8, s.kv_heads = 4;
      s.lengths = {3, 65, 130, 700, 1111};
      check(s, "page " + std::to_string(page) + (layout == CacheLayout::head_outside ? " head" : " token") +
                   " outside");
    }
  }
}

TEST_F(Decode, ScoresThatSpike) {
  for (const float scale : {10.0f, 50.0f}) {
    PagedShape s;
    s.q_scale = scale, s.heads = 8, s.kv_heads = 2;
    s.lengths = {100, 1000, 3000};
    check(s, "q x" + std::to_string(int(scale)));
  }
}

TEST_F(Decode, SplitsOfFewItems) {
  PagedShape s;
  s.lengths = {4000};
  s.heads = 8, s.kv_heads = 8;
  check(s, "8 items, unit cuts");
  s.heads = 32, s.kv_heads = 32;
  s.lengths = {9000};
  check(s, "32 items, segment cuts");
  s.heads = 32, s.kv_heads = 8;
  s.lengths = {100, 5000, 2000, 1024, 1};
  check(s, "40 items, ragged");
}

TEST_F(Decode, BitsDoNotDependOnTheGridOrOnSplits) {
  for (const int kv_heads : {32, 8, 2}) {
    PagedShape s;
    s.heads = 32, s.kv_heads = kv_heads;
    s.lengths = {4096, 1500, 300, 2047, 3100};
    PagedCase c(s);
    run(c, c.problem(), {0, false});
    const auto want = c.output();
    const auto want_lse = c.output_lse();
    for (const int blocks : {132, 131, 128, 100, 64, 33, 7}) {
      for (const bool split : {true, false}) {
        run(c, c.problem(), {blocks, split});
        EXPECT_EQ(c.output(), want) << kv_heads << " kv heads, " << blocks << " blocks, split " << split;
        EXPECT_EQ(c.output_lse(), want_lse);
      }
    }
  }
}

TEST_F(Decode, BitsDoNotDependOnTheBatch) {
  PagedShape s;
  s.heads = 32, s.kv_heads = 8;
  for (int b = 0; b < 32; ++b) s.lengths.push_back(100 + 97 * b);
  PagedCase c(s);
  run(c, c.problem());
  const auto whole = c.output();
  AttentionProblem p = c.problem();
  for (const int batch : {1, 5, 17}) {
    p.batch = batch;
    run(c, p);
    auto part = c.output();
    const size_t count = size_t(batch) * size_t(s.heads * s.head_dim);
    EXPECT_TRUE(std::equal(part.begin(), part.begin() + long(count), whole.begin())) << "batch " << batch;
  }
}

TEST_F(Decode, TwoHundredRepeatsAreBitwiseEqual) {
  PagedShape s;
  s.heads = 32, s.kv_heads = 8;
  for (int b = 0; b < 12; ++b) s.lengths.push_back(1 + 211 * b);
  PagedCase c(s);
  run(c, c.problem());
  const auto want = c.output();
  int differ = 0;
  for (int i = 0; i < 200; ++i) {
    run(c, c.problem(), {i % 2 == 0 ? 0 : 33 + i % 100, true});
    differ += c.output() != want;
  }
  EXPECT_EQ(differ, 0);
}

TEST_F(Decode, SeveralQueryTokensAreCausal) {
  for (const int tokens : {2, 4, 7}) {
    PagedShape s;
    s.tokens = tokens, s.heads = 8, s.kv_heads = 2;
    s.lengths = {tokens, 64, 300, 1500, 4000};
    PagedCase c(s);
    c.clear();
    run_exactly(c, c.problem());
    OracleFeatures f;
    f.causal = true;
    c.check(f, "causal, tokens " + std::to_string(tokens));
  }
}

TEST_F(Decode, WindowsSoftcapAlibiAndLeftpad) {
  PagedShape s;
  s.heads = 8, s.kv_heads = 2, s.tokens = 2;
  s.lengths = {2, 64, 300, 1500, 4000};
  PagedCase c(s);
  const auto features = [&](const AttentionProblem& p, OracleFeatures f, const std::string& name) {
    c.clear();
    run_exactly(c, p);
    f.causal = p.mask.causal;
    f.window_left = int(p.mask.window_left);
    f.window_right = int(p.mask.window_right);
    f.softcap = double(p.softcap);
    c.check(f, name);
  };
  for (const int window : {0, 1, 63, 64, 700, 1500}) {
    AttentionProblem p = c.problem();
    p.mask.window_left = window;
    features(p, {}, "window " + std::to_string(window));
  }
  AttentionProblem p = c.problem();
  p.mask.causal = false;
  p.mask.window_left = 5;
  p.mask.window_right = 0;
  features(p, {}, "window 5, 0");
  p = c.problem();
  p.softcap = 2.0f;
  features(p, {}, "softcap 2");
  std::vector<float> slopes;
  for (int h = 0; h < s.heads; ++h) slopes.push_back(std::exp2(-float(h + 1)));
  const auto slopes_on_device = PagedCase::upload(slopes);
  p = c.problem();
  p.alibi_slopes = slopes_on_device.as<float>();
  OracleFeatures f;
  f.slopes = slopes_on_device.as<float>();
  features(p, f, "alibi");
  const std::vector<int32_t> pads = {2, 10, 299, 1400, 1};
  const auto pads_on_device = PagedCase::upload(pads);
  p = c.problem();
  p.leftpad_k = pads_on_device.as<int32_t>();
  f = {};
  f.leftpad = pads_on_device.as<int32_t>();
  features(p, f, "leftpad");
}

// New rows taken out of a filled cache and appended again: the cache and the step's bits are as before.
TEST_F(Decode, AppendedRowsAreThoseOfTheCache) {
  for (const int page : {0, 16, 64}) {
    PagedShape s;
    s.page = page, s.heads = 8, s.kv_heads = 2, s.tokens = 3;
    s.layout = page == 16 ? CacheLayout::token_outside : CacheLayout::head_outside;
    s.lengths = {3, 64, 66, 1024, 2050};
    PagedCase c(s);
    c.clear();
    run_exactly(c, c.problem());
    const auto want = c.output();
    const auto rows = c.take_rows(3);
    const auto full_k = rows.cache_k, full_v = rows.cache_v;
    c.clear();
    CacheView view = c.view();
    view.seqlens = rows.lengths.as<int32_t>();
    CacheAppend append;
    append.seqlen = 3;
    append.k = contiguous<const void*>(rows.k.data(), 3, s.kv_heads, s.head_dim);
    append.v = contiguous<const void*>(rows.v.data(), 3, s.kv_heads, s.head_dim);
    ASSERT_TRUE(decode(*launch_, c.problem(), view, append, c.tensors()).ok());
    ASSERT_TRUE(launch_->stream.synchronize().ok());
    EXPECT_EQ(c.output(), want) << "page " << page;
    EXPECT_EQ(c.download(c.k), full_k);
    EXPECT_EQ(c.download(c.v), full_v);
  }
}

TEST_F(Decode, RotaryTurnsNewKeysAndQueries) {
  for (const bool interleaved : {false, true}) {
    for (const int rotary_dim : {128, 32}) {
      PagedShape s;
      s.heads = 4, s.kv_heads = 2;
      s.lengths = {1, 65, 700};
      PagedCase c(s);
      std::vector<float> cos, sin;
      for (int position = 0; position < 800; ++position) {
        for (int i = 0; i < rotary_dim / 2; ++i) {
          const float angle = float(position) * std::pow(10000.0f, -2.0f * float(i) / float(rotary_dim));
          cos.push_back(std::cos(angle));
          sin.push_back(std::sin(angle));
        }
      }
      const auto cos_on_device = PagedCase::upload(cos), sin_on_device = PagedCase::upload(sin);
      Rotary rotary;
      rotary.style = interleaved ? RopeStyle::interleaved : RopeStyle::half;
      rotary.rotary_dim = rotary_dim;
      rotary.cos = cos_on_device.data();
      rotary.sin = sin_on_device.data();
      rotary.positions = 800;
      const auto rows = c.take_rows(1);
      CacheView view = c.view();
      view.seqlens = rows.lengths.as<int32_t>();
      CacheAppend append;
      append.seqlen = 1;
      append.k = contiguous<const void*>(rows.k.data(), 1, s.kv_heads, s.head_dim);
      append.v = contiguous<const void*>(rows.v.data(), 1, s.kv_heads, s.head_dim);
      append.rotary = &rotary;
      c.clear();
      ASSERT_TRUE(decode(*launch_, c.problem(), view, append, c.tensors()).ok());
      ASSERT_TRUE(launch_->stream.synchronize().ok());
      const auto got = c.output();
      // The same turn on the host; then a step without any.
      const auto turn = [&](std::vector<uint16_t>& values, int heads) {
        for (size_t row = 0; row < values.size() / size_t(s.head_dim); ++row) {
          const int position = s.lengths[row / size_t(heads)] - 1;
          for (int i = 0; i < rotary_dim / 2; ++i) {
            const size_t at = row * size_t(s.head_dim);
            const size_t first = at + size_t(interleaved ? 2 * i : i);
            const size_t second = at + size_t(interleaved ? 2 * i + 1 : i + rotary_dim / 2);
            const float a = bf16_to_f32(values[first]), b = bf16_to_f32(values[second]);
            const float co = cos[size_t(position * rotary_dim / 2 + i)];
            const float si = sin[size_t(position * rotary_dim / 2 + i)];
            values[first] = f32_to_bf16(std::fma(a, co, -(b * si)));
            values[second] = f32_to_bf16(std::fma(b, co, a * si));
          }
        }
      };
      std::vector<uint16_t> q = c.download(c.q), k = c.download(rows.k);
      turn(q, s.heads);
      turn(k, s.kv_heads);
      cudaMemcpy(c.q.data(), q.data(), q.size() * 2, cudaMemcpyHostToDevice);
      cudaMemcpy(rows.k.data(), k.data(), k.size() * 2, cudaMemcpyHostToDevice);
      append.rotary = nullptr;
      c.clear();
      ASSERT_TRUE(decode(*launch_, c.problem(), view, append, c.tensors()).ok());
      ASSERT_TRUE(launch_->stream.synchronize().ok());
      EXPECT_EQ(c.output(), got) << "rotary_dim " << rotary_dim << " interleaved " << interleaved;
    }
  }
}

TEST_F(Decode, AGraphStaysValidWhileLengthsGrow) {
  for (const int kv_heads : {2, 32}) {
    PagedShape s;
    s.heads = 32, s.kv_heads = kv_heads;
    s.lengths = {3000, 1, 1029};
    PagedCase c(s);
    std::vector<int32_t> start = {900, 1, 255};
    auto lengths = PagedCase::upload(start);
    CacheView view = c.view();
    view.seqlens = lengths.as<int32_t>();
    AttentionProblem p = c.problem();
    const auto step = [&] { return decode(*launch_, p, view, {}, c.tensors()); };
    ASSERT_TRUE(step().ok());
    auto graph = tessera::cuda::Graph::capture(launch_->stream, step);
    ASSERT_TRUE(graph.ok()) << graph.status().message();
    cudaMemcpy(lengths.data(), s.lengths.data(), 12, cudaMemcpyHostToDevice);
    c.clear();
    cudaDeviceSynchronize();
    ASSERT_TRUE(graph->launch(launch_->stream).ok());
    ASSERT_TRUE(launch_->stream.synchronize().ok());
    c.check({}, "grown under a graph, kv heads " + std::to_string(kv_heads));
  }
}

// The kernel looks at lengths and blocks before the kernel ahead has ended, and has to look again.
TEST_F(Decode, WhatTheKernelAheadWritesLastIsTrue) {
  for (const auto& [kv_heads, page] : {std::pair{2, 64}, {32, 64}, {32, 16}, {8, 8}}) {
    PagedShape s;
    s.heads = 32, s.kv_heads = kv_heads, s.page = page;
    s.lengths = {3000, 1, 1029, 700, 2048};
    PagedCase c(s);
    AttentionProblem p = c.problem();
    p.mask.causal = false;
    run_exactly(c, p);
    const std::vector<uint16_t> want = c.output();
    c.check({}, "before, kv heads " + std::to_string(kv_heads) + " page " + std::to_string(page));
    for (const std::vector<int32_t>& stale : {std::vector<int32_t>{100, 2000, 0, 3000, 64},
                                              {0, 0, 0, 0, 0},
                                              {-7, INT32_MAX, 1030, 700, 2049},
                                              s.lengths}) {
      cuda_test::LateWriter writer(c, stale);
      for (const auto& [of_lengths, of_blocks] : {std::pair{true, false}, {false, true}, {true, true}}) {
        c.clear();
        writer.launch(static_cast<cudaStream_t>(launch_->stream.handle()), of_lengths, of_blocks);
        const Status status = decode(*launch_, p, c.view(), {}, c.tensors());
        ASSERT_TRUE(status.ok()) << status.message();
        const Status done = launch_->stream.synchronize();
        ASSERT_TRUE(done.ok()) << done.message();
        EXPECT_EQ(c.output(), want) << "kv heads " << kv_heads << " page " << page << " lengths "
                                    << of_lengths << " blocks " << of_blocks;
      }
    }
  }
}

TEST_F(Decode, BadProblemsAreRefusedBeforeALaunch) {
  PagedShape s;
  s.lengths = {64};
  PagedCase c(s);
  const auto refused = [&](AttentionProblem p, CacheView view, CacheTensors t, const char* field) {
    const Status status = decode(*launch_, p, view, {}, t);
    ASSERT_FALSE(status.ok()) << field;
    EXPECT_EQ(status.field(), field) << status.message();
  };
  AttentionProblem p = c.problem();
  p.dtype = DType::f32;
  refused(p, c.view(), c.tensors(), "dtype");
  p = c.problem();
  p.head_dim = p.v_head_dim = 264;
  refused(p, c.view(), c.tensors(), "head_dim");
  CacheView view = c.view();
  view.block_size = 20;
  refused(c.problem(), view, c.tensors(), "block_size");
  view = c.view();
  view.k.data = static_cast<char*>(view.k.data) + 2;
  refused(c.problem(), view, c.tensors(), "k_cache");
  CacheTensors t = c.tensors();
  t.o.data = nullptr;
  refused(c.problem(), c.view(), t, "o");
}

}  // namespace
}  // namespace tessera::attention::cuda::sm90
