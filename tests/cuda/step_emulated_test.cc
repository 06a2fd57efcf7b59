// The sm_80 step kernels without a GPU: the library's own host code launches them on an emulator of warps,
// blocks and shared memory (tests/cuda/emulator), and every row is compared with float64. What is left to a
// device: bits of the tensor cores, and speed.
#include "attention/cuda/sm80/decode/decode.h"
#include "attention/cuda/tree/tree.h"
#include "tests/cuda/emulator/case.h"

namespace tessera::attention::cuda {
namespace {

using emulated::Case;
using emulated::Shape;
using steps::DecodeTuning;
using steps::TreePlan;
using steps::TreePlanOptions;
using steps::TreeSequence;
using steps::TreeSharing;

class EmulatedStep : public ::testing::Test {
 protected:
  // Against float64, and the same bits for every division of the work.
  void check(const Shape& shape, const std::vector<DecodeTuning>& tunings = {{3, true}, {2, false}}) {
    Case c(shape);
    std::vector<unsigned char> want;
    std::vector<float> want_lse;
    for (const DecodeTuning& tuning : tunings) {
      const Status status = sm80::decode(launch_, c.problem(), c.view(), {}, c.tensors(), tuning);
      ASSERT_TRUE(status.ok()) << status.message();
      if (want.empty()) {
        c.check();
        want = c.o.copy(), want_lse = c.lse;
      }
      ASSERT_EQ(c.o.copy(), want) << tuning.blocks << " blocks, split " << tuning.split;
      ASSERT_EQ(c.lse, want_lse);
    }
  }
  void check_tree(const Shape& shape) {
    Case c(shape);
    std::vector<TreeSequence> sequences;
    for (int b = 0; b < c.batch; ++b)
      sequences.push_back({c.table.data() + b * c.max_blocks, shape.lengths[size_t(b)]});
    std::vector<unsigned char> want;
    for (const auto& [sharing, units, rows] : {std::tuple{TreeSharing::never, 0, 0},
                                               {TreeSharing::always, 0, 0},
                                               {TreeSharing::always, 1, 0},
                                               {TreeSharing::always, 0, 8}}) {
      TreePlanOptions options;
      options.sharing = sharing, options.shared_units = units, options.most_rows = rows;
      auto plan = TreePlan::create(launch_, c.problem(), sequences, shape.page, options);
      ASSERT_TRUE(plan.ok()) << plan.status().message();
      ASSERT_EQ(plan->shares(), sharing == TreeSharing::always) << plan->explain();
      const Status status = plan->attend(launch_, c.view(), {}, c.tensors());
      ASSERT_TRUE(status.ok()) << status.message();
      if (want.empty()) {
        c.check();
        want = c.o.copy();
      }
      ASSERT_EQ(c.o.copy(), want) << "shared pieces of " << units << " units, at most " << rows << " rows";
    }
  }
  // Three groups of three sequences that share some blocks with each other, and some with all.
  static Shape tree_of_nine(int heads, int kv_heads) {
    Shape s;
    s.heads = heads, s.kv_heads = kv_heads;
    for (int b = 0; b < 9; ++b) {
      s.lengths.push_back(512 + 256 + 40 + 30 * b);
      const int leader = b / 3 * 3;
      s.shared_blocks.push_back(b == 0        ? std::pair{0, 0}
                                : b == leader ? std::pair{0, 512 / 64}
                                              : std::pair{leader, (512 + 256) / 64});
    }
    return s;
  }
  tessera::cuda::Launch launch_ = emulated::small_device();
};

TEST_F(EmulatedStep, RaggedLengthsAndAnEmptySequence) {
  Shape s;
  s.lengths = {1, 63, 0, 64, 65, 257, 600};
  check(s);
  s.heads = 8, s.dtype = DType::f16;
  check(s);
  s.dtype = DType::f32;
  check(s);
}

TEST_F(EmulatedStep, OfF32) {
  for (const int dim : {8, 64, 72, 128, 136, 256}) {
    for (const int group : {1, 12, 33}) {
      for (const int page : {64, 20}) {
        SCOPED_TRACE(std::to_string(dim) + " dims, group " + std::to_string(group) + ", page " +
                     std::to_string(page));
        Shape s;
        s.dtype = DType::f32, s.head_dim = dim, s.heads = group, s.kv_heads = 1, s.page = page;
        s.lengths = {5, 300};
        check(s);
        if (HasFailure()) return;
      }
    }
  }
  Shape s;
  s.dtype = DType::f32, s.lengths = {2300, 1, 0, 1500};
  check(s, {{5, true}, {16, true}, {1, false}});
  s.tf32_inputs = false;
  check(s);
}

TEST_F(EmulatedStep, EveryKernelsHeadDim) {
  for (const int dim : {8, 64, 72, 128, 136, 256}) {
    SCOPED_TRACE(dim);
    Shape s;
    s.head_dim = dim, s.lengths = {5, 300};
    check(s);
  }
}

TEST_F(EmulatedStep, GroupsOfOneToSeveralPieces) {
  for (const int dim : {64, 128, 256}) {
    for (const int group : {1, 8, 9, 32, 33}) {
      SCOPED_TRACE(std::to_string(dim) + " dims, group " + std::to_string(group));
      Shape s;
      s.head_dim = dim, s.heads = group, s.kv_heads = 1, s.lengths = {5, 300};
      check(s);
    }
  }
}

TEST_F(EmulatedStep, BlocksOfAnySize) {
  for (const int page : {0, 1, 7, 16, 20, 100, 256}) {
    for (const int group : {1, 12}) {
      SCOPED_TRACE("page " + std::to_string(page) + ", group " + std::to_string(group));
      Shape s;
      s.page = page, s.heads = 2 * group, s.lengths = {3, 65, 410};
      check(s);
    }
  }
}

TEST_F(EmulatedStep, SplitsOfFewItems) {
  const std::vector<DecodeTuning> tunings = {{5, true}, {16, true}, {1, false}, {7, true}};
  Shape s;
  s.lengths = {3000};
  check(s, tunings);
  s.lengths = {2300, 1, 0, 1500};
  check(s, tunings);
  s.heads = 12, s.kv_heads = 1;
  check(s, tunings);
}

struct Feature {
  const char* name;
  void (*add)(Shape&);
};
void slope(Shape& s) {
  s.slopes.clear();
  for (int h = 0; h < s.heads; ++h) s.slopes.push_back(std::exp2(-float(h + 3)));
}

TEST_F(EmulatedStep, EachFeatureAndEachPair) {
  const Feature features[] = {
      {"group 12", [](Shape& s) { s.heads = 12; }},
      {"causal, 3 tokens", [](Shape& s) { s.tokens = 3, s.causal = true; }},
      {"window_right 1, 4 tokens", [](Shape& s) { s.tokens = 4, s.window_right = 1; }},
      {"window_left 100", [](Shape& s) { s.window_left = 100; }},
      {"softcap", [](Shape& s) { s.softcap = 2; }},
      {"alibi", slope},
      {"leftpad", [](Shape& s) { s.leftpad = {1, 10, 299, 0, 65, 300}; }},
      {"head_dim 72", [](Shape& s) { s.head_dim = 72; }},
      {"v_head_dim 64", [](Shape& s) { s.v_head_dim = 64; }},
      {"v_head_dim 200", [](Shape& s) { s.v_head_dim = 200; }},
      {"page 20", [](Shape& s) { s.page = 20; }},
      {"f32", [](Shape& s) { s.dtype = DType::f32; }}};
  for (const Feature& first : features) {
    for (const Feature& second : features) {
      if (&second < &first) continue;
      SCOPED_TRACE(std::string(first.name) + " + " + second.name);
      Shape s;
      s.kv_heads = 1, s.lengths = {2, 64, 300, 0, 65, 400};
      first.add(s);
      second.add(s);
      check(s);
      if (HasFailure()) return;
    }
  }
}

TEST_F(EmulatedStep, TreesOfEveryKernel) {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    for (const int dim : {64, 128, 256}) {
      SCOPED_TRACE(dim);
      Shape s = tree_of_nine(4, 2);
      s.dtype = dtype, s.head_dim = dim;
      check_tree(s);
    }
  }
  check_tree(tree_of_nine(2, 2));
}

TEST_F(EmulatedStep, TreesWithFeatures) {
  const Feature features[] = {{"window_left", [](Shape& s) { s.window_left = 400; }},
                              {"softcap", [](Shape& s) { s.softcap = 2; }},
                              {"alibi", slope},
                              {"leftpad", [](Shape& s) { s.leftpad = {0, 5, 300, 70, 600, 0, 0, 1, 513}; }},
                              {"head_dim 72", [](Shape& s) { s.head_dim = 72; }},
                              {"v_head_dim 64", [](Shape& s) { s.v_head_dim = 64; }}};
  for (const Feature& feature : features) {
    SCOPED_TRACE(feature.name);
    Shape s = tree_of_nine(4, 2);
    feature.add(s);
    check_tree(s);
    s.dtype = DType::f32;
    check_tree(s);
  }
}

}  // namespace
}  // namespace tessera::attention::cuda
