// Prompts over a cache by the kernels for every device: every instantiation and feature against float64, and
// what a row's bits do not depend on. Appends, rotary and graphs: prefill_cache_test.cu.
#include <gtest/gtest.h>

#include "attention/cuda/dispatch.h"
#include "attention/cuda/sm80/prefill/forward.h"
#include "tests/cuda/support/step_case.cuh"

namespace tessera::attention::cuda {
namespace {

using cuda_test::CacheLayout;
using cuda_test::DeviceBuffer;
using cuda_test::OracleFeatures;
using cuda_test::PagedCase;
using cuda_test::PagedShape;

class Sm80Prompt : public cuda_test::StepTest {
 protected:
  void attend(PagedCase& c, const AttentionProblem& problem) {
    c.clear();
    cudaDeviceSynchronize();
    finish(sm80::attend_prompt(*launch_, problem, c.view(), {}, c.tensors()));
  }
  void check_causal(const PagedShape& shape, const std::string& name) {
    PagedCase c(shape);
    AttentionProblem p = c.problem();
    p.mask.causal = true;
    attend(c, p);
    if (HasFatalFailure()) return;
    OracleFeatures f;
    f.causal = true;
    c.check(f, name);
  }
  // Rows that see nothing, one key, tile edges, and more keys than rows.
  static PagedShape prompt(DType dtype, int dim, int page) {
    PagedShape s;
    s.dtype = dtype, s.heads = 4, s.kv_heads = 2, s.head_dim = dim, s.page = page, s.tokens = 150;
    s.lengths = {0, 1, 64, 150, 151, 400};
    return s;
  }
};

TEST_F(Sm80Prompt, EveryHeadSizeAndType) {
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    for (const int dim : {8, 64, 72, 96, 128, 136, 192, 256})
      check_causal(prompt(dtype, dim, 16), "d " + std::to_string(dim) + " " + name(dtype));
    for (const auto& [dim, v_dim] : {std::pair{192, 128}, std::pair{64, 256}, std::pair{128, 40}}) {
      PagedShape s = prompt(dtype, dim, 16);
      s.v_head_dim = v_dim;
      check_causal(s, "d " + std::to_string(dim) + "/" + std::to_string(v_dim) + " " + name(dtype));
    }
  }
}

TEST_F(Sm80Prompt, EveryPageAndLayout) {
  for (const int page : {0, 1, 3, 16, 20, 48, 64, 100, 256, 1000}) {
    for (const CacheLayout layout : {CacheLayout::head_outside, CacheLayout::token_outside}) {
      PagedShape s = prompt(DType::bf16, 128, page);
      s.layout = layout;
      check_causal(s, "page " + std::to_string(page) +
                          (layout == CacheLayout::head_outside ? " head outside" : " token outside"));
    }
  }
}

struct Feature {
  const char* name;
  void (*add)(AttentionProblem& p, const float* slopes, const int32_t* pads);
};

TEST_F(Sm80Prompt, EachFeatureAndEachPair) {
  const Feature features[] = {
      {"causal", [](AttentionProblem& p, auto, auto) { p.mask.causal = true; }},
      {"window_left 70", [](AttentionProblem& p, auto, auto) { p.mask.window_left = 70; }},
      {"window_right 9", [](AttentionProblem& p, auto, auto) { p.mask.window_right = 9; }},
      {"softcap", [](AttentionProblem& p, auto, auto) { p.softcap = 2.0f; }},
      {"alibi", [](AttentionProblem& p, const float* slopes, auto) { p.alibi_slopes = slopes; }},
      {"leftpad", [](AttentionProblem& p, auto, const int32_t* pads) { p.leftpad_k = pads; }}};
  for (const DType dtype : {DType::bf16, DType::f32}) {
    for (const int dim : {64, 128, 256}) {
      PagedCase c(prompt(dtype, dim, 24));
      const DeviceBuffer slopes = PagedCase::upload(std::vector<float>{0.5f, 0.25f, 0.125f, 0.0625f});
      const DeviceBuffer pads = PagedCase::upload(std::vector<int32_t>{0, 1, 30, 149, 0, 130});
      for (const Feature& first : features) {
        for (const Feature& second : features) {
          if (&second < &first) continue;
          AttentionProblem p = c.problem();
          first.add(p, slopes.as<float>(), pads.as<int32_t>());
          second.add(p, slopes.as<float>(), pads.as<int32_t>());
          attend(c, p);
          if (HasFatalFailure()) return;
          const OracleFeatures f = {p.mask.causal,     int(p.mask.window_left), int(p.mask.window_right),
                                    double(p.softcap), p.alibi_slopes,          p.leftpad_k};
          c.check(f, std::string(first.name) + " + " + second.name + ", d " + std::to_string(dim) + " " +
                         name(dtype));
          if (HasFailure()) return;
        }
      }
    }
  }
}

// Packed rows: the last of each sequence's, another number of each. Their bits, and those of a sequence
// alone, are what the rows have in a call of all.
TEST_F(Sm80Prompt, BitsDependNeitherOnTheBatchNorOnWhereAChunkBegins) {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    for (const int dim : {64, 128, 256}) {
      for (const int window : {-1, 90}) {
        PagedCase c(prompt(dtype, dim, 20));
        const PagedShape& s = c.shape;
        const std::string what =
            "d " + std::to_string(dim) + " " + name(dtype) + " window " + std::to_string(window);
        AttentionProblem p = c.problem();
        p.mask.causal = true;
        p.mask.window_left = window;
        attend(c, p);
        if (HasFatalFailure()) return;
        const auto all = c.output();
        const auto all_lse = c.output_lse();
        const auto all_q = PagedCase::download(c.q);
        const std::vector<int32_t> counts = {150, 1, 63, 0, 17, 141};
        std::vector<int32_t> cu = {0};
        for (const int32_t count : counts) cu.push_back(cu.back() + count);
        const size_t width = size_t(s.heads * s.head_dim) * s.element_bytes() / 2;
        const auto rows_of = [&](size_t b) { return (b + 1) * size_t(s.tokens) - size_t(counts[b]); };
        std::vector<uint16_t> q;
        for (size_t b = 0; b < counts.size(); ++b) {
          const auto from = all_q.begin() + int64_t(rows_of(b) * width);
          q.insert(q.end(), from, from + int64_t(size_t(counts[b]) * width));
        }
        const DeviceBuffer q_on_device = PagedCase::upload(q), cu_on_device = PagedCase::upload(cu);
        const DeviceBuffer lse = PagedCase::upload(std::vector<float>(size_t(cu.back() * s.heads), 7.0f));
        p.cu_seqlens_q = cu_on_device.as<int32_t>();
        p.total_q = cu.back();
        CacheTensors t = c.tensors();
        t.q.data = q_on_device.data();
        t.lse = lse.as<float>();
        c.clear();
        finish(sm80::attend_prompt(*launch_, p, c.view(), {}, t));
        if (HasFatalFailure()) return;
        const auto got = c.output();
        std::vector<float> got_lse(lse.size() / 4);
        cudaMemcpy(got_lse.data(), lse.data(), lse.size(), cudaMemcpyDeviceToHost);
        for (size_t b = 0; b < counts.size(); ++b) {
          const size_t count = size_t(counts[b]), first = size_t(cu[b]);
          ASSERT_TRUE(std::equal(got.begin() + int64_t(first * width),
                                 got.begin() + int64_t((first + count) * width),
                                 all.begin() + int64_t(rows_of(b) * width)))
              << what << ", packed sequence " << b;
          for (size_t h = 0; h < size_t(s.heads); ++h) {
            const size_t from = (b * size_t(s.heads) + h + 1) * size_t(s.tokens) - count;
            ASSERT_EQ(std::memcmp(&got_lse[h * size_t(cu.back()) + first], &all_lse[from], count * 4), 0)
                << what << ", lse of packed sequence " << b << " head " << h;
          }
        }
        for (size_t i = size_t(cu.back()) * width; i < got.size(); ++i)
          ASSERT_EQ(got[i], 0xffff) << what << ": written behind the packed rows, at " << i;

        AttentionProblem alone = c.problem();
        alone.mask.causal = true;
        alone.mask.window_left = window;
        alone.batch = 1;
        CacheView view = c.view();
        view.block_table += 5 * c.max_blocks;
        view.seqlens += 5;
        t = c.tensors();
        t.q.data = static_cast<const char*>(t.q.data) + size_t(5 * s.tokens) * 2 * width;
        t.lse = nullptr;
        c.clear();
        finish(sm80::attend_prompt(*launch_, alone, view, {}, t));
        const auto one = c.output();
        ASSERT_TRUE(std::equal(all.begin() + int64_t(size_t(5 * s.tokens) * width), all.end(), one.begin()))
            << what << ", sequence 5 alone";
      }
    }
  }
}

// A block that is not there is refused by no host, and read by no kernel.
TEST_F(Sm80Prompt, BlockIdsOutsideTheCacheReadAsZeros) {
  PagedCase c(prompt(DType::bf16, 128, 16));
  std::vector<int32_t> table = c.table;
  table[size_t(4 * c.max_blocks) + 1] = -1;
  table[size_t(5 * c.max_blocks)] = c.num_blocks;
  const auto on_device = PagedCase::upload(table);
  CacheView view = c.view();
  view.block_table = on_device.as<int32_t>();
  c.clear();
  finish(sm80::attend_prompt(*launch_, c.problem(), view, {}, c.tensors()));
  for (const uint16_t bits : c.output()) ASSERT_FALSE(std::isnan(bf16_to_f32(bits)));
}

TEST_F(Sm80Prompt, OneHundredRepeatsAreBitwiseEqual) {
  PagedCase c(prompt(DType::bf16, 128, 16));
  AttentionProblem p = c.problem();
  p.mask.causal = true;
  attend(c, p);
  const auto want = c.output();
  int differ = 0;
  for (int i = 0; i < 100; ++i) {
    attend(c, p);
    differ += c.output() != want;
  }
  EXPECT_EQ(differ, 0);
}

TEST_F(Sm80Prompt, BadProblemsAreRefusedBeforeALaunch) {
  PagedCase c(prompt(DType::bf16, 128, 16));
  const auto refused = [&](const AttentionProblem& p, const CacheView& view, const CacheTensors& t,
                           const char* field) {
    const Status status = sm80::attend_prompt(*launch_, p, view, {}, t);
    ASSERT_FALSE(status.ok()) << field;
    EXPECT_EQ(status.field(), field) << status.message();
  };
  AttentionProblem p = c.problem();
  p.head_dim = 264;
  refused(p, c.view(), c.tensors(), "head_dim");
  CacheView view = c.view();
  view.k.data = static_cast<char*>(view.k.data) + 2;
  refused(c.problem(), view, c.tensors(), "k_cache");
  view = c.view();
  view.v.row_stride += 4;
  refused(c.problem(), view, c.tensors(), "v_cache");
  CacheTensors t = c.tensors();
  t.q.head_stride += 1;
  refused(c.problem(), c.view(), t, "q");
}

TEST_F(Sm80Prompt, ExplainNamesTheKernelOfAPrompt) {
  AttentionProblem p;
  p.batch = 2, p.seqlen_q = 100, p.heads = p.kv_heads = 4, p.head_dim = p.v_head_dim = 128;
  p.dtype = DType::bf16, p.scale = 0.1f;
  tessera::cuda::DeviceProperties device;
  device.name = "some device";
  device.shared_bytes = 99 * 1024;
  device.major = 8, device.minor = 6;
  std::string text = explain_on(device, p, Pass::forward);
  EXPECT_NE(text.find("> sm80 prefill over a cache"), std::string::npos) << text;
  device.major = 9, device.minor = 0, device.shared_bytes = 227 * 1024;
  text = explain_on(device, p, Pass::forward);
  EXPECT_NE(text.find("> sm90 prefill over a cache"), std::string::npos) << text;
  p.dtype = DType::f32;
  text = explain_on(device, p, Pass::forward);
  EXPECT_NE(text.find("> sm80 prefill over a cache"), std::string::npos) << text;
}

}  // namespace
}  // namespace tessera::attention::cuda
