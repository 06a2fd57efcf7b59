// Attention over prefix trees on sm_90: against float64, and bit for bit against the same step without
// sharing.
#include "attention/cuda/tree/tree.h"

#include <gtest/gtest.h>

#include "attention/cuda/sm90/decode/decode.h"
#include "tests/cuda/support/paged_case.cuh"

namespace tessera::attention::cuda::sm90 {
namespace {

using cuda_test::PagedCase;
using cuda_test::PagedShape;

std::vector<TreeSequence> sequences_of(const PagedCase& c) {
  std::vector<TreeSequence> sequences;
  for (size_t b = 0; b < c.shape.lengths.size(); ++b)
    sequences.push_back({c.table.data() + b * size_t(c.max_blocks), c.shape.lengths[b]});
  return sequences;
}

class Tree : public ::testing::Test {
 protected:
  void SetUp() override {
    auto made = tessera::cuda::Launch::create(0);
    ASSERT_TRUE(made.ok()) << made.status().message();
    launch_.emplace(std::move(made).value());
    if (launch_->device.major != 9) GTEST_SKIP() << "needs sm_90, this is sm_" << launch_->device.sm();
  }
  void attend(PagedCase& c, const TreePlan& plan) {
    c.clear();
    cudaDeviceSynchronize();
    const Status status = plan.attend(*launch_, c.view(), {}, c.tensors());
    ASSERT_TRUE(status.ok()) << status.message();
    const Status done = launch_->stream.synchronize();
    ASSERT_TRUE(done.ok()) << done.message();
  }
  AttentionProblem problem(const PagedCase& c) {
    AttentionProblem p = c.problem();
    p.mask.causal = false;
    return p;
  }
  // Shared and checked against float64, then against no sharing and against other layouts of the work.
  void check(const PagedShape& shape, const std::string& name, int64_t tiles_at_most = INT64_MAX) {
    PagedCase c(shape);
    const auto sequences = sequences_of(c);
    TreePlanOptions always;
    always.sharing = TreeSharing::always;
    auto plan = TreePlan::create(*launch_, problem(c), sequences, shape.page, always);
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    EXPECT_TRUE(plan->shares());
    EXPECT_LE(plan->reads().tiles, tiles_at_most) << plan->explain();
    attend(c, *plan);
    if (HasFatalFailure()) return;
    c.check({}, name);
    const auto want = c.output();
    const auto want_lse = c.output_lse();
    TreePlanOptions apart;
    apart.sharing = TreeSharing::never;
    auto unshared = TreePlan::create(*launch_, problem(c), sequences, shape.page, apart);
    ASSERT_TRUE(unshared.ok());
    attend(c, *unshared);
    EXPECT_EQ(c.output(), want) << name << ": bits without sharing";
    EXPECT_EQ(c.output_lse(), want_lse);
    for (const int units : {1, 2, 4, 8}) {
      TreePlanOptions options = always;
      options.shared_units = units;
      auto other = TreePlan::create(*launch_, problem(c), sequences, shape.page, options);
      ASSERT_TRUE(other.ok());
      attend(c, *other);
      EXPECT_EQ(c.output(), want) << name << ": bits in shared pieces of " << units << " units";
    }
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
  std::optional<tessera::cuda::Launch> launch_;
};

TEST_F(Tree, AStarOfThirtyTwo) {
  check(star(32, 1024, 512, 32, 32), "MHA 1024 + 512", 16 + 32 * 8);
  check(star(32, 1024, 512, 32, 8), "32:8 1024 + 512", 16 + 32 * 8);
  check(star(32, 2048, 77, 32, 8), "32:8 2048 + 77");
  check(star(32, 768, 300, 8, 8), "MHA 768 + 300");
}

TEST_F(Tree, FullySharedRows) {
  check(star(32, 1024, 0, 32, 32), "MHA 1024 shared", 16);
  check(star(32, 2048, 0, 32, 8), "32:8 2048 shared", 32);
}

TEST_F(Tree, ThreeLevels) {
  PagedShape s;
  s.heads = 32, s.kv_heads = 8;
  for (int b = 0; b < 32; ++b) {
    s.lengths.push_back(1024 + 512 + 200 + b);
    const int leader = b / 8 * 8;
    s.shared_blocks.push_back(b == 0        ? std::pair{0, 0}
                              : b == leader ? std::pair{0, 1024 / 64}
                                            : std::pair{leader, (1024 + 512) / 64});
  }
  check(s, "three levels 32:8");
  s.kv_heads = 32;
  check(s, "three levels MHA");
  s.dtype = DType::f16;
  check(s, "three levels MHA f16");
  s.head_dim = 64;
  check(s, "three levels MHA f16 d 64");
}

TEST_F(Tree, RaggedTreesWithPrefixesThatAreNoWholeUnits) {
  PagedShape s;
  s.heads = 16, s.kv_heads = 4, s.page = 16;
  std::mt19937 random(cuda_test::kSeed);
  for (int b = 0; b < 40; ++b) {
    s.lengths.push_back(1 + int(random() % 3000));
    const int parent = b == 0 ? 0 : int(random() % uint32_t(b));
    const int most = std::min(s.lengths[size_t(parent)], s.lengths.back()) / 16;
    s.shared_blocks.push_back({parent, b == 0 || most == 0 ? 0 : int(random() % uint32_t(most + 1))});
  }
  check(s, "random tree");
}

TEST_F(Tree, GroupsThatDoNotDivideThePiece) {
  check(star(9, 1024, 100, 12, 4), "group 3 of 9");
  check(star(7, 1280, 300, 10, 2), "group 5 of 7");
  check(star(5, 1024, 600, 34, 2), "group 17 of 5");
}

TEST_F(Tree, GroupsWiderThanAWarpsPieceAreNotShared) {
  PagedCase c(star(5, 1024, 600, 40, 1));
  auto plan = TreePlan::create(*launch_, problem(c), sequences_of(c), 64, {TreeSharing::always});
  ASSERT_TRUE(plan.ok());
  EXPECT_FALSE(plan->shares());
  attend(c, *plan);
  c.check({}, "group 40");
}

TEST_F(Tree, OneHundredRepeatsAreBitwiseEqual) {
  PagedCase c(star(24, 1536, 700, 32, 8));
  auto plan = TreePlan::create(*launch_, problem(c), sequences_of(c), 64, {TreeSharing::always});
  ASSERT_TRUE(plan.ok());
  attend(c, *plan);
  const auto want = c.output();
  int differ = 0;
  for (int i = 0; i < 100; ++i) {
    attend(c, *plan);
    differ += c.output() != want;
  }
  EXPECT_EQ(differ, 0);
}

TEST_F(Tree, NothingSharedIsDecode) {
  PagedCase c(star(8, 0, 900, 8, 8));
  auto plan = TreePlan::create(*launch_, problem(c), sequences_of(c), 64, {TreeSharing::always});
  ASSERT_TRUE(plan.ok());
  EXPECT_FALSE(plan->shares());
  attend(c, *plan);
  c.check({}, "nothing shared");
}

TEST_F(Tree, ThePlanStaysValidWhileSequencesGrow) {
  PagedShape s = star(16, 1024, 300, 32, 8);
  PagedCase c(s);
  auto shorter = sequences_of(c);
  for (TreeSequence& sequence : shorter) sequence.keys -= 40;  // as they were when the plan was made
  auto plan = TreePlan::create(*launch_, problem(c), shorter, 64, {TreeSharing::always});
  ASSERT_TRUE(plan.ok());
  attend(c, *plan);
  c.check({}, "grown by 40");
}

}  // namespace
}  // namespace tessera::attention::cuda::sm90
