// Attention over prefix trees by the kernels for every device: against float64, and bit for bit against the
// same step without sharing, other divisions of the work, and the sm_90 kernels where they are.
#include <gtest/gtest.h>

#include "attention/cuda/tree/tree.h"
#include "tests/cuda/support/step_case.cuh"

namespace tessera::attention::cuda {
namespace {

using cuda_test::expect_same_bits;
using cuda_test::expect_same_lse;
using cuda_test::PagedCase;
using cuda_test::PagedShape;
using steps::TreePlan;
using steps::TreePlanOptions;
using steps::TreeSequence;
using steps::TreeSharing;

std::vector<TreeSequence> sequences_of(const PagedCase& c) {
  std::vector<TreeSequence> sequences;
  for (size_t b = 0; b < c.shape.lengths.size(); ++b)
    sequences.push_back({c.table.data() + b * size_t(c.max_blocks), c.shape.lengths[b]});
  return sequences;
}

class Sm80Tree : public cuda_test::StepTest {
 protected:
  static TreePlanOptions options_of(TreeSharing sharing) {
    TreePlanOptions options;
    options.sharing = sharing;
    options.for_any_device = true;
    return options;
  }
  AttentionProblem problem(const PagedCase& c) {
    AttentionProblem p = c.problem();
    p.mask.causal = false;
    return p;
  }
  // Plans and attends; whether it shared.
  void attend(PagedCase& c, const TreePlanOptions& options, bool shares) {
    auto plan = TreePlan::create(*launch_, problem(c), sequences_of(c), c.shape.page, options);
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    ASSERT_EQ(plan->shares(), shares) << plan->explain();
    c.clear();
    cudaDeviceSynchronize();
    finish(plan->attend(*launch_, c.view(), {}, c.tensors()));
  }
  void check_tree(const PagedShape& shape, const std::string& name) {
    PagedCase c(shape);
    const TreePlanOptions always = options_of(TreeSharing::always);
    attend(c, always, true);
    if (HasFatalFailure()) return;
    c.check({}, name);
    const auto want = c.output();
    const auto want_lse = c.output_lse();
    const auto same = [&](const TreePlanOptions& options, bool shares, const std::string& what) {
      attend(c, options, shares);
      if (HasFatalFailure()) return;
      expect_same_bits(c.output(), want, shape, name + ": " + what);
      expect_same_lse(c.output_lse(), want_lse, name + ": " + what);
    };
    same(options_of(TreeSharing::never), false, "without sharing");
    for (const int units : {1, 2, 4, 8}) {
      TreePlanOptions options = always;
      options.shared_units = units;
      same(options, true, "shared pieces of " + std::to_string(units) + " units");
    }
    TreePlanOptions few = always;
    few.most_rows = std::max(8, shape.heads / shape.kv_heads);
    same(few, true, "pieces of few rows");
    if (!on_hopper() || shape.page % 8 != 0 || !sm90::supports_decode(problem(c)).ok()) return;
    TreePlanOptions sm90 = always;
    sm90.for_any_device = false;
    same(sm90, true, "sm_90's bits");
  }
  // `count` sequences of `shared` common positions and `own` more.
  static PagedShape star(int count, int shared, int own, int heads, int kv_heads) {
    PagedShape s;
    s.heads = heads, s.kv_heads = kv_heads;
    for (int b = 0; b < count; ++b) {
      s.lengths.push_back(shared + own);
      s.shared_blocks.push_back({0, b == 0 ? 0 : shared / s.page});
    }
    return s;
  }
};

TEST_F(Sm80Tree, AStarOfThirtyTwo) {
  check_tree(star(32, 1024, 512, 32, 32), "MHA 1024 + 512");
  check_tree(star(32, 1024, 512, 32, 8), "32:8 1024 + 512");
  check_tree(star(32, 2048, 77, 32, 8), "32:8 2048 + 77");
  check_tree(star(32, 768, 300, 8, 8), "MHA 768 + 300");
}

TEST_F(Sm80Tree, FullySharedRows) {
  check_tree(star(32, 1024, 0, 32, 32), "MHA 1024 shared");
  check_tree(star(32, 2048, 0, 32, 8), "32:8 2048 shared");
}

TEST_F(Sm80Tree, ThreeLevelsAndEveryKernel) {
  PagedShape s;
  s.heads = 32, s.kv_heads = 8;
  for (int b = 0; b < 32; ++b) {
    s.lengths.push_back(1024 + 512 + 200 + b);
    const int leader = b / 8 * 8;
    s.shared_blocks.push_back(b == 0        ? std::pair{0, 0}
                              : b == leader ? std::pair{0, 1024 / 64}
                                            : std::pair{leader, (1024 + 512) / 64});
  }
  for (const int dim : {64, 128, 256}) {
    for (const DType dtype : {DType::bf16, DType::f32, DType::f16}) {
      s.head_dim = dim, s.dtype = dtype;
      check_tree(s, "three levels 32:8 d " + std::to_string(dim) + " " + std::string(name(dtype)));
    }
  }
  s.head_dim = 128, s.kv_heads = 32;
  check_tree(s, "three levels MHA f16");
}

TEST_F(Sm80Tree, OtherValueHeadSizes) {
  for (const auto& [dim, v_dim] : {std::pair{128, 64}, std::pair{64, 128}, std::pair{192, 128}}) {
    for (const DType dtype : {DType::bf16, DType::f32}) {
      PagedShape s = star(16, 1024, 300, 8, 2);
      s.head_dim = dim, s.v_head_dim = v_dim, s.dtype = dtype;
      check_tree(s,
                 "d " + std::to_string(dim) + "/" + std::to_string(v_dim) + " " + std::string(name(dtype)));
    }
  }
}

TEST_F(Sm80Tree, RaggedTreesWithPrefixesThatAreNoWholeUnits) {
  for (const int page : {16, 20, 3}) {
    PagedShape s;
    s.heads = 16, s.kv_heads = 4, s.page = page;
    std::mt19937 random(cuda_test::kSeed);
    for (int b = 0; b < 40; ++b) {
      s.lengths.push_back(1 + int(random() % 3000));
      const int parent = b == 0 ? 0 : int(random() % uint32_t(b));
      const int most = std::min(s.lengths[size_t(parent)], s.lengths.back()) / page;
      s.shared_blocks.push_back({parent, b == 0 || most == 0 ? 0 : int(random() % uint32_t(most + 1))});
    }
    check_tree(s, "random tree, page " + std::to_string(page));
  }
}

TEST_F(Sm80Tree, GroupsThatDoNotDivideThePiece) {
  check_tree(star(9, 1024, 100, 12, 4), "group 3 of 9");
  check_tree(star(7, 1280, 300, 10, 2), "group 5 of 7");
  check_tree(star(5, 1024, 600, 34, 2), "group 17 of 5");
}

TEST_F(Sm80Tree, OneHundredRepeatsAreBitwiseEqual) {
  PagedCase c(star(24, 1536, 700, 32, 8));
  const TreePlanOptions always = options_of(TreeSharing::always);
  attend(c, always, true);
  const auto want = c.output();
  int differ = 0;
  for (int i = 0; i < 100; ++i) {
    attend(c, always, true);
    differ += c.output() != want;
  }
  EXPECT_EQ(differ, 0);
}

TEST_F(Sm80Tree, DevicesThatAreNoHopperTakeIt) {
  launch_->device.major = 8, launch_->device.minor = 6, launch_->device.shared_bytes = 99 * 1024;
  PagedShape s = star(16, 1024, 300, 32, 8);
  PagedCase c(s);
  TreePlanOptions options;
  options.sharing = TreeSharing::always;
  attend(c, options, true);
  c.check({}, "a tree on a device that is no Hopper");
  options.sharing = TreeSharing::never;
  const auto want = c.output();
  attend(c, options, false);
  expect_same_bits(c.output(), want, s, "without sharing");
}

}  // namespace
}  // namespace tessera::attention::cuda
