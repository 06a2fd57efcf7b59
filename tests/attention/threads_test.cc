// forward, backward and attend_cache on three threads, small enough for the thread sanitizer: every way of
// dividing work between them, and the bits of one thread.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "core/context.h"
#include "tessera/paged.h"

namespace tessera::attention {
namespace {

constexpr uint32_t kSeed = 7;
// Three segments of 512 keys, the last one cut short inside a tile.
constexpr int64_t kKeys = 1100;
constexpr int kDim = 16;

class ThreadsTest : public ::testing::TestWithParam<DType> {
 protected:
  using Bytes = std::vector<char>;

  void SetUp() override {
    std::printf("seed: %u\n", kSeed);
    p.seqlen_q = p.seqlen_k = kKeys;
    p.heads = 2;
    p.kv_heads = 1;
    p.head_dim = p.v_head_dim = kDim;
    p.dtype = GetParam();
    p.scale = 0.25f;
    p.mask.causal = true;
  }
  int64_t element() const { return p.dtype == DType::f32 ? 4 : 2; }
  Bytes filled(int64_t rows, int heads) {
    Bytes bytes(static_cast<size_t>(rows * heads * kDim * element()));
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < bytes.size(); i += static_cast<size_t>(element())) {
      const float value = normal(random);
      const uint16_t half = f32_to_bf16(value);
      std::memcpy(bytes.data() + i, p.dtype == DType::f32 ? static_cast<const void*>(&value) : &half,
                  static_cast<size_t>(element()));
    }
    return bytes;
  }
  Bytes empty(int64_t rows, int heads) const {
    return Bytes(static_cast<size_t>(rows * heads * kDim * element()));
  }
  static Strided<const void*> in(const Bytes& bytes, int64_t rows, int heads) {
    return contiguous<const void*>(bytes.data(), rows, heads, kDim);
  }
  static Strided<void*> out(Bytes& bytes, int64_t rows, int heads) {
    return contiguous<void*>(bytes.data(), rows, heads, kDim);
  }
  // fn(context) on one thread and, twice, on three: the workspaces of the first call are met again.
  template <typename F>
  void expect_same_bits(F&& fn) {
    Context one(pool_of_one), three(pool_of_three);
    const Bytes want = fn(one);
    for (int turn = 0; turn < 2; ++turn) EXPECT_TRUE(fn(three) == want) << "turn " << turn;
  }

  std::mt19937 random{kSeed};
  AttentionProblem p;
  ThreadPool pool_of_one{ThreadPoolOptions{.threads = 1}}, pool_of_three{ThreadPoolOptions{.threads = 3}};
};

TEST_P(ThreadsTest, ForwardAndBackward) {
  const Bytes q = filled(kKeys, 2), k = filled(kKeys, 1), v = filled(kKeys, 1), dout = filled(kKeys, 2);
  expect_same_bits([&](Context& context) {
    Bytes o = empty(kKeys, 2), dq = empty(kKeys, 2), dk = empty(kKeys, 1), dv = empty(kKeys, 1);
    std::vector<float> lse(size_t{kKeys} * 2);
    const ForwardTensors forward_tensors = {in(q, kKeys, 2), in(k, kKeys, 1), in(v, kKeys, 1),
                                            out(o, kKeys, 2), lse.data()};
    EXPECT_TRUE(forward(context, p, forward_tensors).ok());
    const BackwardTensors t = {in(q, kKeys, 2),   in(k, kKeys, 1),    in(v, kKeys, 1),
                               in(o, kKeys, 2),   in(dout, kKeys, 2), lse.data(),
                               out(dq, kKeys, 2), out(dk, kKeys, 1),  out(dv, kKeys, 1)};
    EXPECT_TRUE(backward(context, p, t).ok());
    for (const Bytes* more : {&dq, &dk, &dv}) o.insert(o.end(), more->begin(), more->end());
    return o;
  });
}

TEST_P(ThreadsTest, AttendCache) {
  // Two sequences in blocks of 16, one with three segments, whose one new key is appended first.
  constexpr int64_t kBlock = 16, kBlocks = (kKeys + 100) / kBlock;
  const int32_t old_keys[] = {kKeys - 40, 50};
  const Bytes q = filled(2, 2), k_new = filled(2, 1), v_new = filled(2, 1);
  const Bytes k_before = filled(kBlocks * kBlock, 1), v_before = filled(kBlocks * kBlock, 1);
  const int64_t per_sequence = kKeys / kBlock;
  std::vector<int32_t> table(static_cast<size_t>(2 * per_sequence));
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>((i * 37) % kBlocks);
  p.batch = 2;
  p.seqlen_q = 1;
  expect_same_bits([&](Context& context) {
    Bytes k = k_before, v = v_before, o = empty(2, 2);
    CacheView cache;
    cache.k = out(k, kBlock, 1);
    cache.v = out(v, kBlock, 1);
    cache.num_blocks = kBlocks;
    cache.block_size = kBlock;
    cache.block_table = table.data();
    cache.max_blocks = per_sequence;
    cache.seqlens = old_keys;
    CacheAppend append;
    append.seqlen = 1;
    append.k = in(k_new, 1, 1);
    append.v = in(v_new, 1, 1);
    const Status status = attend_cache(context, p, cache, append, {in(q, 1, 2), out(o, 1, 2)});
    EXPECT_TRUE(status.ok()) << status.message();
    for (const Bytes* more : {&k, &v}) o.insert(o.end(), more->begin(), more->end());
    return o;
  });
}

INSTANTIATE_TEST_SUITE_P(Dtypes, ThreadsTest, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& info) { return std::string(name(info.param)); });

}  // namespace
}  // namespace tessera::attention
