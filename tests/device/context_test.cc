// A context of a device: calls go to its kernels, what has none says so, and a machine without one gets a
// Status.
#include <gtest/gtest.h>

#include "attention/device_kernels.h"
#include "core/cuda/arch_limit.h"
#include "core/thread_pool.h"
#include "tessera/cuda.h"
#include "tessera/merge.h"
#include "tessera/paged.h"
#include "tessera/rope.h"

namespace tessera {
namespace {

using attention::AttentionProblem;

// Two sequences of 300 and 400 keys that share 256; the second may have 512.
class NotedPlan : public attention::DeviceTreePlan {
 public:
  Limits limits(int64_t sequence) const override {
    return sequence == 0 ? Limits{256, 512} : Limits{256, 900};
  }
  attention::CacheReads reads() const override { return {9, 4, 13}; }
  std::string explain() const override { return "noted"; }
};

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
  Status check_host_memory(const char*, const void*) const override { return {}; }
  Result<std::unique_ptr<attention::DeviceTreePlan>> plan_tree(const AttentionProblem& problem,
                                                               const attention::CacheTables&,
                                                               const attention::CacheTreeOptions&) override {
    (void)note("plan_tree", problem);
    return std::unique_ptr<attention::DeviceTreePlan>(new NotedPlan);
  }
  Status attend_tree(const attention::DeviceTreePlan&, const attention::CacheView&,
                     const attention::CacheAppend&, const attention::CacheTensors&) override {
    return note("attend_tree", {});
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

TEST_F(DeviceContext, APlanOfATreeIsTheDevicesAndItsLengthsAreChecked) {
  const std::vector<int32_t> table(16, 0), lengths = {300, 400};
  AttentionProblem problem;
  problem.batch = 2;
  problem.seqlen_q = 1;
  attention::CacheTables tables;
  tables.num_blocks = 1;
  tables.block_size = 100;
  tables.block_table = table.data();
  tables.max_blocks = 8;
  tables.seqlens = lengths.data();
  tables.appended = 1;
  auto plan = attention::CacheTreePlan::create(context_, problem, tables);
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(kernels_.last, "plan_tree1");
  EXPECT_EQ(plan->reads().shared_tiles, 4u);
  EXPECT_EQ(plan->explain(), "noted");
  const std::vector<int32_t> first = {255, 255}, last = {511, 799}, below = {254, 300}, above = {511, 800};
  EXPECT_TRUE(plan->covers(first).ok());
  EXPECT_TRUE(plan->covers(last).ok());
  EXPECT_EQ(plan->covers(below).message(),
            "cache_seqlens=254 of sequence 0 must be from 255 to 511 under this plan; make a new one");
  EXPECT_EQ(plan->covers(above).message(),  // its table's end comes before the plan's
            "cache_seqlens=800 of sequence 1 must be from 255 to 799 under this plan; make a new one");

  attention::CacheView cache;
  cache.num_blocks = 1;
  cache.block_size = 100;
  cache.block_table = table.data();
  cache.max_blocks = 8;
  cache.seqlens = lengths.data();  // a device's: not looked at
  const attention::CacheAppend append{.seqlen = 1};
  EXPECT_TRUE(plan->attend(context_, cache, append, {}).ok());
  EXPECT_EQ(kernels_.last, "attend_tree0");
  const auto refused = [&](const char* field) {
    const Status status = plan->attend(context_, cache, append, {});
    EXPECT_EQ(status.code(), StatusCode::invalid_argument) << field;
    EXPECT_EQ(status.field(), field) << status.message();
  };
  cache.seqlens = nullptr;
  cache.seqlen = 512;
  refused("cache_seqlens");
  cache.seqlen = 300;
  cache.max_blocks = 9;
  refused("max_blocks");
  cache.max_blocks = 8;
  cache.block_table = nullptr;
  refused("block_table");
  EXPECT_EQ(plan->attend(context_, cache, {}, {}).field(), "block_table");
  cache.block_table = table.data();
  EXPECT_EQ(plan->attend(context_, cache, {}, {}).message(), "append.seqlen=0 must be the plan's, 1");
  ThreadPool pool({.threads = 1});
  Context cpu(pool);
  EXPECT_EQ(plan->attend(cpu, cache, append, {}).field(), "context");
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
