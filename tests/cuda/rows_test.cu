// Rotary embedding and joined parts on the device are the CPU's, bit for bit.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "core/cuda/device.h"
#include "tessera/cuda.h"
#include "tessera/merge.h"
#include "tessera/rope.h"
#include "tests/cuda/support/guarded_buffer.h"

namespace tessera::attention {
namespace {

// Elements between heads, of NaN: neither read nor written.
constexpr int64_t kGap = 8;

// Bytes of the host and their guarded copy on the device.
struct Mirror {
  std::vector<char> host;
  cuda_test::GuardedBuffer device;
  explicit Mirror(std::vector<char> bytes) : host(std::move(bytes)), device(host.data(), host.size()) {}
  template <typename T>
  static Mirror of(const std::vector<T>& values) {
    const auto* bytes = reinterpret_cast<const char*>(values.data());
    return Mirror(std::vector<char>(bytes, bytes + values.size() * sizeof(T)));
  }
  void fetch_and_compare(const CudaContext& context, const char* what) const {
    ASSERT_TRUE(context.synchronize().ok());
    std::vector<char> back(host.size());
    device.read(back.data());
    size_t first = 0;
    while (first < back.size() && back[first] == host[first]) ++first;
    EXPECT_EQ(first, back.size()) << what << " differs from byte " << first << " of " << back.size();
  }
};

// [heads][dim + kGap] of normal values of the dtype.
Mirror values(int64_t heads, int64_t dim, DType dtype, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  const int64_t count = heads * (dim + kGap);
  std::vector<char> bytes(static_cast<size_t>(count * info(dtype).block_bytes), static_cast<char>(0xff));
  for (int64_t i = 0; i < count; ++i) {
    if (i % (dim + kGap) >= dim) continue;
    const float value = normal(generator);
    const uint16_t half = dtype == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
    if (dtype == DType::f32) {
      std::memcpy(bytes.data() + i * 4, &value, 4);
    } else {
      std::memcpy(bytes.data() + i * 2, &half, 2);
    }
  }
  return Mirror(std::move(bytes));
}

class RowsTest : public ::testing::TestWithParam<DType> {
 protected:
  CpuContext cpu_ = CpuContext::create({.threads = 1}).value();
  CudaContext gpu_ = CudaContext::create().value();
};

TEST_P(RowsTest, RotaryIsTheCpus) {
  constexpr int64_t kBatch = 2, kRows = 37, kHeads = 3, kDim = 80;
  for (const RopeStyle style : {RopeStyle::half, RopeStyle::interleaved}) {
    for (const bool backward : {false, true}) {
      for (const bool packed : {false, true}) {
        RopeConfig config;
        config.rotary_dim = 64;
        config.style = style;
        const RopeTable table = RopeTable::create(config, 100).value();
        const int64_t half = 32;
        const Mirror cos = Mirror::of(std::vector<float>(table.cos(), table.cos() + 100 * half));
        const Mirror sin = Mirror::of(std::vector<float>(table.sin(), table.sin() + 100 * half));
        const Mirror offsets = Mirror::of(std::vector<int32_t>{5, 60});
        const Mirror cu = Mirror::of(std::vector<int32_t>{0, 10, static_cast<int32_t>(kBatch * kRows)});
        const Mirror x = values(kBatch * kRows * kHeads, kDim, GetParam(), 3);
        Mirror out = values(kBatch * kRows * kHeads, kDim, GetParam(), 4);
        RopeProblem p;
        p.batch = kBatch;
        p.seqlen = kRows;
        p.heads = kHeads;
        p.head_dim = kDim;
        p.dtype = GetParam();
        p.rotary = rotary(table);
        const auto run = [&](Context& context, bool device) {
          const auto side = [&](const Mirror& m) -> const void* {
            return device ? m.device.data() : m.host.data();
          };
          RopeProblem q = p;
          q.rotary.cos = side(cos);
          q.rotary.sin = side(sin);
          if (packed) {
            q.cu_seqlens = static_cast<const int32_t*>(side(cu));
            q.total = kBatch * kRows;
          } else {
            q.offsets = static_cast<const int32_t*>(side(offsets));
          }
          const auto from = contiguous<const void*>(side(x), kRows, kHeads, kDim + kGap);
          const auto to = contiguous<void*>(const_cast<void*>(side(out)), kRows, kHeads, kDim + kGap);
          const Status status =
              backward ? rope_backward(context, q, from, to) : rope_forward(context, q, from, to);
          ASSERT_TRUE(status.ok()) << status.message();
        };
        run(cpu_, false);
        run(gpu_, true);
        out.fetch_and_compare(gpu_, packed ? "packed rotary" : "rotary");
      }
    }
  }
}

TEST_P(RowsTest, JoinedPartsAreTheCpus) {
  constexpr int64_t kBatch = 2, kRows = 33, kHeads = 5, kDim = 72;
  constexpr int kParts = 3;
  std::vector<Mirror> outs, lses;
  for (uint32_t i = 0; i < kParts; ++i) {
    outs.push_back(values(kBatch * kRows * kHeads, kDim, GetParam(), 10 + i));
    std::mt19937 generator(20 + i);
    std::vector<float> lse(kBatch * kRows * kHeads);
    for (float& value : lse) {
      const uint32_t word = generator() % 64;
      value = word == 0 ? -INFINITY : word == 1 ? INFINITY : static_cast<float>(word) * 0.3f - 8.0f;
    }
    lse[7] = -INFINITY;  // this row saw nothing in any part
    lses.push_back(Mirror::of(lse));
  }
  Mirror out = values(kBatch * kRows * kHeads, kDim, DType::f32, 30);
  Mirror lse = Mirror::of(std::vector<float>(kBatch * kRows * kHeads));
  MergeProblem p;
  p.batch = kBatch;
  p.seqlen = kRows;
  p.heads = kHeads;
  p.head_dim = kDim;
  p.dtype = GetParam();
  p.out_dtype = DType::f32;
  const auto run = [&](Context& context, bool device) {
    std::vector<AttentionPart> parts;
    for (int i = 0; i < kParts; ++i) {
      const void* o = device ? outs[i].device.data() : outs[i].host.data();
      const void* l = device ? lses[i].device.data() : lses[i].host.data();
      parts.push_back({contiguous<const void*>(o, kRows, kHeads, kDim + kGap),
                       contiguous_lse<const float*>(static_cast<const float*>(l), kRows, kHeads)});
    }
    void* o = device ? out.device.data() : out.host.data();
    void* l = device ? lse.device.data() : lse.host.data();
    const Status status = merge_states(context, p, parts, contiguous<void*>(o, kRows, kHeads, kDim + kGap),
                                       contiguous_lse<float*>(static_cast<float*>(l), kRows, kHeads));
    ASSERT_TRUE(status.ok()) << status.message();
  };
  run(cpu_, false);
  run(gpu_, true);
  out.fetch_and_compare(gpu_, "o");
  lse.fetch_and_compare(gpu_, "lse");
}

TEST_P(RowsTest, TooManyPartsAreRefused) {
  std::vector<AttentionPart> parts(33);
  MergeProblem p;
  p.seqlen = 0;
  p.heads = p.head_dim = 1;
  p.dtype = p.out_dtype = GetParam();
  const Status status = merge_states(gpu_, p, parts, {}, {});
  EXPECT_EQ(status.field(), "parts");
}

INSTANTIATE_TEST_SUITE_P(DTypes, RowsTest, ::testing::Values(DType::f32, DType::f16, DType::bf16),
                         [](const auto& at) { return std::string(name(at.param)); });

}  // namespace
}  // namespace tessera::attention
