// The step kernel for every device: against float64, bit for bit against the sm_90 kernel where that is, and
// what its bits do not depend on.
#include <gtest/gtest.h>

#include "attention/cuda/dispatch.h"
#include "tests/cuda/support/step_case.cuh"

namespace tessera::attention::cuda {
namespace {

using cuda_test::CacheLayout;
using cuda_test::expect_same_bits;
using cuda_test::expect_same_lse;
using cuda_test::OracleFeatures;
using cuda_test::PagedCase;
using cuda_test::PagedShape;

class Sm80Decode : public cuda_test::StepTest {};

TEST_F(Sm80Decode, RaggedLengthsAndAnEmptySequence) {
  PagedShape s;
  s.lengths = {1, 63, 64, 65, 0, 255, 256, 257, 511, 1000, 1024, 1025, 2049, 4096};
  check(s, "ragged MHA");
  s.heads = 32, s.kv_heads = 8;
  check(s, "ragged 32:8");
  s.dtype = DType::f16;
  check(s, "ragged 32:8 f16");
}

TEST_F(Sm80Decode, EveryHeadDim) {
  for (int dim = 8; dim <= 256; dim += 8) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      PagedShape s;
      s.dtype = dtype, s.head_dim = dim, s.heads = 8, s.kv_heads = 2;
      s.lengths = {5, 64, 300, 1500, 2100};
      check(s, "head_dim " + std::to_string(dim) + (dtype == DType::f16 ? " f16" : " bf16"));
    }
  }
}

// As tf32, on every device.
TEST_F(Sm80Decode, OfF32) {
  PagedShape s;
  s.dtype = DType::f32;
  s.lengths = {1, 63, 64, 65, 0, 255, 256, 257, 511, 1000, 1024, 1025, 2049, 4096};
  check(s, "f32 ragged MHA");
  for (const int group : {1, 4, 9, 33}) {
    for (const int dim : {8, 64, 72, 128, 136, 256}) {
      for (const int page : {64, 20}) {
        s = {};
        s.dtype = DType::f32, s.head_dim = dim, s.heads = 2 * group, s.kv_heads = 2, s.page = page;
        s.lengths = {7, 100, 777, 1300};
        check(s, "f32 head_dim " + std::to_string(dim) + " group " + std::to_string(group) + " page " +
                     std::to_string(page));
      }
    }
  }
  s = {};
  s.dtype = DType::f32, s.heads = 8, s.kv_heads = 2;
  s.lengths = {20000};
  check(s, "f32 split");
}

TEST_F(Sm80Decode, OtherValueHeadSizes) {
  for (const auto& [dim, v_dim] : {std::pair{64, 128}, std::pair{128, 64}, std::pair{192, 128},
                                   std::pair{8, 256}, std::pair{256, 8}, std::pair{72, 80}}) {
    for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
      PagedShape s;
      s.dtype = dtype, s.head_dim = dim, s.v_head_dim = v_dim, s.heads = 8, s.kv_heads = 2;
      const std::string sizes = std::to_string(dim) + "/" + std::to_string(v_dim) + " " + name(dtype);
      s.lengths = {5, 64, 300, 1500, 2100};
      check(s, "d " + sizes);
      s.lengths = {9000};
      check(s, "split, d " + sizes);
    }
  }
}

TEST_F(Sm80Decode, EveryGroup) {
  for (const int dim : {64, 128, 256}) {
    for (const int group : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 25, 32, 33, 40, 71}) {
      PagedShape s;
      s.head_dim = dim, s.heads = 2 * group, s.kv_heads = 2;
      s.lengths = {7, 100, 777, 1300, 2500};
      check(s, "group " + std::to_string(group) + " head_dim " + std::to_string(dim));
    }
  }
}

TEST_F(Sm80Decode, EveryPageAndLayout) {
  for (const int page : {0, 1, 2, 3, 7, 8, 12, 16, 20, 24, 32, 48, 64, 100, 128, 256, 1000}) {
    for (const CacheLayout layout : {CacheLayout::head_outside, CacheLayout::token_outside}) {
      for (const int group : {2, 12}) {
        PagedShape s;
        s.page = page, s.layout = layout, s.heads = 4 * group, s.kv_heads = 4;
        s.lengths = {3, 65, 130, 700, 1111};
        check(s, "page " + std::to_string(page) + (layout == CacheLayout::head_outside ? " head" : " token") +
                     " outside, group " + std::to_string(group));
      }
    }
  }
}

TEST_F(Sm80Decode, ScoresThatSpike) {
  for (const float scale : {10.0f, 50.0f}) {
    PagedShape s;
    s.q_scale = scale, s.heads = 8, s.kv_heads = 2;
    s.lengths = {100, 1000, 3000};
    check(s, "q x" + std::to_string(int(scale)));
  }
}

TEST_F(Sm80Decode, SplitsOfFewItems) {
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
  s.kv_heads = 2;
  check(s, "10 items of 16 rows, ragged");
}

TEST_F(Sm80Decode, BitsDoNotDependOnTheGridOrOnSplits) {
  for (const int kv_heads : {32, 8, 2, 1}) {
    PagedShape s;
    s.heads = 32, s.kv_heads = kv_heads;
    s.lengths = {4096, 1500, 300, 2047, 3100};
    PagedCase c(s);
    run(c, c.problem(), {0, false});
    const auto want = c.output();
    const auto want_lse = c.output_lse();
    for (const int blocks : {132, 131, 108, 100, 64, 33, 7, 1}) {
      for (const bool split : {true, false}) {
        const std::string name = std::to_string(kv_heads) + " kv heads, " + std::to_string(blocks) +
                                 " blocks, split " + std::to_string(split);
        run(c, c.problem(), {blocks, split});
        expect_same_bits(c.output(), want, s, name);
        expect_same_lse(c.output_lse(), want_lse, name);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(Sm80Decode, BitsDoNotDependOnTheBatch) {
  for (const int kv_heads : {8, 2}) {
    PagedShape s;
    s.heads = 32, s.kv_heads = kv_heads;
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
      part.resize(count);
      expect_same_bits(part, {whole.begin(), whole.begin() + long(count)}, s,
                       "batch " + std::to_string(batch) + ", kv heads " + std::to_string(kv_heads));
    }
  }
}

TEST_F(Sm80Decode, TwoHundredRepeatsAreBitwiseEqual) {
  for (const int kv_heads : {8, 1}) {
    PagedShape s;
    s.heads = 32, s.kv_heads = kv_heads;
    for (int b = 0; b < 12; ++b) s.lengths.push_back(1 + 211 * b);
    PagedCase c(s);
    run(c, c.problem());
    const auto want = c.output();
    int differ = 0;
    for (int i = 0; i < 200; ++i) {
      run(c, c.problem(), {i % 2 == 0 ? 0 : 33 + i % 100, true});
      differ += c.output() != want;
    }
    EXPECT_EQ(differ, 0) << kv_heads << " kv heads";
  }
}

// What makes a step more than lengths: changes of the shape, then of the problem and of what is expected.
struct Feature {
  const char* name;
  void (*shape)(PagedShape&);
  void (*problem)(AttentionProblem&, OracleFeatures&, const float* slopes, const int32_t* leftpad);
};
using P = AttentionProblem;
using O = OracleFeatures;
void nothing(PagedShape&) {}
void plain(P&, O&, const float*, const int32_t*) {}
const Feature kFeatures[] = {
    {"causal, 3 tokens", [](PagedShape& s) { s.tokens = 3; },
     [](P& p, O& f, const float*, const int32_t*) { p.mask.causal = f.causal = true; }},
    {"4 tokens, window_right 1", [](PagedShape& s) { s.tokens = 4; },
     [](P& p, O& f, const float*, const int32_t*) { p.mask.window_right = f.window_right = 1; }},
    {"window_left 300", nothing,
     [](P& p, O& f, const float*, const int32_t*) { p.mask.window_left = f.window_left = 300; }},
    {"softcap 2", nothing,
     [](P& p, O& f, const float*, const int32_t*) { p.softcap = 2.0f, f.softcap = 2.0; }},
    {"alibi", nothing,
     [](P& p, O& f, const float* slopes, const int32_t*) { p.alibi_slopes = f.slopes = slopes; }},
    {"leftpad", nothing,
     [](P& p, O& f, const float*, const int32_t* leftpad) { p.leftpad_k = f.leftpad = leftpad; }},
    {"head_dim 72", [](PagedShape& s) { s.head_dim = 72; }, plain},
    {"head_dim 64", [](PagedShape& s) { s.head_dim = 64; }, plain},
    {"head_dim 256", [](PagedShape& s) { s.head_dim = 256; }, plain},
    {"group 12", [](PagedShape& s) { s.heads = 24; }, plain},
    {"page 20", [](PagedShape& s) { s.page = 20; }, plain},
    {"contiguous", [](PagedShape& s) { s.page = 0; }, plain},
    {"f16", [](PagedShape& s) { s.dtype = DType::f16; }, plain},
};

TEST_F(Sm80Decode, EachFeatureAndEachPair) {
  std::vector<float> slopes;
  for (int h = 0; h < 24; ++h) slopes.push_back(std::exp2(-float(h + 1) / 3.0f));
  const auto slopes_on_device = PagedCase::upload(slopes);
  const auto leftpad_on_device = PagedCase::upload(std::vector<int32_t>{1, 10, 299, 600, 3, 0, 65});
  for (size_t i = 0; i < std::size(kFeatures); ++i) {
    for (size_t j = i; j < std::size(kFeatures); ++j) {
      PagedShape s;
      s.heads = 8, s.kv_heads = 2;
      s.lengths = {2, 64, 300, 777, 1500, 0, 65};
      kFeatures[i].shape(s);
      kFeatures[j].shape(s);
      PagedCase c(s);
      AttentionProblem p = c.problem();
      p.mask.causal = false;
      OracleFeatures f;
      for (const size_t k : {i, j})
        kFeatures[k].problem(p, f, slopes_on_device.as<float>(), leftpad_on_device.as<int32_t>());
      check(c, p, f, kFeatures[i].name + (i == j ? std::string() : std::string(" + ") + kFeatures[j].name));
      if (HasFatalFailure()) return;
    }
  }
}

// Positions of sequence b that are overwritten by NaN, in K and in V.
void poison(PagedCase& c, size_t b, int from, int to) {
  for (const auto* cache : {&c.k, &c.v}) {
    auto values = PagedCase::download(*cache);
    for (int position = from; position < to; ++position) {
      const int64_t block =
          c.shape.page > 0 ? c.table[b * size_t(c.max_blocks) + size_t(position / c.shape.page)] : int64_t(b);
      const int slot = c.shape.page > 0 ? position % c.shape.page : position;
      for (int h = 0; h < c.shape.kv_heads; ++h) {
        for (int d = 0; d < c.shape.head_dim; ++d)
          values[size_t(block * c.strides.block + slot * c.strides.slot + h * c.strides.head + d)] = 0xffff;
      }
    }
    cudaMemcpy(cache->data(), values.data(), values.size() * 2, cudaMemcpyHostToDevice);
  }
}

// NaN behind lengths is in every case; here too where leftpad or a window hides keys from every row.
TEST_F(Sm80Decode, HiddenKeysMayBeNan) {
  for (const int group : {2, 12}) {
    for (const bool window : {false, true}) {
      PagedShape s;
      s.heads = 2 * group, s.kv_heads = 2, s.tokens = 2, s.page = 16;
      s.lengths = {70, 300, 700, 1500};
      const std::vector<int32_t> leftpad = {69, 10, 290, 600};
      const auto leftpad_on_device = PagedCase::upload(leftpad);
      PagedCase c(s);
      AttentionProblem p = c.problem();
      if (window) {
        p.mask.window_left = 50;
      } else {
        p.leftpad_k = leftpad_on_device.as<int32_t>();
      }
      run(c, p);
      const auto want = c.output();
      for (size_t b = 0; b < s.lengths.size(); ++b)
        poison(c, b, 0, window ? s.lengths[b] - s.tokens - 50 : leftpad[b]);
      const std::string name = "group " + std::to_string(group) + (window ? ", window" : ", leftpad");
      run(c, p);
      expect_same_bits(c.output(), want, s, name);
      if (!on_hopper()) continue;
      c.clear();
      cudaDeviceSynchronize();
      finish(sm90::decode(*launch_, p, c.view(), {}, c.tensors()));
      expect_same_bits(c.output(), want, s, name + ", sm_90");
    }
  }
}

// Rows of q and o wider than head_dim, guards between and behind them.
TEST_F(Sm80Decode, NothingBesideRowsOfOIsWritten) {
  for (const int dim : {40, 64, 128, 256}) {
    for (const int group : {1, 3, 12}) {
      PagedShape s;
      s.heads = 2 * group, s.kv_heads = 2, s.head_dim = dim;
      s.lengths = {0, 1, 64, 700, 3000};
      PagedCase c(s);
      run(c, c.problem());
      const auto want = c.output();
      const int width = dim + 8;
      const size_t rows = s.lengths.size() * size_t(s.heads);
      const auto wide = PagedCase::upload(std::vector<uint16_t>(rows * size_t(width) + 64, 0x5a5a));
      CacheTensors t = c.tensors();
      t.o = {wide.data(), int64_t{s.heads} * width, int64_t{s.heads} * width, width};
      finish(sm80::decode(*launch_, c.problem(), c.view(), {}, t));
      const auto got = PagedCase::download(wide);
      std::vector<uint16_t> inside;
      size_t written = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        if (i < rows * size_t(width) && i % size_t(width) < size_t(dim)) {
          inside.push_back(got[i]);
        } else {
          written += got[i] != 0x5a5a;
        }
      }
      const std::string name = "head_dim " + std::to_string(dim) + " group " + std::to_string(group);
      EXPECT_EQ(written, 0u) << name;
      expect_same_bits(inside, want, s, name);
    }
  }
}

// New rows taken out of a filled cache and appended again: the cache and the step's bits are as before.
TEST_F(Sm80Decode, AppendedRowsAreThoseOfTheCache) {
  for (const auto& [page, dtype] : {std::pair{0, DType::bf16},
                                    {7, DType::bf16},
                                    {16, DType::bf16},
                                    {64, DType::bf16},
                                    {7, DType::f32},
                                    {64, DType::f32}}) {
    PagedShape s;
    s.page = page, s.heads = 8, s.kv_heads = 2, s.tokens = 3, s.dtype = dtype;
    s.layout = page == 16 ? CacheLayout::token_outside : CacheLayout::head_outside;
    s.lengths = {3, 64, 66, 1024, 2050};
    PagedCase c(s);
    run(c, c.problem());
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
    finish(sm80::decode(*launch_, c.problem(), view, append, c.tensors()));
    expect_same_bits(c.output(), want, s, "page " + std::to_string(page));
    EXPECT_EQ(c.download(c.k), full_k);
    EXPECT_EQ(c.download(c.v), full_v);
  }
}

// Turned rows are the same for both kernels, and the tests of sm_90 have them against the host.
TEST_F(Sm80Decode, RotaryGivesTheBitsOfSm90) {
  if (!on_hopper()) GTEST_SKIP() << "needs sm_90 to compare with";
  PagedShape s;
  s.heads = 8, s.kv_heads = 2, s.tokens = 2;
  s.lengths = {2, 65, 700};
  PagedCase c(s);
  std::vector<float> cos, sin;
  for (int position = 0; position < 800; ++position) {
    for (int i = 0; i < 32; ++i) {
      cos.push_back(std::cos(float(position) * std::pow(10000.0f, -float(i) / 32.0f)));
      sin.push_back(std::sin(float(position) * std::pow(10000.0f, -float(i) / 32.0f)));
    }
  }
  const auto cos_on_device = PagedCase::upload(cos), sin_on_device = PagedCase::upload(sin);
  Rotary rotary;
  rotary.rotary_dim = 64;
  rotary.cos = cos_on_device.data();
  rotary.sin = sin_on_device.data();
  rotary.positions = 800;
  const auto rows = c.take_rows(2);
  CacheView view = c.view();
  view.seqlens = rows.lengths.as<int32_t>();
  CacheAppend append;
  append.seqlen = 2;
  append.k = contiguous<const void*>(rows.k.data(), 2, s.kv_heads, s.head_dim);
  append.v = contiguous<const void*>(rows.v.data(), 2, s.kv_heads, s.head_dim);
  append.rotary = &rotary;
  c.clear();
  finish(sm90::decode(*launch_, c.problem(), view, append, c.tensors()));
  const auto want = c.output();
  c.clear();
  finish(sm80::decode(*launch_, c.problem(), view, append, c.tensors()));
  expect_same_bits(c.output(), want, s, "rotary");
}

TEST_F(Sm80Decode, AGraphStaysValidWhileLengthsGrow) {
  for (const int kv_heads : {2, 32}) {
    PagedShape s;
    s.heads = 32, s.kv_heads = kv_heads;
    s.lengths = {3000, 1, 1029};
    PagedCase c(s);
    auto lengths = PagedCase::upload(std::vector<int32_t>{900, 1, 255});
    CacheView view = c.view();
    view.seqlens = lengths.as<int32_t>();
    const auto step = [&] { return sm80::decode(*launch_, c.problem(), view, {}, c.tensors()); };
    ASSERT_TRUE(step().ok());
    auto graph = tessera::cuda::Graph::capture(launch_->stream, step);
    ASSERT_TRUE(graph.ok()) << graph.status().message();
    cudaMemcpy(lengths.data(), s.lengths.data(), 12, cudaMemcpyHostToDevice);
    c.clear();
    cudaDeviceSynchronize();
    finish(graph->launch(launch_->stream));
    c.check({}, "grown under a graph, kv heads " + std::to_string(kv_heads));
  }
}

// A block that is not there is refused by no host, and read by no kernel.
TEST_F(Sm80Decode, BlockIdsOutsideTheCacheReadAsZeros) {
  PagedShape s;
  s.lengths = {200, 300};
  PagedCase c(s);
  std::vector<int32_t> table = c.table;
  table[0] = -1;
  table[size_t(c.max_blocks) + 1] = c.num_blocks;
  const auto on_device = PagedCase::upload(table);
  CacheView view = c.view();
  view.block_table = on_device.as<int32_t>();
  c.clear();
  finish(sm80::decode(*launch_, c.problem(), view, {}, c.tensors()));
  const auto got = c.output();
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_FALSE(std::isnan(bf16_to_f32(got[i]))) << "value " << i;
  }
  if (!on_hopper()) return;
  c.clear();
  finish(sm90::decode(*launch_, c.problem(), view, {}, c.tensors()));
  expect_same_bits(got, c.output(), s, "sm_90's bits");
}

// ---- Through attend_cache
// -----------------------------------------------------------------------------------

class Sm80AttendCache : public Sm80Decode {
 protected:
  // What attend_cache takes this device for.
  void pretend(int major, int minor) { launch_->device.major = major, launch_->device.minor = minor; }
  void attend(PagedCase& c) {
    c.clear();
    cudaDeviceSynchronize();
    CudaKernels kernels(*launch_);
    finish(kernels.attend_cache(c.problem(), c.view(), {}, c.tensors()));
  }
};

TEST_F(Sm80AttendCache, TakesStepsAndPromptsOnDevicesThatAreNoHopper) {
  pretend(8, 6);
  launch_->device.shared_bytes = 99 * 1024;
  for (const int tokens : {1, 5, 17, 70}) {
    PagedShape s;
    s.tokens = tokens, s.heads = 8, s.kv_heads = 2;
    s.lengths = {tokens, 100, 300, 1100};
    PagedCase c(s);
    attend(c);
    OracleFeatures f;
    f.causal = true;
    c.check(f, "attend_cache, tokens " + std::to_string(tokens));
  }
  // No prompt kernel's tiles of these fit: row by row.
  PagedShape s;
  s.dtype = DType::f32, s.head_dim = 256, s.tokens = 40, s.heads = 4, s.kv_heads = 2;
  s.lengths = {40, 100, 300};
  PagedCase c(s);
  attend(c);
  OracleFeatures f;
  f.causal = true;
  c.check(f, "attend_cache, a prompt of f32 of 256 columns");
}

TEST_F(Sm80AttendCache, TakesBlocksOfAnySizeOnEveryDevice) {
  for (const int page : {5, 100}) {
    PagedShape s;
    s.page = page, s.heads = 8, s.kv_heads = 2;
    s.lengths = {1, 100, 300, 1100};
    PagedCase c(s);
    attend(c);
    c.check({}, "attend_cache, page " + std::to_string(page));
  }
}

TEST_F(Sm80AttendCache, ExplainsItsChoice) {
  AttentionProblem p;
  p.batch = 2, p.seqlen_q = 1, p.heads = p.kv_heads = 4, p.head_dim = p.v_head_dim = 128;
  p.dtype = DType::bf16, p.scale = 0.1f;
  tessera::cuda::DeviceProperties device;
  device.name = "some device";
  device.shared_bytes = 99 * 1024;
  for (const int sm : {80, 86, 89, 100, 120}) {
    device.major = sm / 10, device.minor = sm % 10;
    const std::string text = explain_on(device, p, Pass::forward);
    EXPECT_NE(text.find("> sm80 step over a cache"), std::string::npos) << text;
  }
  device.major = 9, device.minor = 0;
  const std::string text = explain_on(device, p, Pass::forward);
  EXPECT_NE(text.find("> sm90 step over a cache"), std::string::npos) << text;
}

TEST_F(Sm80Decode, BadProblemsAreRefusedBeforeALaunch) {
  PagedShape s;
  s.lengths = {64};
  PagedCase c(s);
  const auto refused = [&](const AttentionProblem& p, const CacheView& view, const CacheTensors& t,
                           const char* field) {
    const Status status = sm80::decode(*launch_, p, view, {}, t);
    ASSERT_FALSE(status.ok()) << field;
    EXPECT_EQ(status.field(), field) << status.message();
  };
  AttentionProblem p = c.problem();
  p.head_dim = p.v_head_dim = 264;
  refused(p, c.view(), c.tensors(), "head_dim");
  CacheView view = c.view();
  view.k.data = static_cast<char*>(view.k.data) + 2;
  refused(c.problem(), view, c.tensors(), "k_cache");
  view = c.view();
  view.v.row_stride += 4;
  refused(c.problem(), view, c.tensors(), "v_cache");
  CacheTensors t = c.tensors();
  t.o.data = nullptr;
  refused(c.problem(), c.view(), t, "o");
  launch_->device.major = 7, launch_->device.minor = 5;
  refused(c.problem(), c.view(), c.tensors(), "device");
}

}  // namespace
}  // namespace tessera::attention::cuda
