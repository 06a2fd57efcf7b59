// The Hopper forward over packed sequences, unused keys, pages and chunks of a prompt: the bits of each
// sequence alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>

#include "attention/cuda/sm90/prefill/launch.h"
#include "tests/cuda/support/guarded_buffer.h"
#include "tests/cuda/support/tensors.cuh"

namespace tessera::attention {
namespace {

class PrefillRagged : public ::testing::Test {
 protected:
  void SetUp() override {
    Result<tessera::cuda::Launch> launch = tessera::cuda::Launch::create(0);
    ASSERT_TRUE(launch.ok());
    if (launch->device.sm() != 90) GTEST_SKIP() << "needs sm_90, this is sm_" << launch->device.sm();
    launch_.emplace(std::move(launch).value());
  }
  std::optional<tessera::cuda::Launch> launch_;
};

// Sequences of any length in packed tensors, with unused keys and in pages, against each one alone: the same
// bits, whatever lies in the rows between (NaN) and in the entries of tables that are not used.
struct Ragged {
  int head_dim = 128;
  bool causal = true;
  bool packed_q = false;  // cu_seqlens for queries (and keys, unless paged)
  bool seqused = false;
  int64_t page = 0;
  int64_t left = -1;
  DType dtype = DType::bf16;
  std::string text() const {
    return "d " + std::to_string(head_dim) + (causal ? " causal" : "") + (packed_q ? " packed" : "") +
           (seqused ? " seqused" : "") + " page " + std::to_string(page) + " left " + std::to_string(left);
  }
};

void check_ragged(tessera::cuda::Launch& launch, const Ragged& c) {
  using cuda_test::GuardedBuffer;
  constexpr int kHeads = 4, kKvHeads = 2;
  const std::vector<int> lengths_q = c.packed_q ? std::vector<int>{1, 300, 0, 64, 129, 777, 5}
                                                : std::vector<int>{150, 150, 150, 150, 150, 150, 150};
  const std::vector<int> lengths_k = {1, 300, 10, 1000, 129, 640, 0};
  const auto batch = static_cast<int64_t>(lengths_k.size());
  std::mt19937 random(7);
  std::vector<int32_t> cu_q{0}, cu_k{0}, used;
  int64_t most_q = 0, most_k = 0;
  for (size_t b = 0; b < lengths_k.size(); ++b) {
    const int spare = c.seqused ? 37 : 0;
    cu_q.push_back(cu_q.back() + lengths_q[b]);
    cu_k.push_back(cu_k.back() + lengths_k[b] + spare);
    used.push_back(lengths_k[b]);
    most_q = std::max<int64_t>(most_q, lengths_q[b]);
    most_k = std::max<int64_t>(most_k, lengths_k[b] + spare);
  }
  const bool packed_k = c.packed_q && c.page == 0;
  const int64_t page = c.page, width = page == 0 ? 0 : (most_k + page - 1) / page + 2;
  const int64_t pages = page == 0 ? 0 : batch * width;
  DeviceTensor q(c.dtype, c.packed_q ? 1 : batch, c.packed_q ? cu_q.back() : most_q, kHeads, c.head_dim);
  const int64_t k_batches = page != 0 ? pages : packed_k ? 1 : batch;
  const int64_t k_rows = page != 0 ? page : packed_k ? cu_k.back() : most_k;
  DeviceTensor k(c.dtype, k_batches, k_rows, kKvHeads, c.head_dim),
      v(c.dtype, k_batches, k_rows, kKvHeads, c.head_dim);
  DeviceTensor o(c.dtype, c.packed_q ? 1 : batch, c.packed_q ? cu_q.back() : most_q, kHeads, c.head_dim);
  std::vector<int32_t> table(static_cast<size_t>(batch * width), 1 << 30), ids(static_cast<size_t>(pages));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  std::shuffle(ids.begin(), ids.end(), random);
  q.fill(random, 2.0f);
  std::vector<DeviceTensor> alone_k, alone_v;
  std::normal_distribution<float> normal;
  size_t next = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const int keys = lengths_k[static_cast<size_t>(b)];
    alone_k.emplace_back(c.dtype, 1, std::max(keys, 1), kKvHeads, c.head_dim);
    alone_v.emplace_back(c.dtype, 1, std::max(keys, 1), kKvHeads, c.head_dim);
    for (int j = 0; j < keys; ++j) {
      int64_t at_batch = b, at_row = j;
      if (page != 0) {
        if (j % page == 0) table[static_cast<size_t>(b * width + j / page)] = ids[next++];
        at_batch = table[static_cast<size_t>(b * width + j / page)];
        at_row = j % page;
      } else if (packed_k) {
        at_batch = 0;
        at_row = cu_k[static_cast<size_t>(b)] + j;
      }
      for (int h = 0; h < kKvHeads; ++h) {
        for (int d = 0; d < c.head_dim; ++d) {
          const float x = normal(random), y = normal(random);
          k.set(at_batch, at_row, h, d, x);
          alone_k.back().set(0, j, h, d, x);
          v.set(at_batch, at_row, h, d, y);
          alone_v.back().set(0, j, h, d, y);
        }
      }
    }
  }
  q.upload();
  k.upload();
  v.upload();
  o.upload();
  const auto device = [&](const std::vector<int32_t>& values) {
    return GuardedBuffer(values.data(), values.size() * 4);
  };
  const GuardedBuffer d_cu_q = device(cu_q), d_cu_k = device(cu_k), d_used = device(used),
                      d_table = device(table);
  const int64_t rows = c.packed_q ? cu_q.back() : batch * most_q;
  const GuardedBuffer lse(static_cast<size_t>(rows * kHeads) * 4);
  AttentionProblem p;
  p.batch = batch;
  p.seqlen_q = most_q;
  p.seqlen_k = most_k;
  p.heads = kHeads;
  p.kv_heads = kKvHeads;
  p.head_dim = p.v_head_dim = c.head_dim;
  p.dtype = c.dtype;
  p.scale = 0.125f;
  p.mask.causal = c.causal;
  p.mask.window_left = c.left;
  if (c.packed_q) {
    p.cu_seqlens_q = d_cu_q.as<int32_t>();
    p.total_q = cu_q.back();
    p.cu_seqlens_k = d_cu_k.as<int32_t>();
    p.total_k = cu_k.back();
  }
  if (c.seqused || page != 0 || !c.packed_q) p.seqused_k = d_used.as<int32_t>();
  cuda::sm90::PageTable pages_of;
  if (page != 0) pages_of = {d_table.as<int32_t>(), width, page, pages};
  const ForwardTensors t{q.strided<const void*>(), k.strided<const void*>(), v.strided<const void*>(),
                         o.strided<void*>(), lse.as<float>()};
  const Status status = cuda::sm90::prefill(launch, p, t, pages_of);
  ASSERT_TRUE(status.ok()) << c.text() << ": " << status.message();
  ASSERT_TRUE(launch.stream.synchronize().ok()) << c.text();
  o.download();
  EXPECT_TRUE(o.guards_hold()) << c.text();
  std::vector<float> got_lse(static_cast<size_t>(rows * kHeads));
  cudaMemcpy(got_lse.data(), lse.data(), got_lse.size() * 4, cudaMemcpyDeviceToHost);
  for (int64_t b = 0; b < batch; ++b) {
    const int count = lengths_q[static_cast<size_t>(b)], keys = lengths_k[static_cast<size_t>(b)];
    const int64_t first = c.packed_q ? cu_q[static_cast<size_t>(b)] : 0, axis = c.packed_q ? 0 : b;
    if (count == 0) continue;
    std::vector<float> want_lse(static_cast<size_t>(count * kHeads), -INFINITY);
    DeviceTensor want(c.dtype, 1, count, kHeads, c.head_dim);
    if (keys > 0) {
      DeviceTensor alone_q(c.dtype, 1, count, kHeads, c.head_dim);
      for (int r = 0; r < count; ++r)
        for (int h = 0; h < kHeads; ++h)
          for (int d = 0; d < c.head_dim; ++d) alone_q.set(0, r, h, d, q.get(axis, first + r, h, d));
      alone_q.upload();
      alone_k[static_cast<size_t>(b)].upload();
      alone_v[static_cast<size_t>(b)].upload();
      want.upload();
      AttentionProblem one = p;
      one.batch = 1;
      one.seqlen_q = count;
      one.seqlen_k = keys;
      one.cu_seqlens_q = one.cu_seqlens_k = one.seqused_k = nullptr;
      one.total_q = one.total_k = 0;
      const ForwardTensors alone{
          alone_q.strided<const void*>(), alone_k[static_cast<size_t>(b)].strided<const void*>(),
          alone_v[static_cast<size_t>(b)].strided<const void*>(), want.strided<void*>(), lse.as<float>()};
      const Status done = cuda::sm90::prefill(launch, one, alone);
      ASSERT_TRUE(done.ok()) << done.message();
      ASSERT_TRUE(launch.stream.synchronize().ok());
      want.download();
      cudaMemcpy(want_lse.data(), lse.data(), want_lse.size() * 4, cudaMemcpyDeviceToHost);
    }
    int wrong = 0;
    for (int r = 0; r < count && wrong < 3; ++r) {
      for (int h = 0; h < kHeads; ++h) {
        const float lse_got = c.packed_q ? got_lse[static_cast<size_t>(h * rows + first + r)]
                                         : got_lse[static_cast<size_t>((b * kHeads + h) * most_q + r)];
        const float lse_want = want_lse[static_cast<size_t>(h * count + r)];
        bool same = std::memcmp(&lse_got, &lse_want, 4) == 0;
        for (int d = 0; d < c.head_dim; ++d) {
          const float expected = keys > 0 ? want.get(0, r, h, d) : 0.0f;
          same = same && o.get(axis, first + r, h, d) == expected;
        }
        if (!same && wrong++ < 3) {
          ADD_FAILURE() << c.text() << ": sequence " << b << " row " << r << " head " << h << " lse "
                        << lse_got << " want " << lse_want << " o " << o.get(axis, first + r, h, 0)
                        << " want " << want.get(0, r, h, 0);
        }
      }
    }
  }
}

TEST_F(PrefillRagged, PackedSequencesHaveTheBitsOfEachAlone) {
  for (const int d : {64, 96, 128, 256}) {
    for (const bool causal : {false, true}) {
      for (const int64_t left : {-1, 70}) {
        check_ragged(*launch_, {.head_dim = d, .causal = causal, .packed_q = true, .left = left});
        check_ragged(*launch_, {.head_dim = d,
                                .causal = causal,
                                .packed_q = true,
                                .seqused = true,
                                .left = left,
                                .dtype = DType::f16});
        check_ragged(*launch_, {.head_dim = d, .causal = causal, .seqused = true, .left = left});
      }
    }
  }
}
TEST_F(PrefillRagged, PagesHaveTheBitsOfContiguousKeys) {
  for (const int d : {64, 96, 128, 256}) {
    for (const int64_t page : {16, 48, 64, 128, 256}) {
      check_ragged(*launch_, {.head_dim = d, .causal = true, .packed_q = true, .page = page});
      check_ragged(*launch_, {.head_dim = d, .causal = false, .page = page});
      check_ragged(*launch_, {.head_dim = d, .causal = true, .page = page, .left = 70});
    }
  }
}
// A prompt in chunks: [first, end) of 700 causal rows over the keys [0, end), beside the whole. Rows whose
// bits differ.
int rows_unlike_the_whole(tessera::cuda::Launch& launch, int head_dim, int64_t first, int64_t end) {
  constexpr int64_t kRows = 700;
  constexpr int kHeads = 2;
  std::mt19937 random(3);
  DeviceTensor q(DType::bf16, 1, kRows, kHeads, head_dim), k(DType::bf16, 1, kRows, kHeads, head_dim),
      v(DType::bf16, 1, kRows, kHeads, head_dim), whole(DType::bf16, 1, kRows, kHeads, head_dim),
      chunk(DType::bf16, 1, end - first, kHeads, head_dim);
  q.fill(random, 2.0f);
  k.fill(random);
  v.fill(random);
  for (DeviceTensor* tensor : {&q, &k, &v, &whole, &chunk}) tensor->upload();
  AttentionProblem p;
  p.seqlen_q = p.seqlen_k = kRows;
  p.heads = p.kv_heads = kHeads;
  p.head_dim = p.v_head_dim = head_dim;
  p.dtype = DType::bf16;
  p.scale = 0.125f;
  ForwardTensors t{q.strided<const void*>(), k.strided<const void*>(), v.strided<const void*>(),
                   whole.strided<void*>()};
  EXPECT_TRUE(cuda::sm90::prefill(launch, p, t).ok());
  p.seqlen_q = end - first;
  p.seqlen_k = end;
  t.q.data = static_cast<const uint16_t*>(t.q.data) + first * t.q.row_stride;
  t.o = chunk.strided<void*>();
  EXPECT_TRUE(cuda::sm90::prefill(launch, p, t).ok());
  EXPECT_TRUE(launch.stream.synchronize().ok());
  whole.download();
  chunk.download();
  int unlike = 0;
  for (int64_t r = 0; r < end - first; ++r) {
    bool same = true;
    for (int h = 0; h < kHeads; ++h)
      for (int d = 0; d < head_dim; ++d)
        same = same && chunk.get(0, r, h, d) == whole.get(0, first + r, h, d);
    unlike += same ? 0 : 1;
  }
  return unlike;
}

TEST_F(PrefillRagged, ChunksThatBeginAtMultiplesOf64HaveTheBitsOfTheWhole) {
  for (const int d : {64, 96, 128}) {
    for (const auto& [first, end] :
         {std::pair<int64_t, int64_t>{0, 64}, {0, 300}, {64, 200}, {256, 384}, {320, 321}, {640, 700}}) {
      EXPECT_EQ(rows_unlike_the_whole(*launch_, d, first, end), 0)
          << "d " << d << " rows " << first << " to " << end;
    }
    // Others: said, not promised. A row's maximum is taken in the last block of its 64 rows.
    std::printf("d %d: rows 100 to 400 in a chunk, %d of 300 unlike the whole\n", d,
                rows_unlike_the_whole(*launch_, d, 100, 400));
  }
  std::printf("d 256: rows 256 to 384 in a chunk, %d of 128 unlike the whole\n",
              rows_unlike_the_whole(*launch_, 256, 256, 384));
}

}  // namespace
}  // namespace tessera::attention
