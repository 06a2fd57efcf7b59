// Every kind of kernel once on a problem of few rows, by the calls that users make: what runs under
// compute-sanitizer (scripts/test --device cuda --sanitize), where a launch costs a hundred times as much.
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "attention/cuda/dispatch.h"
#include "attention/cuda/sm80/prefill/forward.h"
#include "attention/cuda/sm90/prefill/launch.h"
#include "attention/cuda/tree/tree.h"
#include "tests/cuda/support/oracle_case.cuh"
#include "tests/cuda/support/paged_case.cuh"

namespace tessera::attention {
namespace {

using cuda_test::CacheLayout;
using cuda_test::OracleFeatures;
using cuda_test::PagedCase;
using cuda_test::PagedShape;

// The kernel that the device's dispatch takes.
Status forward(tessera::cuda::Launch& launch, const AttentionProblem& problem,
               const ForwardTensors& tensors) {
  return cuda::CudaKernels(launch).forward(problem, tensors);
}
Status backward(tessera::cuda::Launch& launch, const AttentionProblem& problem,
                const BackwardTensors& tensors) {
  return cuda::CudaKernels(launch).backward(problem, tensors);
}

class Small : public ::testing::Test {
 protected:
  void SetUp() override {
    auto created = tessera::cuda::Launch::create(0);
    ASSERT_TRUE(created.ok()) << created.status().message();
    launch_.emplace(std::move(*created));
  }
  // Plain, then with each feature.
  void check_forward(DeviceForward function, DType dtype, int dim, std::initializer_list<Feature> features) {
    const auto check = [&](const Feature* feature) {
      SCOPED_TRACE(std::string(name(dtype)) + " dim " + std::to_string(dim) + " " +
                   (feature == nullptr ? "plain" : name(*feature)));
      DenseCase c(dtype, 2, 37, 150, 2, dim, 611);
      if (feature != nullptr) add_on_device(c, *feature);
      c.fill();
      const Status status = run_on_device(*launch_, function, c);
      ASSERT_TRUE(status.ok()) << status.message();
      dtype == DType::f32 ? check_tf32(c) : c.check();
    };
    check(nullptr);
    for (const Feature feature : features) check(&feature);
  }
  void check_backward(DType dtype, int dim, std::initializer_list<Feature> features) {
    const auto check = [&](const Feature* feature) {
      SCOPED_TRACE(std::string(name(dtype)) + " dim " + std::to_string(dim) + " " +
                   (feature == nullptr ? "plain" : name(*feature)));
      OracleCase c(dtype, 2, 37, 70, 2, dim, 612);
      if (feature != nullptr) add_on_device(c.dense, *feature);
      const Status status = c.run(*launch_, forward, backward);
      ASSERT_TRUE(status.ok()) << status.message();
      c.check(true);
    };
    check(nullptr);
    for (const Feature feature : features) check(&feature);
  }
  void attend(PagedCase& c, const AttentionProblem& problem, const CacheView& view,
              const CacheAppend& append) {
    c.clear();
    cudaDeviceSynchronize();
    const Status status = cuda::CudaKernels(*launch_).attend_cache(problem, view, append, c.tensors());
    ASSERT_TRUE(status.ok()) << status.message();
    const Status done = launch_->stream.synchronize();
    ASSERT_TRUE(done.ok()) << done.message();
  }
  std::optional<tessera::cuda::Launch> launch_;
};

TEST_F(Small, Forward) {
  const auto features = {Feature::causal, Feature::window, Feature::varlen, Feature::boolean_mask,
                         Feature::gaps};
  check_forward(forward, DType::bf16, 64, features);
  check_forward(forward, DType::bf16, 128, {Feature::causal, Feature::leftpad, Feature::dropout});
  check_forward(forward, DType::f16, 96, {Feature::causal, Feature::seqused, Feature::ancestors});
  check_forward(forward, DType::f16, 256, {Feature::causal, Feature::softcap});
}

// Rows enough that the Hopper kernel takes its plain form, and tiles that no row is missing from.
TEST_F(Small, ForwardOfWholeTiles) {
  for (const int dim : {64, 128, 256}) {
    for (const bool causal : {false, true}) {
      SCOPED_TRACE("dim " + std::to_string(dim) + " causal " + std::to_string(causal));
      DenseCase c(DType::bf16, 1, 260, 200, 1, dim, 613);
      c.p.mask.causal = causal;
      c.fill();
      const Status status = run_on_device(*launch_, forward, c);
      ASSERT_TRUE(status.ok()) << status.message();
      c.check();
    }
  }
}

TEST_F(Small, ForwardOfPackedGroups) {
  if (launch_->device.sm() != 90) GTEST_SKIP() << "groups of heads share tiles on sm_90";
  const DeviceForward packed = [](tessera::cuda::Launch& launch, const AttentionProblem& problem,
                                  const ForwardTensors& tensors) {
    return cuda::sm90::prefill(launch, problem, tensors, {}, {.groups = cuda::sm90::GroupTiles::packed});
  };
  for (const int dim : {64, 128, 256}) {
    for (const int kv_heads : {2, 3}) {
      SCOPED_TRACE("dim " + std::to_string(dim) + " kv heads " + std::to_string(kv_heads));
      DenseCase c(DType::bf16, 2, 21, 150, 6, dim, 614);
      c.p.kv_heads = kv_heads;
      c.p.mask.causal = true;
      c.fill();
      const Status status = run_on_device(*launch_, packed, c);
      ASSERT_TRUE(status.ok()) << status.message();
      c.check();
    }
  }
}

TEST_F(Small, ForwardOfEveryDevice) {
  const DeviceForward function = cuda::sm80::forward;
  check_forward(function, DType::bf16, 64, {Feature::causal, Feature::varlen, Feature::boolean_mask});
  check_forward(function, DType::f16, 128, {Feature::window, Feature::dropout, Feature::gaps});
  check_forward(function, DType::f32, 40, {Feature::causal, Feature::ancestors});
  check_forward(function, DType::bf16, 256, {});
}

TEST_F(Small, Backward) {
  check_backward(DType::bf16, 64, {Feature::causal, Feature::varlen, Feature::dropout});
  check_backward(DType::f16, 128, {Feature::window, Feature::grouped, Feature::additive_mask});
  check_backward(DType::f32, 40, {Feature::alibi, Feature::gaps});
  check_backward(DType::bf16, 256, {});
}

// Steps over caches: each head size's kernel, pages of every kind of box, splits that are combined.
TEST_F(Small, Decode) {
  struct Case {
    int dim, page, heads, kv_heads;
    CacheLayout layout;
    std::vector<int32_t> lengths;
    DType dtype = DType::bf16;
    int v_dim = 0;
  };
  const Case cases[] = {
      {64, 0, 4, 4, CacheLayout::head_outside, {1, 65, 130}},
      {128, 64, 4, 2, CacheLayout::head_outside, {3, 64, 129}},
      {128, 16, 8, 2, CacheLayout::token_outside, {70, 0, 33}},
      {128, 8, 16, 1, CacheLayout::head_outside, {20, 100}},
      {256, 32, 2, 2, CacheLayout::head_outside, {66}},
      {40, 48, 4, 2, CacheLayout::token_outside, {5, 90}},
      {128, 64, 2, 1, CacheLayout::head_outside, {1100}},
      // The kernel of every device.
      {128, 20, 4, 2, CacheLayout::token_outside, {70, 0, 33}},
      {64, 16, 12, 1, CacheLayout::head_outside, {66, 270}, DType::f32},
      {128, 64, 4, 2, CacheLayout::head_outside, {1100}, DType::f32, 64},
  };
  for (const Case& one : cases) {
    PagedShape s;
    s.head_dim = one.dim, s.page = one.page, s.heads = one.heads, s.kv_heads = one.kv_heads;
    s.layout = one.layout, s.lengths = one.lengths, s.dtype = one.dtype, s.v_head_dim = one.v_dim;
    PagedCase c(s);
    AttentionProblem p = c.problem();
    p.mask.causal = false;
    attend(c, p, c.view(), {});
    if (HasFailure()) return;
    c.check({}, "dim " + std::to_string(one.dim) + " page " + std::to_string(one.page));
  }
}

// Sharing and not, both kernels: with features rows of many go by the warps' way, else by the warpgroups'.
TEST_F(Small, PrefixTree) {
  for (const bool hopper : {true, false}) {
    for (const auto& [dim, softcap, window] : {std::tuple{128, 0.0f, -1}, std::tuple{64, 2.0f, 500}}) {
      PagedShape s;
      s.head_dim = dim, s.heads = 4, s.kv_heads = 1;
      for (int b = 0; b < 5; ++b) {
        s.lengths.push_back(512 + 9 * b);
        s.shared_blocks.push_back({0, b == 0 ? 0 : 8});
      }
      PagedCase c(s);
      AttentionProblem p = c.problem();
      p.mask.causal = false;
      p.softcap = softcap;
      p.mask.window_left = window;
      std::vector<cuda::steps::TreeSequence> sequences;
      for (size_t b = 0; b < s.lengths.size(); ++b)
        sequences.push_back({c.table.data() + b * size_t(c.max_blocks), s.lengths[b]});
      cuda::steps::TreePlanOptions options;
      options.sharing = TreeSharing::always;
      options.for_any_device = !hopper;
      auto plan = cuda::steps::TreePlan::create(*launch_, p, sequences, s.page, options);
      ASSERT_TRUE(plan.ok()) << plan.status().message();
      ASSERT_TRUE(plan->shares());
      c.clear();
      cudaDeviceSynchronize();
      const Status status = plan->attend(*launch_, c.view(), {}, c.tensors());
      ASSERT_TRUE(status.ok()) << status.message();
      const Status done = launch_->stream.synchronize();
      ASSERT_TRUE(done.ok()) << done.message();
      OracleFeatures features;
      features.softcap = softcap;
      features.window_left = window;
      c.check(features, "a tree of dim " + std::to_string(dim) + (hopper ? "" : ", every device's kernel"));
    }
  }
}

// On Hopper by its kernel where the page is a multiple of 8, else by the one of every device.
TEST_F(Small, PromptOverPages) {
  for (const auto& [page, dim, dtype] : {std::tuple{64, 128, DType::bf16}, std::tuple{20, 128, DType::bf16},
                                         std::tuple{20, 64, DType::f32}, std::tuple{3, 256, DType::f16}}) {
    PagedShape s;
    s.tokens = 40, s.page = page, s.heads = 4, s.kv_heads = 2, s.lengths = {40, 100};
    s.head_dim = dim, s.dtype = dtype;
    const std::string of = ", page " + std::to_string(page) + " " + name(dtype);
    PagedCase c(s);
    AttentionProblem p = c.problem();
    p.mask.causal = true;
    attend(c, p, c.view(), {});
    OracleFeatures features;
    features.causal = true;
    c.check(features, "a prompt of 40" + of);
    const auto rows = c.take_rows(40);
    CacheView view = c.view();
    view.seqlens = rows.lengths.as<int32_t>();
    CacheAppend append;
    append.seqlen = 40;
    append.k = contiguous<const void*>(rows.k.data(), 40, s.kv_heads, s.head_dim);
    append.v = contiguous<const void*>(rows.v.data(), 40, s.kv_heads, s.head_dim);
    p.softcap = 2.0f;
    attend(c, p, view, append);
    features.softcap = 2.0;
    c.check(features, "a prompt of 40 that appends, softcap" + of);
  }
}

TEST_F(Small, Append) {
  for (const int page : {0, 16}) {
    PagedShape s;
    s.page = page, s.heads = 4, s.kv_heads = 2, s.tokens = 2, s.lengths = {2, 64, 66};
    s.layout = page == 16 ? CacheLayout::token_outside : CacheLayout::head_outside;
    PagedCase c(s);
    attend(c, c.problem(), c.view(), {});
    if (HasFailure()) return;
    const auto want = c.output();
    const auto rows = c.take_rows(2);
    CacheView view = c.view();
    view.seqlens = rows.lengths.as<int32_t>();
    CacheAppend append;
    append.seqlen = 2;
    append.k = contiguous<const void*>(rows.k.data(), 2, s.kv_heads, s.head_dim);
    append.v = contiguous<const void*>(rows.v.data(), 2, s.kv_heads, s.head_dim);
    attend(c, c.problem(), view, append);
    EXPECT_EQ(c.output(), want) << "page " << page;
    EXPECT_EQ(c.download(c.k), rows.cache_k) << "page " << page;
    EXPECT_EQ(c.download(c.v), rows.cache_v) << "page " << page;
  }
}

}  // namespace
}  // namespace tessera::attention
