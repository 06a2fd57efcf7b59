// Attention over prefix trees on sm_90: against float64, and bit for bit against the same step without
// sharing.
#include "attention/cuda/tree/tree.h"

#include <gtest/gtest.h>

#include <chrono>
#include <map>

#include "attention/cuda/sm90/decode/decode.h"
#include "tests/cuda/support/hold.cuh"
#include "tests/cuda/support/late_writer.cuh"
#include "tests/cuda/support/paged_case.cuh"
#include "tests/cuda/support/step_case.cuh"

namespace tessera::attention::cuda::sm90 {
namespace {

using cuda_test::DeviceBuffer;
using cuda_test::expect_same_bits;
using cuda_test::expect_same_lse;
using cuda_test::OracleFeatures;
using cuda_test::PagedCase;
using cuda_test::PagedShape;

std::vector<TreeSequence> sequences_of(const PagedCase& c) {
  std::vector<TreeSequence> sequences;
  for (size_t b = 0; b < c.shape.lengths.size(); ++b)
    sequences.push_back({c.table.data() + b * size_t(c.max_blocks), c.shape.lengths[b]});
  return sequences;
}

// What a problem has besides its shape, and the same for the oracle.
struct Features {
  int64_t window_left = -1;
  float softcap = 0;
  std::vector<float> slopes;     // [heads]
  std::vector<int32_t> leftpad;  // [batch]; the keys before it are NaN in the cache
};

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
  void check(const PagedShape& shape, const std::string& name, int64_t tiles_at_most = INT64_MAX,
             const Features& features = {}) {
    PagedCase c(shape);
    AttentionProblem problem = this->problem(c);
    OracleFeatures oracle;
    problem.mask.window_left = oracle.window_left = int(features.window_left);
    problem.softcap = features.softcap;
    oracle.softcap = features.softcap;
    if (!features.slopes.empty()) {
      c.slopes = PagedCase::upload(features.slopes);
      problem.alibi_slopes = oracle.slopes = c.slopes.as<float>();
    }
    if (!features.leftpad.empty()) {
      c.leftpad = PagedCase::upload(features.leftpad);
      problem.leftpad_k = oracle.leftpad = c.leftpad.as<int32_t>();
      spoil(c, features.leftpad);
    }
    auto sequences = sequences_of(c);
    if (features.window_left >= 0) {
      for (TreeSequence& sequence : sequences)
        sequence.first = std::max<int64_t>(0, sequence.keys - 1 - features.window_left);
    }
    TreePlanOptions always;
    always.sharing = TreeSharing::always;
    auto plan = TreePlan::create(*launch_, problem, sequences, shape.page, always);
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    ASSERT_TRUE(plan->shares()) << name << ": " << plan->explain();
    EXPECT_LE(plan->reads().tiles, tiles_at_most) << plan->explain();
    attend(c, *plan);
    if (HasFatalFailure()) return;
    c.check(oracle, name);
    const auto want = c.output();
    const auto want_lse = c.output_lse();
    TreePlanOptions apart;
    apart.sharing = TreeSharing::never;
    auto unshared = TreePlan::create(*launch_, problem, sequences, shape.page, apart);
    ASSERT_TRUE(unshared.ok());
    attend(c, *unshared);
    expect_same_bits(c.output(), want, c.shape, name + ": bits without sharing");
    expect_same_lse(c.output_lse(), want_lse, name + ": lse without sharing");
    TreePlanOptions any_device = always;
    any_device.for_any_device = true;
    auto by_sm80 = TreePlan::create(*launch_, problem, sequences, shape.page, any_device);
    ASSERT_TRUE(by_sm80.ok()) << by_sm80.status().message();
    attend(c, *by_sm80);
    expect_same_bits(c.output(), want, c.shape, name + ": bits of the kernels for every device");
    for (const int units : {1, 2, 4, 8}) {
      TreePlanOptions options = always;
      options.shared_units = units;
      auto other = TreePlan::create(*launch_, problem, sequences, shape.page, options);
      ASSERT_TRUE(other.ok());
      attend(c, *other);
      expect_same_bits(c.output(), want, c.shape,
                       name + ": bits in shared pieces of " + std::to_string(units) + " units");
    }
  }
  // NaN in K and V of the keys that every sequence which shares them hides.
  static void spoil(PagedCase& c, const std::vector<int32_t>& leftpad) {
    std::map<std::pair<int32_t, int>, bool> seen;  // (block, slot)
    for (size_t b = 0; b < c.shape.lengths.size(); ++b) {
      for (int j = 0; j < c.shape.lengths[b]; ++j) {
        const int32_t block = c.table[b * size_t(c.max_blocks) + size_t(j / c.shape.page)];
        seen[{block, j % c.shape.page}] |= j >= leftpad[b];
      }
    }
    for (DeviceBuffer* cache : {&c.k, &c.v}) {
      auto bits = PagedCase::download(*cache);
      for (const auto& [at, is_seen] : seen) {
        if (is_seen) continue;
        for (int h = 0; h < c.shape.kv_heads; ++h) {
          const auto from =
              size_t(at.first * c.strides.block + at.second * c.strides.slot + h * c.strides.head);
          std::fill_n(bits.begin() + int64_t(from), c.shape.head_dim, uint16_t{0xffff});
        }
      }
      cudaMemcpy(cache->data(), bits.data(), bits.size() * 2, cudaMemcpyHostToDevice);
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

// Blocks of the grid cannot start yet: nobody may wait for them in their place.
TEST_F(Tree, OtherKernelsMayHoldMultiprocessors) {
  PagedCase c(star(24, 1536, 700, 32, 8));
  auto plan = TreePlan::create(*launch_, problem(c), sequences_of(c), 64, {TreeSharing::always});
  ASSERT_TRUE(plan.ok());
  attend(c, *plan);
  c.check({}, "alone");
  const auto want = c.output();
  const int all = launch_->device.multiprocessors;
  for (const int held : {1, all / 3, all - 1}) {
    cuda_test::Hold hold(held);
    c.clear();
    cudaDeviceSynchronize();
    hold.begin();
    for (int i = 0; i < 3; ++i) {
      const Status status = plan->attend(*launch_, c.view(), {}, c.tensors());
      ASSERT_TRUE(status.ok()) << status.message();
    }
    hold.end_in(std::chrono::milliseconds(2));
    const Status done = launch_->stream.synchronize();
    ASSERT_TRUE(done.ok()) << done.message();
    expect_same_bits(c.output(), want, c.shape, std::to_string(held) + " multiprocessors held");
  }
}

TEST_F(Tree, NothingSharedIsDecode) {
  PagedCase c(star(8, 0, 900, 8, 8));
  auto plan = TreePlan::create(*launch_, problem(c), sequences_of(c), 64, {TreeSharing::always});
  ASSERT_TRUE(plan.ok());
  EXPECT_FALSE(plan->shares());
  attend(c, *plan);
  c.check({}, "nothing shared");
}

TEST_F(Tree, SoftCaps) {
  check(star(20, 1024, 300, 16, 4), "softcap 32:4", INT64_MAX, {.softcap = 2.0f});
  PagedShape s = star(9, 768, 100, 8, 8);
  s.head_dim = 64, s.dtype = DType::f16, s.q_scale = 4;
  check(s, "softcap MHA f16 d 64", INT64_MAX, {.softcap = 5.0f});
}

TEST_F(Tree, Slopes) {
  std::vector<float> slopes;
  for (int h = 0; h < 12; ++h) slopes.push_back(std::exp2(-float(h + 1)));
  PagedShape s = star(11, 1280, 0, 12, 4);
  for (size_t b = 0; b < s.lengths.size(); ++b)
    s.lengths[b] += int(b * 61);  // rows of a piece at different positions
  check(s, "ALiBi 12:4", INT64_MAX, {.slopes = slopes});
}

TEST_F(Tree, WindowsLeaveOutSharedRunsThatNoRowSees) {
  PagedShape s = star(16, 2048, 300, 16, 4);
  for (size_t b = 0; b < s.lengths.size(); ++b) s.lengths[b] += int(b * 37);
  check(s, "window that all of the run sees", INT64_MAX, {.window_left = 5000});
  check(s, "window that the run's end sees", 16 + 152, {.window_left = 1200});
  check(s, "window that some rows see of the run", INT64_MAX, {.window_left = 700});
  s.page = 16;
  for (auto& shared : s.shared_blocks) shared.second *= 4;
  check(s, "window, blocks of 16", INT64_MAX, {.window_left = 1111});
}

TEST_F(Tree, LeftPadding) {
  PagedShape s = star(10, 1024, 200, 8, 8);
  std::vector<int32_t> same(10, 70), different;
  for (int b = 0; b < 10; ++b) different.push_back(5 + 300 * (b % 5));
  check(s, "the same left padding", INT64_MAX, {.leftpad = same});
  check(s, "different left padding", INT64_MAX, {.leftpad = different});
  different[3] = 1224;  // sees nothing
  check(s, "a row that sees nothing", INT64_MAX, {.leftpad = different});
}

TEST_F(Tree, EverythingAtOnceOverARandomTree) {
  PagedShape s;
  s.heads = 16, s.kv_heads = 4, s.page = 16;
  std::mt19937 random(cuda_test::kSeed + 1);
  Features f{.window_left = 1500, .softcap = 3.0f};
  for (int b = 0; b < 40; ++b) {
    s.lengths.push_back(1 + int(random() % 3000));
    const int parent = b == 0 ? 0 : int(random() % uint32_t(b));
    const int most = std::min(s.lengths[size_t(parent)], s.lengths.back()) / 16;
    s.shared_blocks.push_back({parent, b == 0 || most == 0 ? 0 : int(random() % uint32_t(most + 1))});
    f.leftpad.push_back(int(random() % 400));
  }
  for (int h = 0; h < 16; ++h) f.slopes.push_back(0.01f * float(h));
  check(s, "random tree, all features", INT64_MAX, f);
}

TEST_F(Tree, HeadSizesThatAreNoKernels) {
  for (const int dim : {8, 40, 80, 96, 136, 192}) {
    PagedShape s = star(9, 1024, 130, 8, 2);
    s.head_dim = dim;
    check(s, "head_dim " + std::to_string(dim));
    s.page = 16, s.dtype = DType::f16;
    check(s, "head_dim " + std::to_string(dim) + " softcap f16", INT64_MAX, {.softcap = 4.0f});
  }
}

TEST_F(Tree, OfHeadDim256WithFeatures) {
  PagedShape s = star(12, 1024, 300, 8, 4);
  s.head_dim = 256;
  check(s, "d 256 window", INT64_MAX, {.window_left = 600});
  check(s, "d 256 softcap", INT64_MAX, {.softcap = 2.0f});
}

// Plans made when the sequences of `c` were other lengths.
std::vector<TreeSequence> planned(const PagedCase& c, const std::vector<int64_t>& keys) {
  std::vector<TreeSequence> sequences = sequences_of(c);
  for (size_t b = 0; b < keys.size(); ++b) sequences[b].keys = keys[b];
  return sequences;
}

TEST_F(Tree, WhatTheKernelAheadWritesLastIsTrue) {
  for (const TreeSharing sharing : {TreeSharing::always, TreeSharing::never}) {
    for (const int page : {64, 16}) {
      PagedShape s = star(16, 1024, 300, 32, 8);
      s.page = page;
      PagedCase c(s);
      auto plan = TreePlan::create(*launch_, problem(c), planned(c, std::vector<int64_t>(16, 1324 - 40)),
                                   page, {sharing});
      ASSERT_TRUE(plan.ok());
      attend(c, *plan);
      c.check({}, "before, page " + std::to_string(page));
      const std::vector<uint16_t> want = c.output();
      for (const int32_t stale : {1284, 1325, 1500, 0, -1}) {
        cuda_test::LateWriter writer(c, std::vector<int32_t>(16, stale));
        for (const auto& [of_lengths, of_blocks] : {std::pair{true, false}, {false, true}, {true, true}}) {
          c.clear();
          writer.launch(static_cast<cudaStream_t>(launch_->stream.handle()), of_lengths, of_blocks);
          const Status status = plan->attend(*launch_, c.view(), {}, c.tensors());
          ASSERT_TRUE(status.ok()) << status.message();
          const Status done = launch_->stream.synchronize();
          ASSERT_TRUE(done.ok()) << done.message();
          EXPECT_EQ(c.output(), want) << "page " << page << " stale " << stale << " blocks " << of_blocks;
        }
      }
    }
  }
}

TEST_F(Tree, ThePlanStaysValidWhileSequencesGrow) {
  PagedCase c(star(16, 1024, 300, 32, 8));
  auto plan = TreePlan::create(*launch_, problem(c), planned(c, std::vector<int64_t>(16, 1324 - 40)), 64,
                               {TreeSharing::always});
  ASSERT_TRUE(plan.ok());
  attend(c, *plan);
  c.check({}, "grown by 40");
  for (const int64_t reserve : {290, 5000}) {
    TreePlanOptions options{TreeSharing::always};
    options.reserve = reserve;
    auto grown =
        TreePlan::create(*launch_, problem(c), planned(c, std::vector<int64_t>(16, 1324 - 290)), 64, options);
    ASSERT_TRUE(grown.ok());
    attend(c, *grown);
    c.check({}, "grown by 290 of a reserve of " + std::to_string(reserve));
  }
}

TEST_F(Tree, SequencesOutsideThePlansLimitsAreNaNAndOthersAreRight) {
  PagedCase c(star(8, 1024, 300, 8, 4));
  auto now = TreePlan::create(*launch_, problem(c), sequences_of(c), 64, {TreeSharing::always});
  ASSERT_TRUE(now.ok());
  attend(c, *now);
  const auto want = c.output();
  const auto want_lse = c.output_lse();
  std::vector<int64_t> keys(8, 1324);
  keys[1] = keys[6] = 1280;  // its units end there
  auto before = TreePlan::create(*launch_, problem(c), planned(c, keys), 64, {TreeSharing::always});
  ASSERT_TRUE(before.ok());
  EXPECT_EQ(before->limits(1).most, 1280);
  attend(c, *before);
  const auto got = c.output();
  const auto got_lse = c.output_lse();
  const size_t of_sequence = size_t(8 * c.shape.head_dim);
  for (size_t b = 0; b < 8; ++b) {
    const bool outgrown = b == 1 || b == 6;
    size_t wrong = 0;
    for (size_t i = b * of_sequence; i < (b + 1) * of_sequence; ++i)
      wrong += outgrown ? (got[i] & 0x7fff) <= 0x7f80 : got[i] != want[i];
    EXPECT_EQ(wrong, 0u) << "sequence " << b << (outgrown ? " has numbers" : " differs");
    for (size_t h = 0; h < 8; ++h) {
      const float x = got_lse[b * 8 + h];
      EXPECT_TRUE(outgrown ? std::isnan(x) : x == want_lse[b * 8 + h])
          << "lse of sequence " << b << ": " << x;
    }
  }
  // And shorter than what they are planned to share.
  c.lengths_on_device = PagedCase::upload(std::vector<int32_t>(8, 1000));
  attend(c, *now);
  size_t numbers = 0;
  for (const uint16_t bits : c.output()) numbers += (bits & 0x7fff) <= 0x7f80;
  EXPECT_EQ(numbers, 0u);
}

TEST_F(Tree, WholeRowsOfAPlanFollowAnyLength) {
  // Enough sequences of their own that blocks walk them whole, beside a few that share.
  PagedShape s = star(4, 512, 100, 8, 8);
  for (int b = 0; b < 60; ++b) {
    s.lengths.push_back(700);
    s.shared_blocks.push_back({0, 0});
  }
  PagedCase c(s);
  std::vector<int64_t> keys(64, 612);
  for (size_t b = 4; b < 64; ++b) keys[b] = 200;
  auto plan = TreePlan::create(*launch_, problem(c), planned(c, keys), 64, {TreeSharing::always});
  ASSERT_TRUE(plan.ok());
  ASSERT_TRUE(plan->shares()) << plan->explain();
  int whole = 0;
  for (int64_t b = 4; b < 64; ++b) whole += plan->limits(b).most == INT32_MAX;
  EXPECT_GE(whole, 30);
  attend(c, *plan);
  auto now = TreePlan::create(*launch_, problem(c), sequences_of(c), 64, {TreeSharing::never});
  ASSERT_TRUE(now.ok());
  const auto got = c.output();
  attend(c, *now);
  const auto want = c.output();
  const size_t of_sequence = size_t(8 * s.head_dim);
  for (int64_t b = 0; b < 64; ++b) {
    if (plan->limits(b).most < s.lengths[size_t(b)]) continue;
    size_t differ = 0;
    for (size_t i = size_t(b) * of_sequence; i < size_t(b + 1) * of_sequence; ++i)
      differ += got[i] != want[i];
    EXPECT_EQ(differ, 0u) << "sequence " << b;
  }
}

}  // namespace
}  // namespace tessera::attention::cuda::sm90
