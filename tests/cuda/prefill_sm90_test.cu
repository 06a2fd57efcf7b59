// The Hopper forward kernel against attention in double precision on the same rounded inputs.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
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

using cuda::sm90::PrefillVariant;

// One block a row of one head. o and lse in double; naive: the same with scores, probabilities and result
// rounded to T.
template <typename T>
__device__ double as_double(T x) {
  return static_cast<double>(static_cast<float>(x));
}
template <typename T, bool kNaive>
__global__ void oracle(AttentionProblem p, ForwardTensors t, double* o, double* lse) {
  extern __shared__ double scores[];
  const int row = blockIdx.x, head = blockIdx.y, batch = blockIdx.z;
  const int kv = head / (p.heads / p.kv_heads);
  const int position = row + static_cast<int>(p.seqlen_k - p.seqlen_q);
  int low = 0, high = static_cast<int>(p.seqlen_k) - 1;
  if (p.mask.causal) high = min(high, position);
  if (p.mask.window_right >= 0) high = min(high, position + static_cast<int>(p.mask.window_right));
  if (p.mask.window_left >= 0) low = max(low, position - static_cast<int>(p.mask.window_left));
  const T* q = static_cast<const T*>(t.q.data) + batch * t.q.batch_stride + row * t.q.row_stride +
               head * t.q.head_stride;
  for (int j = low + static_cast<int>(threadIdx.x); j <= high; j += blockDim.x) {
    const T* k = static_cast<const T*>(t.k.data) + batch * t.k.batch_stride + j * t.k.row_stride +
                 kv * t.k.head_stride;
    double sum = 0;
    for (int d = 0; d < p.head_dim; ++d) sum += as_double(q[d]) * as_double(k[d]);
    if (kNaive) sum = as_double(T(static_cast<float>(sum)));
    scores[j] = sum * static_cast<double>(p.scale);
  }
  __syncthreads();
  double most = -INFINITY, sum = 0;
  for (int j = low; j <= high; ++j) most = fmax(most, scores[j]);
  for (int j = low; j <= high; ++j) sum += exp(scores[j] - most);
  const int64_t at = ((int64_t{batch} * p.heads + head) * p.seqlen_q + row);
  if (threadIdx.x == 0 && lse != nullptr) lse[at] = low > high ? -INFINITY : most + log(sum);
  for (int d = threadIdx.x; d < p.v_head_dim; d += blockDim.x) {
    double value = 0;
    for (int j = low; j <= high; ++j) {
      double weight = exp(scores[j] - most) / sum;
      if (kNaive) weight = as_double(T(static_cast<float>(weight)));
      value += weight * as_double((static_cast<const T*>(t.v.data) + batch * t.v.batch_stride +
                                   j * t.v.row_stride + kv * t.v.head_stride)[d]);
    }
    if (kNaive) value = as_double(T(static_cast<float>(value)));
    o[at * p.v_head_dim + d] = value;
  }
}

struct Case {
  int64_t batch, seqlen_q, seqlen_k;
  int heads, kv_heads, head_dim;
  bool causal = false;
  int64_t left = -1, right = -1;
  DType dtype = DType::bf16;
  float q_scale = 1.0f;
  bool spikes = false;
  int64_t gap = 0;
  PrefillVariant variant = PrefillVariant::automatic;

  std::string text() const {
    return "batch " + std::to_string(batch) + " q " + std::to_string(seqlen_q) + " k " +
           std::to_string(seqlen_k) + " heads " + std::to_string(heads) + "/" + std::to_string(kv_heads) +
           " d " + std::to_string(head_dim) + (causal ? " causal" : "") + " window " + std::to_string(left) +
           "," + std::to_string(right) + (dtype == DType::f16 ? " f16" : " bf16") + " scale " +
           std::to_string(q_scale) + (spikes ? " spikes" : "") + " gap " + std::to_string(gap) + " variant " +
           std::to_string(static_cast<int>(variant));
  }
};

class Attempt {
 public:
  explicit Attempt(const Case& c)
      : c_(c),
        q_(c.dtype, c.batch, c.seqlen_q, c.heads, c.head_dim, c.gap),
        k_(c.dtype, c.batch, c.seqlen_k, c.kv_heads, c.head_dim, c.gap),
        v_(c.dtype, c.batch, c.seqlen_k, c.kv_heads, c.head_dim, c.gap),
        o_(c.dtype, c.batch, c.seqlen_q, c.heads, c.head_dim, c.gap) {
    std::mt19937 random(1234);
    q_.fill(random, c.q_scale);
    k_.fill(random);
    v_.fill(random);
    if (c.spikes) spike();
    q_.upload();
    k_.upload();
    v_.upload();
    rows_ = c.batch * c.heads * c.seqlen_q;
    lse_ = cuda_test::GuardedBuffer(static_cast<size_t>(rows_) * 4);
    problem_.batch = c.batch;
    problem_.seqlen_q = c.seqlen_q;
    problem_.seqlen_k = c.seqlen_k;
    problem_.heads = c.heads;
    problem_.kv_heads = c.kv_heads;
    problem_.head_dim = problem_.v_head_dim = c.head_dim;
    problem_.dtype = c.dtype;
    problem_.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    problem_.mask.causal = c.causal;
    problem_.mask.window_left = c.left;
    problem_.mask.window_right = c.right;
    tensors_ = {q_.strided<const void*>(), k_.strided<const void*>(), v_.strided<const void*>(),
                o_.strided<void*>(), lse_.as<float>()};
  }

  // A few keys and rows so large that the maximum seen first is far too small (and K is read again after the
  // exponentials).
  void spike() {
    for (int64_t b = 0; b < c_.batch; ++b) {
      for (int h = 0; h < c_.kv_heads; ++h) {
        for (int64_t j = 5; j < c_.seqlen_k; j += 97) {
          for (int d = 0; d < c_.head_dim; ++d)
            k_.set(b, j, h, d, k_.get(b, j, h, d) * (j % 2 != 0 ? 8.0f : 15.0f));
        }
      }
      for (int h = 0; h < c_.heads; ++h) {
        for (int64_t r = 3; r < c_.seqlen_q; r += 11) {
          for (int d = 0; d < c_.head_dim; ++d) q_.set(b, r, h, d, q_.get(b, r, h, d) * 4.0f);
        }
      }
    }
  }

  Status forward(tessera::cuda::Launch& launch) {
    cudaMemset(lse_.data(), 0xff, lse_.size());  // o_.upload() waits for it
    o_ = DeviceTensor(c_.dtype, c_.batch, c_.seqlen_q, c_.heads, c_.head_dim, c_.gap);
    o_.upload();
    tensors_.o = o_.strided<void*>();
    TESSERA_RETURN_IF_ERROR(cuda::sm90::prefill(launch, problem_, tensors_, {}, {c_.variant}));
    TESSERA_RETURN_IF_ERROR(launch.stream.synchronize());
    o_.download();
    got_lse_.resize(static_cast<size_t>(rows_));
    cudaMemcpy(got_lse_.data(), lse_.data(), lse_.size(), cudaMemcpyDeviceToHost);
    return {};
  }

  void check() {
    const auto count = static_cast<size_t>(rows_ * c_.head_dim);
    std::vector<double> o(count), naive(count), lse(static_cast<size_t>(rows_));
    tessera::cuda::DeviceBuffer out = tessera::cuda::DeviceBuffer::create(count * 8, "oracle").value();
    tessera::cuda::DeviceBuffer out_lse =
        tessera::cuda::DeviceBuffer::create(static_cast<size_t>(rows_) * 8, "oracle").value();
    const dim3 grid(static_cast<unsigned>(c_.seqlen_q), static_cast<unsigned>(c_.heads),
                    static_cast<unsigned>(c_.batch));
    const size_t shared = static_cast<size_t>(c_.seqlen_k) * 8;
    const auto launch_oracle = [&](auto kernel, std::vector<double>& to, double* lse_out) {
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 200 * 1024);
      kernel<<<grid, 128, shared>>>(problem_, tensors_, out.as<double>(), lse_out);
      ASSERT_EQ(cudaMemcpy(to.data(), out.data(), count * 8, cudaMemcpyDeviceToHost), cudaSuccess);
    };
    if (c_.dtype == DType::f16) {
      launch_oracle(oracle<__half, false>, o, out_lse.as<double>());
      launch_oracle(oracle<__half, true>, naive, nullptr);
    } else {
      launch_oracle(oracle<__nv_bfloat16, false>, o, out_lse.as<double>());
      launch_oracle(oracle<__nv_bfloat16, true>, naive, nullptr);
    }
    cudaMemcpy(lse.data(), out_lse.data(), lse.size() * 8, cudaMemcpyDeviceToHost);
    double worst = 0, worst_naive = 0, total = 0, total_naive = 0, worst_lse = 0, atol = 0;
    std::string where;
    for (int64_t b = 0; b < c_.batch; ++b) {
      for (int64_t r = 0; r < c_.seqlen_q; ++r) {
        for (int h = 0; h < c_.heads; ++h) {
          const int64_t row = (b * c_.heads + h) * c_.seqlen_q + r;
          const bool empty = std::isinf(lse[static_cast<size_t>(row)]);
          const float got_lse = got_lse_[static_cast<size_t>(row)];
          const double lse_error = empty ? (std::isinf(got_lse) && got_lse < 0 ? 0.0 : 1e9)
                                         : std::abs(got_lse - lse[static_cast<size_t>(row)]) /
                                               std::max(1.0, std::abs(lse[static_cast<size_t>(row)]));
          if (!(lse_error <= worst_lse)) worst_lse = lse_error;
          for (int d = 0; d < c_.head_dim; ++d) {
            const auto at = static_cast<size_t>(row * c_.head_dim + d);
            const double want = empty ? 0.0 : o[at];
            const double error = std::abs(static_cast<double>(o_.get(b, r, h, d)) - want);
            if (!(error <= worst)) {
              worst = error;
              where = "batch " + std::to_string(b) + " row " + std::to_string(r) + " head " +
                      std::to_string(h) + " d " + std::to_string(d) + " want " + std::to_string(want) +
                      " got " + std::to_string(o_.get(b, r, h, d));
            }
            total += error;
            const double other = empty ? 0.0 : std::abs(naive[at] - want);
            worst_naive = std::max(worst_naive, other);
            total_naive += other;
            atol =
                std::max(atol, std::abs(static_cast<double>(static_cast<float>(want) + 0.3f - 0.3f) - want));
          }
        }
      }
    }
    EXPECT_TRUE(worst <= 2 * worst_naive + 2 * atol)
        << c_.text() << ": error " << worst << ", naive " << worst_naive << " at " << where;
    EXPECT_TRUE(total <= 1.5 * total_naive + 1e-12)
        << c_.text() << ": mean error ratio " << total / total_naive;
    EXPECT_TRUE(worst_lse <= 1e-5) << c_.text() << ": lse " << worst_lse;
    EXPECT_TRUE(o_.guards_hold()) << c_.text();
    SCOPED_TRACE(c_.text());
    lse_.check();
  }
  const std::vector<uint16_t>& bits() const { return o_.bits(); }
  const std::vector<float>& lse() const { return got_lse_; }

 private:
  Case c_;
  DeviceTensor q_, k_, v_, o_;
  cuda_test::GuardedBuffer lse_;
  int64_t rows_ = 0;
  AttentionProblem problem_;
  ForwardTensors tensors_;
  std::vector<float> got_lse_;
};

class PrefillSm90 : public ::testing::Test {
 protected:
  void SetUp() override {
    Result<tessera::cuda::Launch> launch = tessera::cuda::Launch::create(0);
    ASSERT_TRUE(launch.ok());
    if (launch->device.major != 9) GTEST_SKIP() << "needs sm_90, this is sm_" << launch->device.sm();
    launch_.emplace(std::move(launch).value());
  }
  void check(const Case& c) {
    Attempt run(c);
    const Status status = run.forward(*launch_);
    ASSERT_TRUE(status.ok()) << c.text() << ": " << status.message();
    run.check();
  }
  std::optional<tessera::cuda::Launch> launch_;
};

TEST_F(PrefillSm90, FullAttentionOfEveryLength) {
  for (const int d : {64, 128}) {
    for (const int64_t s : {1, 2, 63, 64, 65, 127, 128, 129, 511, 512, 1000, 1024, 2049})
      check({2, s, s, 2, 2, d});
  }
}
TEST_F(PrefillSm90, CausalOfEveryLength) {
  for (const int d : {64, 128}) {
    for (const int64_t s : {1, 2, 63, 64, 65, 127, 128, 129, 511, 512, 1000, 1024, 2049})
      check({2, s, s, 2, 2, d, true});
  }
}
TEST_F(PrefillSm90, RowsAndKeysOfDifferentNumbers) {
  for (const int d : {64, 128}) {
    for (const bool causal : {false, true}) {
      for (const auto& [q, k] : {std::pair<int64_t, int64_t>{1, 1000},
                                 {100, 333},
                                 {333, 100},
                                 {513, 1},
                                 {64, 2048},
                                 {300, 299},
                                 {700, 65}}) {
        check({2, q, k, 2, 1, d, causal});
      }
    }
  }
}
TEST_F(PrefillSm90, Windows) {
  for (const int d : {64, 128}) {
    for (const auto& [left, right] :
         {std::pair<int64_t, int64_t>{0, 0}, {1, 1}, {63, 64}, {127, 0}, {128, 129}, {-1, 5}, {300, -1}}) {
      check({1, 777, 777, 2, 2, d, false, left, right});
      check({1, 300, 777, 2, 2, d, true, left, -1});
      check({1, 777, 300, 2, 2, d, false, left, right});
    }
  }
}
TEST_F(PrefillSm90, EveryVariantTakesEveryProblem) {
  for (const auto& [variant, d] : {std::pair{PrefillVariant::d64_four_by_64, 64},
                                   {PrefillVariant::d64_three_by_128, 64},
                                   {PrefillVariant::d256_two_by_80, 256},
                                   {PrefillVariant::d256_two_by_80, 200},
                                   {PrefillVariant::d256_two_by_64_registers, 200},
                                   {PrefillVariant::d256_two_by_64_registers, 256}}) {
    for (const bool causal : {false, true}) {
      check({.batch = 2,
             .seqlen_q = 900,
             .seqlen_k = 900,
             .heads = 3,
             .kv_heads = 3,
             .head_dim = d,
             .causal = causal,
             .spikes = d > 64,
             .gap = d == 200 ? 8 : 0,
             .variant = variant});
      check({.batch = 1,
             .seqlen_q = 257,
             .seqlen_k = 700,
             .heads = 4,
             .kv_heads = 1,
             .head_dim = d,
             .causal = causal,
             .left = 100,
             .variant = variant});
    }
  }
}
// While a tile's output is written from registers the next tile's Q comes: the bits are the same on however
// few blocks, over and over.
TEST_F(PrefillSm90, OutputFromRegistersHasTheSameBitsOnEveryGrid) {
  const int all = launch_->device.multiprocessors;
  for (const bool causal : {false, true}) {
    for (const int64_t s : {33, 80, 300, 1025}) {
      Case c{.batch = 3,
             .seqlen_q = s,
             .seqlen_k = s,
             .heads = 8,
             .kv_heads = 2,
             .head_dim = 256,
             .causal = causal,
             .variant = PrefillVariant::d256_two_by_64_registers};
      Attempt first(c);
      ASSERT_TRUE(first.forward(*launch_).ok());
      Attempt registers(c);
      for (const int blocks : {all, 13, 1}) {
        for (int repeat = 0; repeat < 5; ++repeat) {
          launch_->device.multiprocessors = blocks;
          ASSERT_TRUE(registers.forward(*launch_).ok());
          launch_->device.multiprocessors = all;
          ASSERT_TRUE(registers.bits() == first.bits()) << c.text() << " on " << blocks << " blocks";
          const auto lse = registers.lse(), want = first.lse();
          ASSERT_EQ(lse.size(), want.size());
          for (size_t i = 0; i < want.size(); ++i) {  // as bits: what no row owns is NaN in both
            ASSERT_EQ(std::memcmp(&lse[i], &want[i], sizeof want[i]), 0)
                << c.text() << " on " << blocks << " blocks: lse " << i << " is " << lse[i] << ", not "
                << want[i];
          }
        }
      }
    }
  }
}
TEST_F(PrefillSm90, GroupsOfHeadsInBothHalves) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const int d : {64, 128}) {
      for (const int heads : {2, 6, 16})
        check({.batch = 2,
               .seqlen_q = 300,
               .seqlen_k = 300,
               .heads = heads,
               .kv_heads = 2,
               .head_dim = d,
               .causal = true,
               .dtype = dtype,
               .gap = 8});
    }
  }
}
// Rows whose first maximum is far too small take the slow path, in every block.
TEST_F(PrefillSm90, SpikesAndLargeScores) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const int d : {64, 128}) {
      for (const bool causal : {false, true}) {
        check({.batch = 2,
               .seqlen_q = 777,
               .seqlen_k = 1025,
               .heads = 2,
               .kv_heads = 2,
               .head_dim = d,
               .causal = causal,
               .dtype = dtype,
               .spikes = true});
        check({.batch = 1,
               .seqlen_q = 600,
               .seqlen_k = 600,
               .heads = 2,
               .kv_heads = 2,
               .head_dim = d,
               .causal = causal,
               .dtype = dtype,
               .q_scale = 50.0f});
      }
    }
  }
}
TEST_F(PrefillSm90, EveryHeadSizeUpTo256) {
  for (const int d : {8, 16, 32, 40, 64, 72, 80, 96, 104, 112, 128, 136, 160, 192, 224, 256}) {
    check({.batch = 2,
           .seqlen_q = 333,
           .seqlen_k = 333,
           .heads = 4,
           .kv_heads = 2,
           .head_dim = d,
           .causal = true,
           .gap = d % 16 == 0 ? 8 : 0});
    check({.batch = 1,
           .seqlen_q = 200,
           .seqlen_k = 700,
           .heads = 2,
           .kv_heads = 2,
           .head_dim = d,
           .left = 100,
           .right = 50,
           .spikes = true});
    check({.batch = 1,
           .seqlen_q = 512,
           .seqlen_k = 512,
           .heads = 2,
           .kv_heads = 2,
           .head_dim = d,
           .dtype = DType::f16,
           .spikes = true});
  }
}

TEST_F(PrefillSm90, WhatItDoesNotTakeIsNamed) {
  AttentionProblem p;
  p.batch = p.seqlen_q = p.seqlen_k = p.heads = p.kv_heads = 1;
  p.head_dim = p.v_head_dim = 64;
  p.scale = 1.0f;
  EXPECT_EQ(cuda::sm90::prefill_supports(p).field(), "dtype");
  p.dtype = DType::bf16;
  EXPECT_TRUE(cuda::sm90::prefill_supports(p).ok());
  p.softcap = 3.0f;
  EXPECT_TRUE(cuda::sm90::prefill_supports(p).ok());
  p.head_dim = 192;
  EXPECT_TRUE(cuda::sm90::prefill_supports(p).ok());
  const auto* table = reinterpret_cast<const int32_t*>(16);
  p.seqlen_k = 30;
  EXPECT_TRUE(cuda::sm90::prefill_supports(p, {table, 2, 24, 1}).ok());
  EXPECT_EQ(cuda::sm90::prefill_supports(p, {table, 2, 20, 1}).field(), "block_size");
  EXPECT_TRUE(cuda::sm90::prefill_supports(p, {table, 1, 30, 1}).ok());  // one page holds all keys
  p.mask.tensor.kind = MaskKind::boolean;
  EXPECT_TRUE(cuda::sm90::prefill_supports(p).ok());
  EXPECT_EQ(cuda::sm90::prefill_supports(p, {table, 2, 24, 1}).field(), "mask");
}

// On few multiprocessors a block walks many tiles, short ones among them, and its warps have time to drift
// apart: races that two tiles a block never show.
TEST_F(PrefillSm90, TheSameBitsTwoHundredTimesAndOnAnyNumberOfBlocks) {
  const int all = launch_->device.multiprocessors;
  for (const int d : {64, 128, 256}) {
    for (const bool causal : {false, true}) {
      for (const bool spikes : {false, true}) {
        const Case c{.batch = 2,
                     .seqlen_q = 1025,
                     .seqlen_k = 1025,
                     .heads = 8,
                     .kv_heads = 8,
                     .head_dim = d,
                     .causal = causal,
                     .spikes = spikes};
        Attempt run(c);
        ASSERT_TRUE(run.forward(*launch_).ok());
        const std::vector<uint16_t> bits = run.bits();
        const std::vector<float> lse = run.lse();
        const std::pair<int, int> repeats[] = {{all, causal && spikes && d == 128 ? 200 : 20},
                                               {all - 1, 10},
                                               {64, 20},
                                               {13, 20},
                                               {7, 20},
                                               {1, 5}};
        for (const auto& [blocks, times] : repeats) {
          for (int repeat = 0; repeat < times; ++repeat) {
            launch_->device.multiprocessors = blocks;
            ASSERT_TRUE(run.forward(*launch_).ok());
            ASSERT_TRUE(run.bits() == bits) << c.text() << " on " << blocks << " blocks, repeat " << repeat;
            ASSERT_EQ(std::memcmp(run.lse().data(), lse.data(), lse.size() * 4), 0)
                << c.text() << " on " << blocks << " blocks, repeat " << repeat;
          }
        }
        launch_->device.multiprocessors = all;
      }
    }
  }
}

}  // namespace
}  // namespace tessera::attention
