// The collectives of core/cuda/nccl.h over one rank, and over two in one process where there are two GPUs.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "core/cuda/device.h"
#include "core/cuda/nccl.h"

namespace tessera::cuda {
namespace {

constexpr size_t kCount = 1000;

// One rank's device, stream and buffers, each of 2 * kCount floats.
struct Rank {
  int device = 0;
  Stream stream = Stream::of(nullptr);
  DeviceBuffer send, receive;
  NcclCommunicator communicator = nullptr;
};

class NcclRanks : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    const Result<const Nccl*> found = nccl();
    if (!found.ok()) GTEST_SKIP() << found.status().message();
    nccl_ = *found;
    const Result<int> devices = device_count();
    ASSERT_TRUE(devices.ok());
    if (*devices < GetParam()) GTEST_SKIP() << *devices << " device(s), " << GetParam() << " needed";
    NcclUniqueId id;
    expect_ok(nccl_->get_unique_id(&id), "get_unique_id");
    ranks_.resize(static_cast<size_t>(GetParam()));
    for (size_t i = 0; i < ranks_.size(); ++i) {
      ranks_[i] = std::make_unique<Rank>();
      Rank& rank = *ranks_[i];
      rank.device = static_cast<int>(i);
      const DeviceGuard guard(rank.device);
      rank.stream = Stream::create().value();
      rank.send = DeviceBuffer::create(2 * kCount * sizeof(float), "a test").value();
      rank.receive = DeviceBuffer::create(2 * kCount * sizeof(float), "a test").value();
    }
    expect_ok(nccl_->group_start(), "group_start");
    for (size_t i = 0; i < ranks_.size(); ++i) {
      const DeviceGuard guard(ranks_[i]->device);
      expect_ok(nccl_->comm_init_rank(&ranks_[i]->communicator, GetParam(), id, static_cast<int>(i)),
                "comm_init_rank");
    }
    expect_ok(nccl_->group_end(), "group_end");
    if (HasFailure()) GTEST_FAIL() << "no communicators";
  }
  void TearDown() override {
    for (const std::unique_ptr<Rank>& rank : ranks_) {
      if (rank && rank->communicator != nullptr)
        expect_ok(nccl_->comm_destroy(rank->communicator), "comm_destroy");
    }
  }
  void expect_ok(int result, const char* what) {
    const Status status = nccl_status(*nccl_, result, what);
    EXPECT_TRUE(status.ok()) << status.message();
  }
  static float sent(size_t rank, size_t i) {
    return static_cast<float>(static_cast<int>(rank + 1) * static_cast<int>(i % 97));
  }

  // Fills what ranks send, calls `collective` for each of them in one group, and compares the first `count`
  // floats that each received.
  template <typename Collective, typename Want>
  void check(const char* what, size_t count, Collective&& collective, Want&& want) {
    SCOPED_TRACE(what);
    for (size_t r = 0; r < ranks_.size(); ++r) {
      const DeviceGuard guard(ranks_[r]->device);
      std::vector<float> values(2 * kCount);
      for (size_t i = 0; i < values.size(); ++i) values[i] = sent(r, i);
      const Rank& rank = *ranks_[r];
      ASSERT_TRUE(fill_bytes(rank.receive.data(), 0xff, rank.receive.size(), rank.stream).ok());
      ASSERT_TRUE(copy(rank.send.data(), values.data(), rank.send.size(), rank.stream).ok());
      ASSERT_TRUE(rank.stream.synchronize().ok());
    }
    expect_ok(nccl_->group_start(), "group_start");
    for (size_t r = 0; r < ranks_.size(); ++r) {
      const DeviceGuard guard(ranks_[r]->device);
      expect_ok(collective(*ranks_[r], static_cast<int>(r)), what);
    }
    expect_ok(nccl_->group_end(), "group_end");
    for (size_t r = 0; r < ranks_.size(); ++r) {
      const DeviceGuard guard(ranks_[r]->device);
      const Rank& rank = *ranks_[r];
      std::vector<float> got(2 * kCount);
      ASSERT_TRUE(copy(got.data(), rank.receive.data(), rank.receive.size(), rank.stream).ok());
      const Status status = rank.stream.synchronize();
      ASSERT_TRUE(status.ok()) << status.message();
      for (size_t i = 0; i < got.size(); ++i) {
        if (i >= count) {
          ASSERT_TRUE(std::isnan(got[i])) << "rank " << r << " wrote element " << i << " behind " << count;
        } else {
          ASSERT_EQ(got[i], want(r, i)) << "rank " << r << " element " << i;
        }
      }
    }
  }

  const Nccl* nccl_ = nullptr;
  std::vector<std::unique_ptr<Rank>> ranks_;
};

TEST_P(NcclRanks, Collectives) {
  const size_t ranks = ranks_.size();
  const int last = static_cast<int>(ranks) - 1;
  const auto summed = [&](size_t i) {
    float sum = 0;
    for (size_t r = 0; r < ranks; ++r) sum += sent(r, i);
    return sum;
  };
  check(
      "all_reduce", kCount,
      [&](const Rank& rank, int) {
        return nccl_->all_reduce(rank.send.data(), rank.receive.data(), kCount, NcclType::f32,
                                 NcclReduction::sum, rank.communicator, rank.stream.handle());
      },
      [&](size_t, size_t i) { return summed(i); });
  check(
      "all_reduce, the largest", kCount,
      [&](const Rank& rank, int) {
        return nccl_->all_reduce(rank.send.data(), rank.receive.data(), kCount, NcclType::f32,
                                 NcclReduction::max, rank.communicator, rank.stream.handle());
      },
      [&](size_t, size_t i) { return sent(ranks - 1, i); });
  check(
      "all_gather", ranks * kCount,
      [&](const Rank& rank, int) {
        return nccl_->all_gather(rank.send.data(), rank.receive.data(), kCount, NcclType::f32,
                                 rank.communicator, rank.stream.handle());
      },
      [&](size_t, size_t i) { return sent(i / kCount, i % kCount); });
  const size_t share = 2 * kCount / ranks;
  check(
      "reduce_scatter", share,
      [&](const Rank& rank, int) {
        return nccl_->reduce_scatter(rank.send.data(), rank.receive.data(), share, NcclType::f32,
                                     NcclReduction::sum, rank.communicator, rank.stream.handle());
      },
      [&](size_t r, size_t i) { return summed(r * share + i); });
  check(
      "broadcast", kCount,
      [&](const Rank& rank, int) {
        return nccl_->broadcast(rank.send.data(), rank.receive.data(), kCount, NcclType::f32, last,
                                rank.communicator, rank.stream.handle());
      },
      [&](size_t, size_t i) { return sent(ranks - 1, i); });
  // Round a circle: each sends to the next and receives from the one before; of one rank, from itself.
  check(
      "send and receive", kCount,
      [&](const Rank& rank, int r) {
        const int next = (r + 1) % static_cast<int>(ranks), before = (r + last) % static_cast<int>(ranks);
        const int result = nccl_->send(rank.send.data(), kCount, NcclType::f32, next, rank.communicator,
                                       rank.stream.handle());
        if (result != 0) return result;
        return nccl_->receive(rank.receive.data(), kCount, NcclType::f32, before, rank.communicator,
                              rank.stream.handle());
      },
      [&](size_t r, size_t i) { return sent((r + ranks - 1) % ranks, i); });
}

TEST_P(NcclRanks, AWrongCallIsAStatus) {
  const Status status =
      nccl_status(*nccl_,
                  nccl_->broadcast(ranks_[0]->send.data(), ranks_[0]->receive.data(), 1, NcclType::f32, 99,
                                   ranks_[0]->communicator, ranks_[0]->stream.handle()),
                  "broadcast from rank 99");
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.message().find("broadcast from rank 99: NCCL error"), 0u) << status.message();
}

INSTANTIATE_TEST_SUITE_P(Ranks, NcclRanks, ::testing::Values(1, 2),
                         [](const auto& at) { return std::to_string(at.param); });

}  // namespace
}  // namespace tessera::cuda
