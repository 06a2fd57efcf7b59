// A context of a device: calls go to its kernels, what has none says so, and a machine without one gets a
// Status.
#include <gtest/gtest.h>

#include "attention/device_kernels.h"
#include "core/cuda/arch_limit.h"
#include "core/thread_pool.h"
#include "tessera/cuda.h"
#include "tessera/merge.h"
#include "tessera/rope.h"

namespace tessera {
namespace {

using attention::AttentionProblem;

// Notes what was asked of it.
class NotingKernels : public attention::DeviceKernels {
 public:
  Status forward(const AttentionProblem& problem, const attention::ForwardTensors&) override {
    return note("forward", problem);
  }
  Status backward(const AttentionProblem& problem, const attention::BackwardTensors&) override {
    return note("backward", problem);
  }
  Status attend_cache(const AttentionProblem& problem, const attention::CacheView&,
                      const attention::CacheAppend&, const attention::CacheTensors&) override {
    return note("attend_cache", problem);
  }
  Status rope(const attention::RopeProblem&, const attention::Strided<const void*>&,
              const attention::Strided<void*>&, bool backward) override {
    return note(backward ? "rope_backward" : "rope_forward", {});
  }
  Status merge_states(const attention::MergeProblem&, std::span<const attention::AttentionPart>,
                      const attention::Strided<void*>&, const attention::Strided<float*>&) override {
    return note("merge_states", {});
  }
  std::string explain(const AttentionProblem&, attention::Pass) const override { return "noted"; }
  std::string last;

 private:
  Status note(const char* function, const AttentionProblem& problem) {
    last = function + std::to_string(problem.seqlen_q);
    return {};
  }
};

class DeviceContext : public ::testing::Test {
 protected:
  DeviceContext() { context_.attention = &kernels_; }
  NotingKernels kernels_;
  ThreadPool pool_{{.threads = 1}};
  Context context_{pool_};
};

TEST_F(DeviceContext, HandsAttentionToTheDevicesKernels) {
  AttentionProblem problem;
  problem.seqlen_q = 7;  // all else is the kernels' to check
  EXPECT_TRUE(attention::forward(context_, problem, {}).ok());
  EXPECT_EQ(kernels_.last, "forward7");
  EXPECT_TRUE(attention::backward(context_, problem, {}).ok());
  EXPECT_EQ(kernels_.last, "backward7");
  EXPECT_TRUE(attention::attend_cache(context_, problem, {}, {}, {}).ok());
  EXPECT_EQ(kernels_.last, "attend_cache7");
  EXPECT_TRUE(attention::rope_forward(context_, {}, {}, {}).ok());
  EXPECT_EQ(kernels_.last, "rope_forward0");
  EXPECT_TRUE(attention::rope_backward(context_, {}, {}, {}).ok());
  EXPECT_EQ(kernels_.last, "rope_backward0");
  EXPECT_TRUE(attention::merge_states(context_, {}, {}, {}, {}).ok());
  EXPECT_EQ(kernels_.last, "merge_states0");
  EXPECT_EQ(attention::explain(context_, problem, attention::Pass::forward), "noted");
}

TEST_F(DeviceContext, RefusesASlowScheduleThatItDoesNotHave) {
  attention::Tuning tuning;
  tuning.schedule = attention::Schedule::fa1;
  const Status status = attention::forward(context_, {}, {}, tuning);
  EXPECT_EQ(status.code(), StatusCode::unsupported);
  EXPECT_EQ(status.field(), "schedule");
}

TEST_F(DeviceContext, FunctionsWithoutItsKernelsNeverTouchItsMemory) {
  const auto refused = [](const Status& status, const char* function) {
    EXPECT_EQ(status.code(), StatusCode::unsupported);
    EXPECT_NE(status.message().find(function), std::string::npos) << status.message();
  };
  attention::KvCacheOptions options;
  options.kv_heads = options.num_blocks = 1;
  options.head_dim = 8;
  Result<attention::KvCache> cache = attention::KvCache::create(options);
  ASSERT_TRUE(cache.ok());
  refused(cache->append(context_, 0, {}, DType::f32, {}, {}), "KvCache::append");
  refused(attention::CachePlan::create(context_, *cache, {}, {}).status(), "CachePlan::create");
}

TEST(CudaContext, IsMadeOrSaysWhyNot) {
  const Result<int> devices = cuda_device_count();
  const Result<CudaContext> context = CudaContext::create();
  EXPECT_EQ(devices.ok(), context.ok());
  if (context.ok()) {
    EXPECT_EQ(context->device(), 0);
    return;
  }
  EXPECT_EQ(context.status().message(), devices.status().message());
  EXPECT_TRUE(context.status().code() == StatusCode::unavailable ||
              context.status().code() == StatusCode::unsupported);
  EXPECT_NE(context.status().message().find("CUDA"), std::string::npos) << context.status().message();
}

cuda::DeviceProperties hopper() {
  cuda::DeviceProperties device;
  device.name = "GPU";
  device.major = 9;
  device.multiprocessors = 132;
  return device;
}

TEST(CudaArch, LowersTheComputeCapabilityAndSaysSoInTheName) {
  const Result<cuda::DeviceProperties> device = cuda::limited_to(hopper(), "80");
  ASSERT_TRUE(device.ok()) << device.status().message();
  EXPECT_EQ(device->sm(), 80);
  EXPECT_EQ(device->name, "GPU under TESSERA_CUDA_ARCH=80");
  EXPECT_EQ(device->multiprocessors, 132);
}

TEST(CudaArch, UnsetEmptyOrTheDevicesOwnChangesNothing) {
  for (const char* arch : {static_cast<const char*>(nullptr), "", "90"}) {
    const Result<cuda::DeviceProperties> device = cuda::limited_to(hopper(), arch);
    ASSERT_TRUE(device.ok()) << device.status().message();
    EXPECT_EQ(device->sm(), 90);
    EXPECT_EQ(device->name, "GPU");
  }
}

TEST(CudaArch, MistakesNameTheVariable) {
  for (const char* arch : {"sm_80", "8.0", "70", "80a", "-80"}) {
    const Result<cuda::DeviceProperties> device = cuda::limited_to(hopper(), arch);
    ASSERT_FALSE(device.ok()) << arch;
    EXPECT_EQ(device.status().code(), StatusCode::invalid_argument);
    EXPECT_EQ(device.status().field(), "TESSERA_CUDA_ARCH");
    EXPECT_NE(device.status().message().find(arch), std::string::npos) << device.status().message();
  }
  const Result<cuda::DeviceProperties> newer = cuda::limited_to(hopper(), "100");
  ASSERT_FALSE(newer.ok());
  EXPECT_EQ(newer.status().code(), StatusCode::unsupported);
  EXPECT_EQ(newer.status().message(), "TESSERA_CUDA_ARCH=100: device GPU has only sm_90");
}

}  // namespace
}  // namespace tessera
