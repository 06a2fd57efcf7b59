// The sm_80 forward without a GPU, as step_emulated_test.cc has the step kernels: over tensors with every
// feature of the contract, and prompts over caches, against float64.
#include "attention/cuda/sm80/prefill/forward.h"
#include "tests/attention/dense_fixture.h"
#include "tests/cuda/emulator/case.h"

namespace tessera::attention::cuda {
namespace {

using emulated::Case;
using emulated::kSeed;
using emulated::Shape;

class EmulatedForward : public ::testing::Test {
 protected:
  void check(DenseCase& c) {
    if (c.p.cu_seqlens_q != nullptr) {
      c.p.total_q = c.p.cu_seqlens_q[c.p.batch];
      c.p.total_k = c.p.cu_seqlens_k[c.p.batch];
    }
    c.fill();
    const Status status = sm80::forward(launch_, c.p, c.tensors());
    ASSERT_TRUE(status.ok()) << status.message();
    c.check();
  }
  // Over a cache, against float64.
  void check(const Shape& shape) {
    Case c(shape);
    const Status status = sm80::attend_prompt(launch_, c.problem(), c.view(), {}, c.tensors());
    ASSERT_TRUE(status.ok()) << status.message();
    c.check();
  }
  tessera::cuda::Launch launch_ = emulated::small_device();
};

TEST_F(EmulatedForward, EachFeatureOverTensors) {
  for (const Feature feature : kEveryFeature) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      SCOPED_TRACE(std::string(name(feature)) + " " + name(dtype));
      DenseCase c(dtype, 2, 37, 150, 2, 40, kSeed);
      c.add(feature);
      if (feature == Feature::gaps) c.gap = 8;  // strides of 16 bytes
      check(c);
      if (HasFailure()) return;
    }
  }
}

TEST_F(EmulatedForward, PlainTiles) {
  for (const int dim : {64, 128}) {
    for (const bool causal : {false, true}) {
      SCOPED_TRACE("dim " + std::to_string(dim) + " causal " + std::to_string(causal));
      DenseCase c(DType::bf16, 1, 150, 170, 1, dim, kSeed);
      c.p.mask.causal = causal;
      check(c);
    }
  }
}

// Rows that see nothing, one key, tile edges, and more keys than rows.
Shape prompt() {
  Shape s;
  s.heads = 2, s.kv_heads = 1, s.tokens = 70, s.causal = true, s.page = 16;
  s.lengths = {0, 1, 64, 70, 200};
  return s;
}

TEST_F(EmulatedForward, PromptsOverCachesOfEveryHeadSizeAndType) {
  launch_.device.minor = 0, launch_.device.shared_bytes = 163 * 1024;  // f32 of 192 columns takes 130 KB
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    for (const auto& [dim, v_dim] :
         {std::pair{64, 64}, std::pair{72, 72}, std::pair{128, 64}, std::pair{192, 128}}) {
      SCOPED_TRACE(std::to_string(dim) + "/" + std::to_string(v_dim) + " " + name(dtype));
      Shape s = prompt();
      s.dtype = dtype, s.head_dim = dim, s.v_head_dim = v_dim;
      check(s);
      if (HasFailure()) return;
    }
  }
}

TEST_F(EmulatedForward, PromptsOverBlocksOfAnySize) {
  for (const int page : {0, 1, 20, 64, 300}) {
    SCOPED_TRACE(page);
    Shape s = prompt();
    s.page = page;
    check(s);
  }
}

TEST_F(EmulatedForward, PromptsWithFeatures) {
  const std::pair<const char*, void (*)(Shape&)> features[] = {
      {"window", [](Shape& s) { s.window_left = 50; }},
      {"window_right", [](Shape& s) { s.causal = false, s.window_right = 9; }},
      {"softcap", [](Shape& s) { s.softcap = 2; }},
      {"alibi",
       [](Shape& s) {
         s.slopes = {0.5f, 0.125f};
       }},
      {"leftpad", [](Shape& s) {
         s.leftpad = {0, 1, 30, 70, 100};
       }}};
  for (const DType dtype : {DType::bf16, DType::f32}) {
    for (const auto& [name, add] : features) {
      SCOPED_TRACE(name);
      Shape s = prompt();
      s.dtype = dtype, s.head_dim = 64;
      add(s);
      check(s);
    }
  }
}

// Packed, another number of each sequence's last rows: what the rows have in a call of all.
TEST_F(EmulatedForward, PackedRowsHaveTheBitsOfThePrompt) {
  Case c(prompt());
  const Shape& s = c.s;
  ASSERT_TRUE(sm80::attend_prompt(launch_, c.problem(), c.view(), {}, c.tensors()).ok());
  const std::vector<unsigned char> all = c.o.copy();
  const std::vector<int32_t> counts = {70, 1, 0, 33, 69};
  std::vector<int32_t> cu = {0};
  for (const int32_t count : counts) cu.push_back(cu.back() + count);
  const size_t row_bytes = size_t(s.heads * s.head_dim) * 2;
  const auto first_of = [&](size_t b) {
    return ((b + 1) * size_t(s.tokens) - size_t(counts[b])) * row_bytes;
  };
  const std::vector<unsigned char> all_q = c.q.copy();
  CacheTensors tensors = c.tensors();
  auto* const q = static_cast<unsigned char*>(const_cast<void*>(tensors.q.data));
  for (size_t b = 0; b < counts.size(); ++b)
    std::memcpy(q + size_t(cu[b]) * row_bytes, all_q.data() + first_of(b), size_t(counts[b]) * row_bytes);
  AttentionProblem p = c.problem();
  p.cu_seqlens_q = cu.data();
  p.total_q = cu.back();
  const Status status = sm80::attend_prompt(launch_, p, c.view(), {}, tensors);
  ASSERT_TRUE(status.ok()) << status.message();
  const std::vector<unsigned char> got = c.o.copy();
  for (size_t b = 0; b < counts.size(); ++b) {
    EXPECT_EQ(std::memcmp(got.data() + size_t(cu[b]) * row_bytes, all.data() + first_of(b),
                          size_t(counts[b]) * row_bytes),
              0)
        << "sequence " << b;
  }
  for (size_t i = size_t(cu.back()) * row_bytes; i < got.size(); ++i)
    ASSERT_EQ(got[i], 0xff) << "written behind the packed rows, at byte " << i;
}

}  // namespace
}  // namespace tessera::attention::cuda
