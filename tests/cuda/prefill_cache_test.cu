// Prompts over a cache, by the kernels of sm_90 and by those of every device: whole and in chunks that are
// appended as they come, against float64 and against each other bit for bit.
#include <cstring>
#include <optional>

#include "attention/cuda/dispatch.h"
#include "tests/cuda/support/paged_case.cuh"

namespace tessera::attention {
namespace {

using cuda_test::CacheLayout;
using cuda_test::DeviceBuffer;
using cuda_test::OracleFeatures;
using cuda_test::PagedCase;
using cuda_test::PagedShape;

// [positions][rotary_dim / 2], on both sides.
struct RotaryTable {
  std::vector<float> cos, sin;
  DeviceBuffer cos_on_device, sin_on_device;
  Rotary rotary;

  RotaryTable(int positions, int rotary_dim, RopeStyle style) {
    for (int position = 0; position < positions; ++position) {
      for (int i = 0; i < rotary_dim / 2; ++i) {
        const float angle = float(position) * std::pow(10000.0f, -2.0f * float(i) / float(rotary_dim));
        cos.push_back(std::cos(angle));
        sin.push_back(std::sin(angle));
      }
    }
    cos_on_device = PagedCase::upload(cos);
    sin_on_device = PagedCase::upload(sin);
    rotary.style = style;
    rotary.rotary_dim = rotary_dim;
    rotary.cos = cos_on_device.data();
    rotary.sin = sin_on_device.data();
    rotary.positions = positions;
  }
  // A head's bits, turned as rope.h says.
  void turn(DType dtype, uint16_t* head, int position) const {
    const int half = rotary.rotary_dim / 2;
    const auto widen = [&](uint16_t bits) {
      return dtype == DType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits);
    };
    const auto narrow = [&](float x) { return dtype == DType::f16 ? f32_to_f16(x) : f32_to_bf16(x); };
    for (int i = 0; i < half; ++i) {
      const int first = rotary.style == RopeStyle::interleaved ? 2 * i : i;
      const int second = rotary.style == RopeStyle::interleaved ? 2 * i + 1 : i + half;
      const float a = widen(head[first]), b = widen(head[second]);
      const float c = cos[size_t(position * half + i)], s = sin[size_t(position * half + i)];
      head[first] = narrow(std::fma(a, c, -(b * s)));
      head[second] = narrow(std::fma(b, c, a * s));
    }
  }
};

enum class Kernels { of_hopper, of_every_device };

class PrefillCache : public ::testing::TestWithParam<Kernels> {
 public:
  bool of_hopper() const { return GetParam() == Kernels::of_hopper; }

 protected:
  void SetUp() override {
    auto made = tessera::cuda::Launch::create(0);
    ASSERT_TRUE(made.ok()) << made.status().message();
    launch_.emplace(std::move(made).value());
    if (of_hopper() && launch_->device.sm() != 90)
      GTEST_SKIP() << "needs sm_90, this is sm_" << launch_->device.sm();
    // What attend_cache takes the device for.
    if (!of_hopper())
      launch_->device.major = 8, launch_->device.minor = 6, launch_->device.shared_bytes = 99 * 1024;
    kernels_.emplace(*launch_);
  }
  void attend(const AttentionProblem& problem, const CacheView& view, const CacheAppend& append,
              const CacheTensors& tensors, const std::string& name) {
    cudaDeviceSynchronize();
    const Status status = kernels_->attend_cache(problem, view, append, tensors);
    ASSERT_TRUE(status.ok()) << name << ": " << status.message();
    const Status done = launch_->stream.synchronize();
    ASSERT_TRUE(done.ok()) << name << ": " << done.message();
  }
  std::optional<tessera::cuda::Launch> launch_;
  std::optional<cuda::CudaKernels> kernels_;
};

std::string text(const PagedShape& s) {
  return "d " + std::to_string(s.head_dim) + " page " + std::to_string(s.page) +
         (s.layout == CacheLayout::head_outside ? " head" : " token") + " outside, heads " +
         std::to_string(s.heads) + "/" + std::to_string(s.kv_heads) +
         (s.dtype == DType::f16 ? " f16" : " bf16");
}

// The rows [first, first + rows) of every sequence of c's new rows and queries.
struct Part {
  CacheAppend append;
  CacheTensors tensors;
};
Part part_of(const PagedCase& c, const PagedCase::TakenRows& taken, int first, int rows, float* lse) {
  const PagedShape& s = c.shape;
  const auto from = [&](auto strided) {
    using Pointer = decltype(strided.data);
    strided.data =
        static_cast<std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char*, char*>>(
            strided.data) +
        2 * first * strided.row_stride;
    return strided;
  };
  Part part;
  part.append.seqlen = rows;
  part.append.k = from(contiguous<const void*>(taken.k.data(), s.tokens, s.kv_heads, s.head_dim));
  part.append.v = from(contiguous<const void*>(taken.v.data(), s.tokens, s.kv_heads, s.head_dim));
  part.tensors = c.tensors();
  part.tensors.q = from(part.tensors.q);
  part.tensors.o = from(part.tensors.o);
  part.tensors.lse = lse;
  return part;
}

// The caches as they were before any new row: NaN where those go.
void take_back(PagedCase& c, const std::vector<uint16_t>& k, const std::vector<uint16_t>& v) {
  cudaMemcpy(c.k.data(), k.data(), k.size() * 2, cudaMemcpyHostToDevice);
  cudaMemcpy(c.v.data(), v.data(), v.size() * 2, cudaMemcpyHostToDevice);
  c.clear();
}

// Differences of two outputs [token][head][d], told with the first one.
void expect_same(const PagedCase& c, const std::vector<uint16_t>& got, const std::vector<uint16_t>& want,
                 const std::string& name) {
  ASSERT_EQ(got.size(), want.size()) << name;
  const size_t width = size_t(c.shape.head_dim), heads = size_t(c.shape.heads), rows = size_t(c.shape.tokens);
  size_t wrong = 0;
  std::string first;
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] == want[i] || wrong++ != 0) continue;
    const size_t token = i / width / heads;
    first = "sequence " + std::to_string(token / rows) + " row " + std::to_string(token % rows) + " head " +
            std::to_string(i / width % heads) + " d " + std::to_string(i % width) + " got bits " +
            std::to_string(got[i]) + " want " + std::to_string(want[i]);
  }
  EXPECT_EQ(wrong, 0u) << name << ": " << wrong << " of " << got.size() << ", first " << first;
}

constexpr int kRows = 337;
constexpr int kChunks[] = {0, 128, 320, kRows};  // each begins at a multiple of 64

PagedShape prompt_shape(int head_dim, int page) {
  PagedShape s;
  s.heads = 4, s.kv_heads = 2, s.head_dim = head_dim, s.page = page, s.tokens = kRows;
  s.layout = page % 32 == 16 ? CacheLayout::token_outside : CacheLayout::head_outside;
  s.lengths = {kRows, 64 + kRows, 192 + kRows};
  return s;
}

// The whole prompt at once against float64, and then in chunks: the same bits where they are promised.
void check_prompt(PrefillCache& test, const PagedShape& shape, bool rotate,
                  const std::function<void(const AttentionProblem&, const CacheView&, const CacheAppend&,
                                           const CacheTensors&, const std::string&)>& attend) {
  const std::string name = text(shape) + (rotate ? " rotary" : "");
  PagedCase c(shape);
  const auto taken = c.take_rows(kRows);
  const std::vector<uint16_t> empty_k = PagedCase::download(c.k), empty_v = PagedCase::download(c.v);
  const RotaryTable table(1000, shape.head_dim / 2, RopeStyle::half);
  AttentionProblem p = c.problem();
  p.mask.causal = true;
  CacheView view = c.view();
  view.seqlens = taken.lengths.as<int32_t>();
  Part whole = part_of(c, taken, 0, kRows, c.lse.as<float>());
  if (rotate) whole.append.rotary = &table.rotary;
  take_back(c, empty_k, empty_v);
  attend(p, view, whole.append, whole.tensors, name + " whole");
  if (test.HasFatalFailure()) return;
  const std::vector<uint16_t> want = c.output();
  const std::vector<float> want_lse = c.output_lse();
  const std::vector<uint16_t> full_k = PagedCase::download(c.k), full_v = PagedCase::download(c.v);
  EXPECT_EQ(full_v, taken.cache_v) << name << ": the cache of v after the call";
  const std::vector<uint16_t> q = PagedCase::download(c.q);
  std::vector<uint16_t> turned = q;
  if (rotate) {
    for (size_t row = 0; row < turned.size() / size_t(shape.head_dim); ++row) {
      const int token = int(row) / shape.heads, b = token / kRows;
      const int position = shape.lengths[size_t(b)] - kRows + token % kRows;
      table.turn(shape.dtype, turned.data() + row * size_t(shape.head_dim), position);
    }
    cudaMemcpy(c.q.data(), turned.data(), turned.size() * 2, cudaMemcpyHostToDevice);
  } else {
    EXPECT_EQ(full_k, taken.cache_k) << name << ": the cache of k after the call";
  }
  OracleFeatures f;
  f.causal = true;
  c.check(f, name);
  cudaMemcpy(c.q.data(), q.data(), q.size() * 2, cudaMemcpyHostToDevice);

  take_back(c, empty_k, empty_v);
  const size_t batch = shape.lengths.size(), heads = size_t(shape.heads);
  std::vector<float> got_lse(want_lse.size());
  for (size_t i = 0; i + 1 < std::size(kChunks); ++i) {
    const int first = kChunks[i], rows = kChunks[i + 1] - first;
    std::vector<int32_t> before;
    for (const int32_t length : shape.lengths) before.push_back(length - kRows + first);
    const DeviceBuffer lengths = PagedCase::upload(before);
    const DeviceBuffer lse = PagedCase::upload(std::vector<float>(batch * heads * size_t(rows), 7.0f));
    view.seqlens = lengths.as<int32_t>();
    Part part = part_of(c, taken, first, rows, lse.as<float>());
    if (rotate) part.append.rotary = &table.rotary;
    p.seqlen_q = rows;
    attend(p, view, part.append, part.tensors, name + " rows from " + std::to_string(first));
    if (test.HasFatalFailure()) return;
    std::vector<float> chunk(batch * heads * size_t(rows));
    cudaMemcpy(chunk.data(), lse.data(), chunk.size() * 4, cudaMemcpyDeviceToHost);
    for (size_t row = 0; row < batch * heads; ++row) {
      std::copy_n(chunk.begin() + int64_t(row) * rows, rows, got_lse.begin() + int64_t(row) * kRows + first);
    }
  }
  EXPECT_EQ(PagedCase::download(c.k), full_k) << name << ": the cache of k after the chunks";
  EXPECT_EQ(PagedCase::download(c.v), full_v) << name << ": the cache of v after the chunks";
  if (shape.head_dim <= 128 || !test.of_hopper()) {
    expect_same(c, c.output(), want, name + " in chunks");
    EXPECT_EQ(got_lse, want_lse) << name << ": lse in chunks";
    return;
  }
  // Blocks of 80 keys on sm_90: not promised there.
  const std::vector<uint16_t> got = c.output();
  size_t unlike = 0;
  for (size_t i = 0; i < got.size(); ++i) unlike += got[i] != want[i];
  std::printf("%s: %zu of %zu elements of the chunks unlike the whole's\n", name.c_str(), unlike, got.size());
  cudaMemcpy(c.q.data(), turned.data(), turned.size() * 2, cudaMemcpyHostToDevice);
  cudaMemcpy(c.lse.data(), got_lse.data(), got_lse.size() * 4, cudaMemcpyHostToDevice);
  c.check(f, name + " in chunks");
}

TEST_P(PrefillCache, AChunkedPromptHasTheBitsOfTheWhole) {
  const auto run = [&](auto&&... arguments) { attend(arguments...); };
  for (const int head_dim : {64, 96, 128, 256}) {
    for (const int page : {0, 8, 48, 64, 128}) {
      check_prompt(*this, prompt_shape(head_dim, page), false, run);
      if (HasFailure()) return;
    }
    PagedShape s = prompt_shape(head_dim, 16);
    s.dtype = DType::f16;
    check_prompt(*this, s, false, run);
    if (HasFailure()) return;
  }
}

TEST_P(PrefillCache, RotaryTurnsNewKeysAndEveryRowOfAChunk) {
  const auto run = [&](auto&&... arguments) { attend(arguments...); };
  for (const int head_dim : {64, 128, 256}) {
    // Float64 sees turned queries over an unturned prefix, as the kernel does: only new keys are turned.
    for (const int page : {0, 16}) {
      PagedShape s = prompt_shape(head_dim, page);
      if (page == 16) s.dtype = DType::f16;
      check_prompt(*this, s, true, run);
      if (HasFailure()) return;
    }
  }
}

// Contiguous rows chosen by an index: a capacity that is a multiple of nothing.
TEST_P(PrefillCache, RowsOfAContiguousCacheByIndex) {
  for (const int head_dim : {64, 128, 256}) {
    const PagedShape s = prompt_shape(head_dim, 0);
    PagedCase c(s);
    AttentionProblem p = c.problem();
    p.mask.causal = true;
    attend(p, c.view(), {}, c.tensors(), text(s));
    if (HasFatalFailure()) return;
    const std::vector<uint16_t> want = c.output();
    const DeviceBuffer index = PagedCase::upload(std::vector<int32_t>{0, 1, 2});
    CacheView view = c.view();
    view.cache_batch_idx = index.as<int32_t>();
    c.clear();
    attend(p, view, {}, c.tensors(), text(s) + " by index");
    if (HasFatalFailure()) return;
    expect_same(c, c.output(), want, text(s) + " by index");
  }
}

// What the step kernel did row by row.
TEST_P(PrefillCache, SoftcapAlibiWindowsAndLeftpadOverPages) {
  for (const int head_dim : {64, 128, 256}) {
    for (const int page : {0, 24, 64}) {
      PagedShape s = prompt_shape(head_dim, page);
      s.tokens = 100;
      PagedCase c(s);
      std::vector<float> slopes;
      for (int h = 0; h < s.heads; ++h) slopes.push_back(std::exp2(-float(h + 1)));
      const DeviceBuffer slopes_on_device = PagedCase::upload(slopes);
      const DeviceBuffer pads = PagedCase::upload(std::vector<int32_t>{3, 70, 200});
      const auto check = [&](const char* what, const std::function<void(AttentionProblem&)>& change) {
        AttentionProblem p = c.problem();
        p.mask.causal = true;
        change(p);
        c.clear();
        attend(p, c.view(), {}, c.tensors(), text(s) + " " + what);
        if (HasFatalFailure()) return;
        OracleFeatures f;
        f.causal = p.mask.causal;
        f.window_left = int(p.mask.window_left);
        f.window_right = int(p.mask.window_right);
        f.softcap = double(p.softcap);
        f.slopes = p.alibi_slopes;
        f.leftpad = p.leftpad_k;
        c.check(f, text(s) + " " + what);
      };
      check("softcap", [](AttentionProblem& p) { p.softcap = 2.0f; });
      check("alibi", [&](AttentionProblem& p) { p.alibi_slopes = slopes_on_device.as<float>(); });
      check("leftpad", [&](AttentionProblem& p) { p.leftpad_k = pads.as<int32_t>(); });
      check("window 50", [](AttentionProblem& p) { p.mask.window_left = 50; });
      check("softcap, alibi, window, leftpad", [&](AttentionProblem& p) {
        p.softcap = 3.0f;
        p.alibi_slopes = slopes_on_device.as<float>();
        p.mask.window_left = 90;
        p.leftpad_k = pads.as<int32_t>();
      });
      if (HasFailure()) return;
    }
  }
}

// Rows of sequences of several lengths in one tensor, with new keys and rotary: each one's bits are those of
// a call of its own.
TEST_P(PrefillCache, PackedRowsHaveTheBitsOfEachSequenceAlone) {
  constexpr int kAdded = 40;
  PagedShape s = prompt_shape(128, 16);
  s.tokens = kAdded;
  s.lengths = {40, 100, 300};
  PagedCase c(s);
  const auto taken = c.take_rows(kAdded);
  const RotaryTable table(400, 64, RopeStyle::interleaved);
  const std::vector<int32_t> counts = {40, 0, 23}, cu = {0, 40, 40, 63};
  const DeviceBuffer cu_on_device = PagedCase::upload(cu);
  AttentionProblem p = c.problem();
  p.mask.causal = true;
  p.cu_seqlens_q = cu_on_device.as<int32_t>();
  p.total_q = cu.back();
  CacheView view = c.view();
  view.seqlens = taken.lengths.as<int32_t>();
  Part part = part_of(c, taken, 0, kAdded, nullptr);
  part.append.rotary = &table.rotary;
  c.clear();
  attend(p, view, part.append, part.tensors, "packed");
  if (HasFatalFailure()) return;
  const std::vector<uint16_t> packed = c.output();
  const size_t width = size_t(s.heads * s.head_dim);
  for (size_t i = size_t(cu.back()) * width; i < packed.size(); ++i)
    ASSERT_EQ(packed[i], 0xffff) << "written behind the packed rows, at element " << i;
  for (size_t b = 0; b < counts.size(); ++b) {
    if (counts[b] == 0) continue;
    AttentionProblem alone = c.problem();
    alone.mask.causal = true;
    alone.batch = 1;
    alone.seqlen_q = counts[b];
    CacheView one = view;
    one.seqlens += b;
    one.block_table += int64_t(b) * c.max_blocks;
    Part own = part_of(c, taken, 0, kAdded, nullptr);
    own.append.rotary = &table.rotary;
    own.append.k.data =
        static_cast<const char*>(own.append.k.data) + 2 * int64_t(b) * own.append.k.batch_stride;
    own.append.v.data =
        static_cast<const char*>(own.append.v.data) + 2 * int64_t(b) * own.append.v.batch_stride;
    own.tensors.q.data = static_cast<const char*>(own.tensors.q.data) + 2 * size_t(cu[b]) * width;
    c.clear();
    attend(alone, one, own.append, own.tensors, "sequence " + std::to_string(b) + " alone");
    if (HasFatalFailure()) return;
    const std::vector<uint16_t> got = c.output();
    size_t wrong = 0, first = 0;
    for (size_t i = 0; i < size_t(counts[b]) * width; ++i) {
      if (got[i] != packed[size_t(cu[b]) * width + i] && wrong++ == 0) first = i;
    }
    EXPECT_EQ(wrong, 0u) << "sequence " << b << ": first at row " << first / width << " head "
                         << first % width / size_t(s.head_dim) << " d " << first % size_t(s.head_dim);
  }
}

// A call without rows only appends.
TEST_P(PrefillCache, NoRowsOnlyAppends) {
  PagedShape s = prompt_shape(128, 16);
  PagedCase c(s);
  const auto taken = c.take_rows(kRows);
  AttentionProblem p = c.problem();
  p.seqlen_q = 0;
  CacheView view = c.view();
  view.seqlens = taken.lengths.as<int32_t>();
  Part part = part_of(c, taken, 0, kRows, nullptr);
  part.tensors = {};
  attend(p, view, part.append, part.tensors, "no rows");
  EXPECT_TRUE(PagedCase::download(c.k) == taken.cache_k);
  EXPECT_TRUE(PagedCase::download(c.v) == taken.cache_v);
}

// One graph of a chunk, replayed while the sequences grow and the chunk's tensors are written anew.
TEST_P(PrefillCache, AGraphOfAChunkStaysValidWhileLengthsGrow) {
  constexpr int kChunk = 64, kTimes = 3;
  for (const int head_dim : {64, 128, 256}) {
    PagedShape s = prompt_shape(head_dim, 16);
    s.tokens = kChunk * kTimes;
    PagedCase c(s);
    const auto taken = c.take_rows(s.tokens);
    const std::vector<uint16_t> empty_k = PagedCase::download(c.k), empty_v = PagedCase::download(c.v);
    const RotaryTable table(1000, 64, RopeStyle::half);
    const size_t batch = s.lengths.size();
    const std::vector<uint16_t> all_q = PagedCase::download(c.q), all_k = PagedCase::download(taken.k),
                                all_v = PagedCase::download(taken.v);
    const auto rows_of = [&](const std::vector<uint16_t>& all, int time, int heads) {
      const size_t width = size_t(heads * s.head_dim);
      std::vector<uint16_t> rows;
      for (size_t b = 0; b < batch; ++b) {
        const auto from = all.begin() + int64_t((b * size_t(s.tokens) + size_t(time * kChunk)) * width);
        rows.insert(rows.end(), from, from + int64_t(kChunk * width));
      }
      return rows;
    };
    DeviceBuffer q = PagedCase::upload(rows_of(all_q, 0, s.heads)),
                 o = PagedCase::upload(rows_of(all_q, 0, s.heads)),
                 k = PagedCase::upload(rows_of(all_k, 0, s.kv_heads)),
                 v = PagedCase::upload(rows_of(all_v, 0, s.kv_heads)),
                 lengths = PagedCase::upload(std::vector<int32_t>(batch));
    AttentionProblem p = c.problem();
    p.mask.causal = true;
    p.seqlen_q = kChunk;
    CacheView view = c.view();
    view.seqlens = lengths.as<int32_t>();
    CacheAppend append;
    append.seqlen = kChunk;
    append.k = contiguous<const void*>(k.data(), kChunk, s.kv_heads, s.head_dim);
    append.v = contiguous<const void*>(v.data(), kChunk, s.kv_heads, s.head_dim);
    append.rotary = &table.rotary;
    const CacheTensors tensors = {contiguous<const void*>(q.data(), kChunk, s.heads, s.head_dim),
                                  contiguous<void*>(o.data(), kChunk, s.heads, s.head_dim), nullptr};
    const auto step = [&] { return kernels_->attend_cache(p, view, append, tensors); };
    std::optional<tessera::cuda::Graph> graph;
    const auto outputs = [&](bool replayed) {
      take_back(c, empty_k, empty_v);
      std::vector<std::vector<uint16_t>> all;
      for (int time = 0; time < kTimes; ++time) {
        std::vector<int32_t> before;
        for (const int32_t length : s.lengths) before.push_back(length - s.tokens + time * kChunk);
        const auto put = [](DeviceBuffer& to, const auto& values) {
          cudaMemcpy(to.data(), values.data(), values.size() * sizeof values[0], cudaMemcpyHostToDevice);
        };
        put(lengths, before);
        put(q, rows_of(all_q, time, s.heads));
        put(k, rows_of(all_k, time, s.kv_heads));
        put(v, rows_of(all_v, time, s.kv_heads));
        cudaMemset(o.data(), 0xff, o.size());
        cudaDeviceSynchronize();
        const Status status = replayed ? graph->launch(launch_->stream) : step();
        EXPECT_TRUE(status.ok()) << status.message();
        EXPECT_TRUE(launch_->stream.synchronize().ok());
        all.push_back(PagedCase::download(o));
      }
      return all;
    };
    const auto want = outputs(false);
    if (HasFailure()) return;
    auto captured = tessera::cuda::Graph::capture(launch_->stream, step);
    ASSERT_TRUE(captured.ok()) << captured.status().message();
    graph.emplace(std::move(captured).value());
    const auto got = outputs(true);
    for (int time = 0; time < kTimes; ++time)
      EXPECT_TRUE(got[size_t(time)] == want[size_t(time)]) << "d " << head_dim << " replay " << time;
  }
}

TEST_P(PrefillCache, WhatItDoesNotTakeIsRefusedBeforeAnyWrite) {
  PagedShape s = prompt_shape(128, 16);
  PagedCase c(s);
  const auto taken = c.take_rows(kRows);
  const std::vector<uint16_t> empty_k = PagedCase::download(c.k);
  const Part part = part_of(c, taken, 0, kRows, nullptr);
  const auto refused = [&](const AttentionProblem& p, const CacheView& view, const CacheTensors& t,
                           const char* field) {
    const Status status = kernels_->attend_cache(p, view, part.append, t);
    ASSERT_FALSE(status.ok()) << field;
    EXPECT_EQ(status.field(), field) << status.message();
    ASSERT_TRUE(launch_->stream.synchronize().ok());
    EXPECT_TRUE(PagedCase::download(c.k) == empty_k) << field << ": the cache was written";
  };
  CacheView view = c.view();
  view.seqlens = taken.lengths.as<int32_t>();
  AttentionProblem p = c.problem();
  p.dropout.p = 0.5f;
  refused(p, view, part.tensors, "dropout");
  p = c.problem();
  p.mask.tensor.kind = MaskKind::boolean;
  refused(p, view, part.tensors, "mask");
  CacheTensors t = part.tensors;
  t.q.row_stride += 4;
  refused(c.problem(), view, t, "q");
  t = part.tensors;
  t.o.data = static_cast<char*>(t.o.data) + 2;
  refused(c.problem(), view, t, "o");
  CacheView known = view;
  known.seqlens = nullptr;
  known.seqlen = c.max_blocks * 16 - kRows + 1;
  refused(c.problem(), known, part.tensors, "seqlen");
}

INSTANTIATE_TEST_SUITE_P(Kernels, PrefillCache,
                         ::testing::Values(Kernels::of_hopper, Kernels::of_every_device), [](const auto& of) {
                           return of.param == Kernels::of_hopper ? "OfHopper" : "OfEveryDevice";
                         });

}  // namespace
}  // namespace tessera::attention
