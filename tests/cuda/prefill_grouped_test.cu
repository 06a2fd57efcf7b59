// The Hopper forward with the heads of a group in one tile: the bits of each head's rows in tiles of their
// own.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <string>

#include "attention/cuda/sm90/prefill/launch.h"
#include "tests/cuda/support/guarded_buffer.h"
#include "tests/cuda/support/tensors.cuh"

namespace tessera::attention {
namespace {

using cuda::sm90::GroupTiles;
using cuda::sm90::PageTable;
using cuda::sm90::PrefillTuning;
using cuda::sm90::PrefillVariant;
using cuda_test::GuardedBuffer;

class PrefillGrouped : public ::testing::Test {
 protected:
  void SetUp() override {
    Result<tessera::cuda::Launch> launch = tessera::cuda::Launch::create(0);
    ASSERT_TRUE(launch.ok());
    if (launch->device.sm() != 90) GTEST_SKIP() << "needs sm_90, this is sm_" << launch->device.sm();
    launch_.emplace(std::move(launch).value());
  }
  std::optional<tessera::cuda::Launch> launch_;
};

struct Sizes {
  int64_t batch = 2, most_q = 130, keys = 333;
  int group = 4, kv_heads = 2, head_dim = 128;
  DType dtype = DType::bf16;
  int64_t page = 0;     // keys of a page; 0: contiguous
  bool packed = false;  // rows of all sequences in one tensor, lengths of every size
  int64_t gap = 0;
  std::string text() const {
    return "d " + std::to_string(head_dim) + " group " + std::to_string(group) + " kv heads " +
           std::to_string(kv_heads) + " keys " + std::to_string(keys) + " page " + std::to_string(page) +
           (packed ? " packed rows" : "") + (dtype == DType::f16 ? " f16" : " bf16") + " gap " +
           std::to_string(gap);
  }
};

// Random tensors with large keys and rows among them, so that maxima move; run as often as wanted.
class Inputs {
 public:
  explicit Inputs(const Sizes& s)
      : s_(s),
        q_(s.dtype, s.packed ? 1 : s.batch, rows(), s.group * s.kv_heads, s.head_dim, s.gap),
        k_(s.dtype, k_batches(), k_rows(), s.kv_heads, s.head_dim, s.gap),
        v_(s.dtype, k_batches(), k_rows(), s.kv_heads, s.head_dim, s.gap) {
    std::mt19937 random(77);
    q_.fill(random, 1.5f);
    for (DeviceTensor* tensor : {&k_, &v_}) tensor->fill(random);
    for (int64_t b = 0; b < k_batches(); ++b) {
      for (int64_t j = 3; j < k_rows(); j += 29) {
        for (int h = 0; h < s.kv_heads; ++h)
          for (int d = 0; d < s.head_dim; ++d) k_.set(b, j, h, d, 6.0f * k_.get(b, j, h, d));
      }
    }
    for (int64_t r = 2; r < rows(); r += 7) {
      for (int h = 0; h < s.group * s.kv_heads; h += 3)
        for (int d = 0; d < s.head_dim; ++d) q_.set(0, r, h, d, 4.0f * q_.get(0, r, h, d));
    }
    for (DeviceTensor* tensor : {&q_, &k_, &v_}) tensor->upload();
    if (s.packed) {
      for (int64_t b = 0; b < s.batch; ++b) cu_.push_back(cu_.back() + lengths(b));
      cu_on_device_ = upload(cu_);
    }
    if (s.page > 0) {
      std::vector<int32_t> table(static_cast<size_t>(s.batch * width())), used;
      std::iota(table.begin(), table.end(), 0);
      std::shuffle(table.begin(), table.end(), random);
      for (int64_t b = 0; b < s.batch; ++b) used.push_back(static_cast<int32_t>(s.keys - 37 * b));
      table_ = upload(table);
      used_ = upload(used);
    }
  }
  int64_t lengths(int64_t b) const { return b % 3 == 1 ? 0 : std::max<int64_t>(1, s_.most_q - 13 * b); }

  struct Result {
    std::vector<uint16_t> o;
    std::vector<float> lse;
  };
  // rows: query rows of every sequence, at most most_q (packed: the lengths of all).
  Result run(tessera::cuda::Launch& launch, int64_t seqlen_q, const Mask& mask, const PrefillTuning& tuning,
             const std::string& name) {
    const int heads = s_.group * s_.kv_heads;
    AttentionProblem p;
    p.batch = s_.batch;
    p.seqlen_q = seqlen_q;
    p.seqlen_k = s_.keys;
    p.heads = heads;
    p.kv_heads = s_.kv_heads;
    p.head_dim = p.v_head_dim = s_.head_dim;
    p.dtype = s_.dtype;
    p.scale = 1.0f / std::sqrt(static_cast<float>(s_.head_dim));
    p.mask = mask;
    PageTable pages;
    if (s_.packed) {
      p.cu_seqlens_q = cu_on_device_.as<int32_t>();
      p.total_q = cu_.back();
    }
    if (s_.page > 0) {
      pages = {table_.as<int32_t>(), width(), s_.page, s_.batch * width()};
      p.seqused_k = used_.as<int32_t>();
    }
    DeviceTensor o(s_.dtype, s_.packed ? 1 : s_.batch, rows(), heads, s_.head_dim, s_.gap);
    o.upload();
    const int64_t all = s_.packed ? cu_.back() : s_.batch * seqlen_q;
    const GuardedBuffer lse = upload(std::vector<float>(static_cast<size_t>(all * heads), 7.0f));
    const ForwardTensors t{q_.strided<const void*>(), k_.strided<const void*>(), v_.strided<const void*>(),
                           o.strided<void*>(), lse.as<float>()};
    const Status status = cuda::sm90::prefill(launch, p, t, pages, tuning);
    EXPECT_TRUE(status.ok()) << name << ": " << status.message();
    const Status done = launch.stream.synchronize();
    EXPECT_TRUE(done.ok()) << name << ": " << done.message();
    o.download();
    EXPECT_TRUE(o.guards_hold()) << name;
    Result result{o.bits(), std::vector<float>(static_cast<size_t>(all * heads))};
    lse.read(result.lse.data());
    SCOPED_TRACE(name);
    lse.check();
    return result;
  }

  // Apart and packed, on all multiprocessors and on few.
  void compare(tessera::cuda::Launch& launch, int64_t seqlen_q, const Mask& mask,
               PrefillVariant variant = PrefillVariant::automatic) {
    const std::string name = s_.text() + ", rows " + std::to_string(seqlen_q) +
                             (mask.causal ? " causal" : "") + " window " + std::to_string(mask.window_left) +
                             "," + std::to_string(mask.window_right) + " variant " +
                             std::to_string(static_cast<int>(variant));
    const Result want = run(launch, seqlen_q, mask, {variant, GroupTiles::apart}, name + " apart");
    const int most = launch.device.multiprocessors;
    for (const int multiprocessors : {most, 3}) {
      launch.device.multiprocessors = multiprocessors;
      const Result got = run(launch, seqlen_q, mask, {variant, GroupTiles::packed}, name + " packed");
      launch.device.multiprocessors = most;
      if (std::memcmp(got.lse.data(), want.lse.data(), got.lse.size() * 4) == 0 && got.o == want.o) continue;
      const int heads = s_.group * s_.kv_heads, pitch = s_.head_dim + static_cast<int>(s_.gap);
      size_t wrong = 0, first = 0, wrong_lse = 0, first_lse = 0;
      for (size_t i = 0; i < got.o.size(); ++i)
        if (got.o[i] != want.o[i] && wrong++ == 0) first = i - DeviceTensor::kGuard;
      for (size_t i = 0; i < got.lse.size(); ++i)
        if (std::memcmp(&got.lse[i], &want.lse[i], 4) != 0 && wrong_lse++ == 0) first_lse = i;
      const size_t row = first / static_cast<size_t>(pitch * heads);
      ADD_FAILURE() << name << " on " << multiprocessors << " multiprocessors: " << wrong
                    << " elements of o differ, first in tensor row " << row << " head "
                    << first / static_cast<size_t>(pitch) % static_cast<size_t>(heads) << " d "
                    << first % static_cast<size_t>(pitch) << ": bits " << got.o[first + DeviceTensor::kGuard]
                    << " want " << want.o[first + DeviceTensor::kGuard] << "; " << wrong_lse
                    << " of lse, first " << first_lse << ": " << got.lse[first_lse] << " want "
                    << want.lse[first_lse];
    }
  }

 private:
  int64_t rows() const {
    if (!s_.packed) return s_.most_q;
    int64_t sum = 0;
    for (int64_t b = 0; b < s_.batch; ++b) sum += lengths(b);
    return sum;
  }
  int64_t width() const { return (s_.keys + s_.page - 1) / s_.page + 1; }
  int64_t k_batches() const { return s_.page > 0 ? s_.batch * width() : s_.batch; }
  int64_t k_rows() const { return s_.page > 0 ? s_.page : s_.keys; }
  template <typename E>
  static GuardedBuffer upload(const std::vector<E>& values) {
    return {values.data(), values.size() * sizeof(E)};
  }

  Sizes s_;
  DeviceTensor q_, k_, v_;
  std::vector<int32_t> cu_{0};
  GuardedBuffer cu_on_device_, table_, used_;
};

Mask mask_of(bool causal, int64_t left = -1, int64_t right = -1) {
  Mask mask;
  mask.causal = causal;
  mask.window_left = left;
  mask.window_right = right;
  return mask;
}

const Mask kMasks[] = {mask_of(false), mask_of(true), mask_of(true, 70), mask_of(false, 30, 20)};

TEST_F(PrefillGrouped, RowsHaveTheBitsOfTilesOfOneHead) {
  for (const int head_dim : {64, 96, 128, 256}) {
    for (const int group : {2, 3, 4, 5, 7, 8, 16}) {
      // Of groups that leave rows idle each size has some.
      if (head_dim == 96 && group != 4 && group != 7) continue;
      if (head_dim != 128 && (group == 3 || group == 5)) continue;
      Inputs inputs({.group = group, .kv_heads = group > 4 ? 1 : 2, .head_dim = head_dim});
      for (const int64_t rows : {1, 5, 17, 33, 64, 100, 130}) {
        for (const Mask& mask : kMasks) {
          inputs.compare(*launch_, rows, mask);
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST_F(PrefillGrouped, EveryVariantDtypeAndGap) {
  for (const PrefillVariant variant : {PrefillVariant::d64_four_by_64, PrefillVariant::d64_three_by_128}) {
    Inputs inputs({.keys = 700, .group = 8, .kv_heads = 1, .head_dim = 64});
    for (const int64_t rows : {1, 33, 130}) {
      for (const Mask& mask : kMasks) {
        inputs.compare(*launch_, rows, mask, variant);
        if (HasFailure()) return;
      }
    }
  }
  for (const int head_dim : {40, 64, 96, 128, 160, 256}) {
    Inputs inputs({.group = 4, .head_dim = head_dim, .dtype = DType::f16, .gap = 8});
    for (const Mask& mask : kMasks) {
      inputs.compare(*launch_, 100, mask);
      if (HasFailure()) return;
    }
  }
  Inputs widest({.most_q = 5, .group = 64, .kv_heads = 1, .head_dim = 128});
  widest.compare(*launch_, 5, mask_of(true));
  Inputs idle({.most_q = 5, .group = 40, .kv_heads = 1, .head_dim = 256});
  idle.compare(*launch_, 5, mask_of(true));
}

TEST_F(PrefillGrouped, PagesAndPackedRows) {
  for (const int head_dim : {64, 128, 256}) {
    for (const int group : {2, 6, 8}) {
      for (const int64_t page : {0, 16, 64}) {
        for (const bool packed : {false, true}) {
          if (page == 0 && !packed) continue;
          Inputs inputs({.batch = 5,
                         .group = group,
                         .kv_heads = 1,
                         .head_dim = head_dim,
                         .page = page,
                         .packed = packed});
          for (const Mask& mask : kMasks) {
            inputs.compare(*launch_, packed ? 130 : 33, mask);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST_F(PrefillGrouped, GroupsThatAreNoneOrTooLargeAreRefusedWhenAskedFor) {
  AttentionProblem p;
  p.batch = p.seqlen_q = p.seqlen_k = 1;
  p.heads = 130;
  p.kv_heads = 2;
  p.head_dim = p.v_head_dim = 64;
  p.dtype = DType::bf16;
  p.scale = 1.0f;
  EXPECT_EQ(cuda::sm90::prefill(*launch_, p, {}, {}, {.groups = GroupTiles::packed}).field(), "kv_heads");
  p.kv_heads = p.heads;
  EXPECT_EQ(cuda::sm90::prefill(*launch_, p, {}, {}, {.groups = GroupTiles::packed}).field(), "kv_heads");
}

}  // namespace
}  // namespace tessera::attention
