// CudaContext: its options, its refusals before any launch, and its scratch.
#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "core/cuda/device.h"
#include "tessera/attention.h"
#include "tessera/cuda.h"
#include "tessera/rope.h"

namespace tessera {
namespace {

using attention::AttentionProblem;
using attention::ForwardTensors;

constexpr int64_t kRows = 40, kHeads = 2, kDim = 64;
constexpr size_t kBytes = kRows * kHeads * kDim * 2;

class CudaContextTest : public ::testing::Test {
 protected:
  CudaContextTest() {
    memory_ = cuda::DeviceBuffer::create(4 * kBytes + 4096, "test").value();
    problem_.seqlen_q = problem_.seqlen_k = kRows;
    problem_.heads = problem_.kv_heads = kHeads;
    problem_.head_dim = problem_.v_head_dim = kDim;
    problem_.dtype = DType::bf16;
    problem_.scale = 0.125f;
    tensors_.q = at<const void*>(0);
    tensors_.k = at<const void*>(1);
    tensors_.v = at<const void*>(2);
    tensors_.o = at<void*>(3);
    EXPECT_TRUE(cuda::fill_bytes(memory_.data(), 0, memory_.size(), cuda::Stream::of(nullptr)).ok());
  }
  template <typename Pointer>
  attention::Strided<Pointer> at(int i) {
    return attention::contiguous<Pointer>(memory_.as<char>() + i * kBytes, kRows, kHeads, kDim);
  }
  // The Status of a forward over what the test spoiled; nothing may have been launched.
  Status refused() {
    const Result<CudaContext> context = CudaContext::create();
    EXPECT_TRUE(context.ok());
    const Status status = attention::forward(*context, problem_, tensors_);
    EXPECT_FALSE(status.ok());
    EXPECT_TRUE(context->synchronize().ok());
    return status;
  }
  void expect_refused(const char* field, const char* text) {
    const Status status = refused();
    EXPECT_EQ(status.field(), field);
    EXPECT_NE(status.message().find(text), std::string::npos) << status.message();
  }

  cuda::DeviceBuffer memory_;
  AttentionProblem problem_;
  ForwardTensors tensors_;
};

TEST_F(CudaContextTest, RefusesHostMemoryByName) {
  std::vector<char> host(kBytes);
  tensors_.k.data = host.data();
  expect_refused("k", "k is host memory; it must be on CUDA device 0");
}

TEST_F(CudaContextTest, RefusesArraysOfTheProblemOnTheHost) {
  const std::vector<int32_t> used = {3};
  problem_.seqused_k = used.data();
  expect_refused("seqused_k", "host memory");
  problem_.seqused_k = nullptr;
  const std::vector<float> slopes(kHeads);
  problem_.alibi_slopes = slopes.data();
  expect_refused("alibi_slopes", "host memory");
}

TEST_F(CudaContextTest, RefusesAMisalignedPointer) {
  tensors_.q.data = memory_.as<char>() + 2;
  expect_refused("q", "16 bytes");
  tensors_.q.data = memory_.as<char>() + 1;
  expect_refused("q", "q must be aligned to its 2 byte elements");
}

TEST_F(CudaContextTest, RefusesMisalignedArrays) {
  problem_.seqused_k = reinterpret_cast<const int32_t*>(memory_.as<char>() + 2);
  expect_refused("seqused_k", "seqused_k must be aligned to its 4 byte elements");
  problem_.seqused_k = nullptr;
  tensors_.lse = reinterpret_cast<float*>(memory_.as<char>() + 1);
  expect_refused("lse", "lse must be aligned to its 4 byte elements");
  tensors_.lse = nullptr;
  problem_.mask.ancestors.tree_keys = kRows;
  problem_.mask.ancestors.bits = reinterpret_cast<const uint64_t*>(memory_.as<char>() + 4);
  expect_refused("ancestors.bits", "ancestors.bits must be aligned to its 8 byte elements");
  problem_.mask.ancestors.bits = memory_.as<uint64_t>();
  problem_.mask.ancestors.depth = reinterpret_cast<const int32_t*>(memory_.as<char>() + 2);
  expect_refused("ancestors.depth", "ancestors.depth must be aligned to its 4 byte elements");
}

TEST_F(CudaContextTest, RefusesMisalignedRotaryTables) {
  attention::RopeProblem p;
  p.batch = 1;
  p.seqlen = kRows;
  p.heads = kHeads;
  p.head_dim = kDim;
  p.dtype = DType::bf16;
  p.rotary.rotary_dim = kDim;
  p.rotary.positions = 1;
  p.rotary.cos = memory_.data();
  p.rotary.sin = memory_.as<char>() + 2;
  const Result<CudaContext> context = CudaContext::create();
  ASSERT_TRUE(context.ok());
  const Status status = attention::rope_forward(*context, p, tensors_.q, tensors_.o);
  EXPECT_EQ(status.field(), "sin");
  EXPECT_EQ(status.message(), "sin must be aligned to its 4 byte elements");
  EXPECT_TRUE(context->synchronize().ok());
}

TEST_F(CudaContextTest, RefusesAnotherDevicesMemoryByName) {
  const Result<int> devices = cuda_device_count();
  ASSERT_TRUE(devices.ok());
  if (*devices < 2) GTEST_SKIP() << "two devices needed";
  cuda::DeviceBuffer elsewhere;
  {
    const cuda::DeviceGuard guard(1);
    elsewhere = cuda::DeviceBuffer::create(kBytes, "test").value();
  }
  tensors_.k.data = elsewhere.data();
  expect_refused("k", "k is on CUDA device 1; the context's is 0, and all tensors must be there");
}

// What a kernel was allowed on the first device it is allowed on the second too.
TEST_F(CudaContextTest, ASecondDeviceDoesWhatTheFirstDid) {
  const Result<int> devices = cuda_device_count();
  ASSERT_TRUE(devices.ok());
  if (*devices < 2) GTEST_SKIP() << "two devices needed";
  for (const int device : {0, 1}) {
    SCOPED_TRACE("device " + std::to_string(device));
    const Result<CudaContext> context = CudaContext::create({.device = device});
    ASSERT_TRUE(context.ok()) << context.status().message();
    cuda::DeviceBuffer memory;
    {
      const cuda::DeviceGuard guard(device);
      memory = cuda::DeviceBuffer::create(4 * kBytes, "test").value();
      ASSERT_TRUE(cuda::fill_bytes(memory.data(), 0, memory.size(), cuda::Stream::of(nullptr)).ok());
      ASSERT_TRUE(cuda::Stream::of(nullptr).synchronize().ok());
    }
    const auto part = [&](int i) { return memory.as<char>() + i * kBytes; };
    tensors_.q = attention::contiguous<const void*>(part(0), kRows, kHeads, kDim);
    tensors_.k = attention::contiguous<const void*>(part(1), kRows, kHeads, kDim);
    tensors_.v = attention::contiguous<const void*>(part(2), kRows, kHeads, kDim);
    tensors_.o = attention::contiguous<void*>(part(3), kRows, kHeads, kDim);
    const Status status = attention::forward(*context, problem_, tensors_);
    EXPECT_TRUE(status.ok()) << status.message();
    const Status done = context->synchronize();
    EXPECT_TRUE(done.ok()) << done.message();
  }
}

// Scratch that is not to be had is one refused call: the same context then does what needs none, and another
// one does the call.
TEST_F(CudaContextTest, OutOfScratchSaysHowMuchAndTheNextCallRuns) {
  CudaOptions options;
  options.allocate = [](size_t) { return nullptr; };
  const Result<CudaContext> without = CudaContext::create(options), with = CudaContext::create();
  ASSERT_TRUE(without.ok() && with.ok());
  AttentionProblem masked = problem_;
  masked.mask.tensor.kind = attention::MaskKind::boolean;
  masked.mask.tensor.data = memory_.data();
  masked.mask.tensor.row_stride = kRows;
  masked.mask.tensor.key_stride = 1;
  const Status status = attention::forward(*without, masked, tensors_);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.code(), StatusCode::resource_exhausted) << status.message();
  EXPECT_NE(status.message().find("bytes of device memory"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("bytes are free"), std::string::npos) << status.message();
  const Status plain = attention::forward(*without, problem_, tensors_);
  EXPECT_TRUE(plain.ok()) << plain.message();
  EXPECT_TRUE(without->synchronize().ok());
  const Status again = attention::forward(*with, masked, tensors_);
  EXPECT_TRUE(again.ok()) << again.message();
  EXPECT_TRUE(with->synchronize().ok());
}

TEST_F(CudaContextTest, RefusesNullAndWrongSizesAsTheCpuDoes) {
  tensors_.v.data = nullptr;
  expect_refused("v", "v is null but has 1 x 40 x 2 x 64 elements");
  problem_.head_dim = 12;
  expect_refused("head_dim", "head_dim=12 must be a multiple of 8");
}

TEST_F(CudaContextTest, AsksForTheTotalsOfCuSeqlens) {
  problem_.cu_seqlens_q = problem_.cu_seqlens_k = memory_.as<int32_t>();
  expect_refused("total_q", "total_q=0 must be the last entry of cu_seqlens_q");
  problem_.total_q = kRows;
  expect_refused("total_k", "total_k=0 must be the last entry of cu_seqlens_k");
}

TEST_F(CudaContextTest, NothingToDoIsDone) {
  const Result<CudaContext> context = CudaContext::create();
  problem_.batch = 0;
  EXPECT_TRUE(attention::forward(*context, problem_, {}).ok());
}

TEST_F(CudaContextTest, TakesTheCallersStreamAndScratch) {
  const Result<cuda::Stream> stream = cuda::Stream::create();
  ASSERT_TRUE(stream.ok());
  CudaOptions options;
  options.stream = stream->handle();
  options.allocate = [](size_t) { return nullptr; };
  const Result<CudaContext> context = CudaContext::create(options);
  ASSERT_TRUE(context.ok());
  EXPECT_EQ(context->stream(), stream->handle());
  cuda::DeviceWorkspace workspace(options.allocate);
  const Result<void*> scratch = workspace.get(1, 1024, *stream);
  ASSERT_FALSE(scratch.ok());
  EXPECT_EQ(scratch.status().code(), StatusCode::resource_exhausted);
  EXPECT_NE(scratch.status().message().find("needs 1024 bytes"), std::string::npos)
      << scratch.status().message();
}

TEST_F(CudaContextTest, CapturedCallsOfTheCallersScratchCountApartFromZero) {
  const Result<cuda::Stream> stream = cuda::Stream::create();
  ASSERT_TRUE(stream.ok());
  CudaOptions options;
  options.stream = stream->handle();
  options.allocate = [](size_t) { return nullptr; };
  problem_.mask.causal = true;  // its tiles are counted
  const Result<CudaContext> first = CudaContext::create(options), second = CudaContext::create(options);
  const Result<cuda::Graph> graph = cuda::Graph::capture(*stream, [&]() -> Status {
    TESSERA_RETURN_IF_ERROR(attention::forward(*first, problem_, tensors_));
    return attention::forward(*second, problem_, tensors_);
  });
  ASSERT_TRUE(graph.ok()) << graph.status().message();
  EXPECT_TRUE(graph->launch(*stream).ok());
  EXPECT_TRUE(graph->launch(*stream).ok());
  EXPECT_TRUE(stream->synchronize().ok());
  cuda::DeviceWorkspace a(options.allocate), b(options.allocate);
  const Result<void*> x = a.get(0, 4, *stream), y = b.get(0, 4, *stream);
  ASSERT_TRUE(x.ok() && y.ok());
  EXPECT_NE(*x, *y);
  int32_t value = 1;
  EXPECT_TRUE(cuda::copy(&value, *x, 4, *stream).ok());
  EXPECT_TRUE(stream->synchronize().ok());
  EXPECT_EQ(value, 0);
}

TEST_F(CudaContextTest, AnUnknownDeviceIsNamed) {
  const Result<CudaContext> context = CudaContext::create({.device = 99});
  ASSERT_FALSE(context.ok());
  EXPECT_EQ(context.status().field(), "device");
}

// The variable for one test; what was there before comes back.
class ArchVariable {
 public:
  explicit ArchVariable(const char* value) {
    if (const char* text = std::getenv(kName)) before_ = text;
    setenv(kName, value, 1);
  }
  ~ArchVariable() {
    if (before_) {
      setenv(kName, before_->c_str(), 1);
    } else {
      unsetenv(kName);
    }
  }

 private:
  static constexpr const char* kName = "TESSERA_CUDA_ARCH";
  std::optional<std::string> before_;
};

TEST_F(CudaContextTest, AnOlderArchIsForcedForContextsMadeUnderItAndExplained) {
  const ArchVariable variable("80");
  const Result<CudaContext> context = CudaContext::create();
  ASSERT_TRUE(context.ok()) << context.status().message();
  EXPECT_TRUE(attention::forward(*context, problem_, tensors_).ok());
  EXPECT_TRUE(context->synchronize().ok());
  const std::string lines = attention::explain(*context, problem_, attention::Pass::forward);
  EXPECT_NE(lines.find("> sm80 prefill (mma.sync): taken on "), std::string::npos) << lines;
  EXPECT_NE(lines.find("(sm_80)"), std::string::npos) << lines;
}

TEST_F(CudaContextTest, AnArchThatTheDeviceLacksIsNamed) {
  const ArchVariable variable("999");
  const Result<CudaContext> context = CudaContext::create();
  ASSERT_FALSE(context.ok());
  EXPECT_EQ(context.status().field(), "TESSERA_CUDA_ARCH");
}

}  // namespace
}  // namespace tessera
