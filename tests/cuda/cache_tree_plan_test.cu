// CacheTreePlan on a GPU: attend_cache's bits whatever is shared, appends, captured graphs while sequences
// grow, and every mistake that the host can see refused before a launch.
#include <gtest/gtest.h>

#include <functional>
#include <optional>

#include "tessera/cuda.h"
#include "tessera/paged.h"
#include "tests/cuda/support/paged_case.cuh"

namespace tessera::attention {
namespace {

using cuda_test::DeviceBuffer;
using cuda_test::PagedCase;
using cuda_test::PagedShape;

class CacheTreePlanOnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    auto stream = tessera::cuda::Stream::create();
    ASSERT_TRUE(stream.ok());
    stream_.emplace(std::move(stream).value());
    auto made = CudaContext::create({.stream = stream_->handle()});
    ASSERT_TRUE(made.ok()) << made.status().message();
    context_.emplace(std::move(made).value());
  }
  // 16 sequences of 1,024 common positions and 200 and more of their own, in blocks of 64.
  static PagedShape shape() {
    PagedShape s;
    s.heads = 16, s.kv_heads = 4, s.capacity = 2048;
    for (int b = 0; b < 16; ++b) {
      s.lengths.push_back(1224 + 13 * b);
      s.shared_blocks.push_back({0, b == 0 ? 0 : 16});
    }
    return s;
  }
  static AttentionProblem problem(const PagedCase& c) {
    AttentionProblem p = c.problem();
    p.mask.causal = false;
    return p;
  }
  // The host's copies, `appended` tokens before the case's lengths.
  CacheTables tables(const PagedCase& c, int32_t appended = 0) {
    lengths_ = c.shape.lengths;
    for (int32_t& length : lengths_) length -= appended;
    CacheTables t;
    t.num_blocks = c.num_blocks;
    t.block_size = c.shape.page;
    t.block_table = c.table.data();
    t.max_blocks = c.max_blocks;
    t.seqlens = lengths_.data();
    t.appended = appended;
    return t;
  }
  void run(PagedCase& c, const std::function<Status()>& call) {
    c.clear();
    cudaDeviceSynchronize();
    const Status status = call();
    ASSERT_TRUE(status.ok()) << status.message();
    const Status done = context_->synchronize();
    ASSERT_TRUE(done.ok()) << done.message();
  }
  std::vector<int32_t> lengths_;
  std::optional<tessera::cuda::Stream> stream_;
  std::optional<CudaContext> context_;
};

TEST_F(CacheTreePlanOnGpu, GivesAttendCachesBitsWhateverIsShared) {
  PagedCase c(shape());
  run(c, [&] { return attend_cache(*context_, problem(c), c.view(), {}, c.tensors()); });
  const auto want = c.output();
  for (const TreeSharing sharing : {TreeSharing::never, TreeSharing::when_it_pays, TreeSharing::always}) {
    auto plan = CacheTreePlan::create(*context_, problem(c), tables(c), {.sharing = sharing});
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    run(c, [&] { return plan->attend(*context_, c.view(), {}, c.tensors()); });
    EXPECT_EQ(c.output(), want) << plan->explain();
    const CacheReads reads = plan->reads();
    EXPECT_EQ(reads.shared_tiles > 0, reads.tiles < reads.unshared) << plan->explain();
    if (sharing == TreeSharing::never) EXPECT_EQ(reads.shared_tiles, 0u);
    if (sharing == TreeSharing::always) EXPECT_EQ(reads.shared_tiles, 4u * 16) << plan->explain();
  }
}

TEST_F(CacheTreePlanOnGpu, AppendsBeforeItAttends) {
  PagedCase c(shape());
  run(c, [&] { return attend_cache(*context_, problem(c), c.view(), {}, c.tensors()); });
  const auto want = c.output();
  const auto rows = c.take_rows(1);
  CacheView cache = c.view();
  cache.seqlens = rows.lengths.as<int32_t>();
  const CacheAppend append{1, contiguous<const void*>(rows.k.data(), 1, 4, 128),
                           contiguous<const void*>(rows.v.data(), 1, 4, 128), nullptr};
  auto plan = CacheTreePlan::create(*context_, problem(c), tables(c, 1), {.sharing = TreeSharing::always});
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  run(c, [&] { return plan->attend(*context_, cache, append, c.tensors()); });
  EXPECT_EQ(c.output(), want);
  EXPECT_EQ(PagedCase::download(c.k), rows.cache_k);
}

TEST_F(CacheTreePlanOnGpu, AGraphReplaysWhileSequencesGrowInsideTheReserve) {
  PagedCase c(shape());
  std::vector<int32_t> now = c.shape.lengths;
  for (int32_t& length : now) length -= 150;
  DeviceBuffer lengths = PagedCase::upload(now);
  CacheView cache = c.view();
  cache.seqlens = lengths.as<int32_t>();
  CacheTables t = tables(c, 0);
  lengths_ = now;
  t.seqlens = lengths_.data();
  auto plan =
      CacheTreePlan::create(*context_, problem(c), t, {.reserve = 150, .sharing = TreeSharing::always});
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  const auto step = [&] { return plan->attend(*context_, cache, {}, c.tensors()); };
  run(c, step);  // scratch grows here
  auto graph = tessera::cuda::Graph::capture(*stream_, step);
  ASSERT_TRUE(graph.ok()) << graph.status().message();
  for (int grown : {0, 1, 77, 150}) {
    std::vector<int32_t> then = now;
    for (int32_t& length : then) length += grown;
    EXPECT_TRUE(plan->covers(then).ok());
    cudaMemcpy(lengths.data(), then.data(), then.size() * 4, cudaMemcpyHostToDevice);
    run(c, [&] { return graph->launch(*stream_); });
    const auto got = c.output();
    run(c, [&] { return attend_cache(*context_, problem(c), cache, {}, c.tensors()); });
    EXPECT_EQ(got, c.output()) << "grown by " << grown;
  }
  for (int32_t& length : now) length += 600;
  const Status outgrown = plan->covers(now);
  EXPECT_EQ(outgrown.field(), "cache_seqlens");
  EXPECT_NE(outgrown.message().find("under this plan; make a new one"), std::string::npos)
      << outgrown.message();
}

TEST_F(CacheTreePlanOnGpu, PlansComeAndGoWithoutNewMemory) {
  PagedCase c(shape());
  run(c, [&] { return attend_cache(*context_, problem(c), c.view(), {}, c.tensors()); });
  const auto want = c.output();
  size_t free = 0, total = 0;
  for (int i = 0; i < 20; ++i) {
    auto plan = CacheTreePlan::create(*context_, problem(c), tables(c), {.sharing = TreeSharing::always});
    ASSERT_TRUE(plan.ok());
    run(c, [&] { return plan->attend(*context_, c.view(), {}, c.tensors()); });
    EXPECT_EQ(c.output(), want) << "plan " << i;
    size_t left = 0;
    ASSERT_EQ(cudaMemGetInfo(&left, &total), cudaSuccess);
    if (i == 2) free = left;
    if (i > 2) EXPECT_EQ(left, free) << "plan " << i;
  }
}

TEST_F(CacheTreePlanOnGpu, NoSequencesAreNothingToDo) {
  PagedCase c(shape());
  AttentionProblem p = problem(c);
  p.batch = 0;
  CacheTables t = tables(c);
  t.block_table = t.seqlens = nullptr;
  auto plan = CacheTreePlan::create(*context_, p, t);
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  const Status status = plan->attend(*context_, c.view(), {}, {});
  EXPECT_TRUE(status.ok()) << status.message();
}

TEST_F(CacheTreePlanOnGpu, MistakesInTablesAreRefused) {
  PagedCase c(shape());
  const auto refused = [&](const CacheTables& t, const AttentionProblem& p, const char* field,
                           const char* text) {
    auto plan = CacheTreePlan::create(*context_, p, t);
    ASSERT_FALSE(plan.ok()) << field << " " << text;
    EXPECT_EQ(plan.status().field(), field);
    EXPECT_NE(plan.status().message().find(text), std::string::npos) << plan.status().message();
  };
  CacheTables t = tables(c);
  t.block_table = c.table_on_device.as<int32_t>();
  refused(t, problem(c), "block_table", "block_table is on CUDA device 0; it must be host memory");
  t = tables(c);
  t.seqlens = c.lengths_on_device.as<int32_t>();
  refused(t, problem(c), "seqlens", "seqlens is on CUDA device 0; it must be host memory");
  t = tables(c);
  const int32_t id = c.table[3];
  c.table[3] = c.num_blocks;
  refused(t, problem(c), "block_table", "of sequence 0 must be from 0 to");
  c.table[3] = id;
  AttentionProblem p = problem(c);
  p.v_head_dim = 60;
  refused(t, p, "v_head_dim", "v_head_dim=60");
  const std::vector<int32_t> pads(16);
  p = problem(c);
  p.leftpad_k = pads.data();
  refused(t, p, "leftpad_k", "host memory");
}

TEST_F(CacheTreePlanOnGpu, MistakesInCallsAreRefusedBeforeALaunch) {
  PagedCase c(shape());
  auto plan = CacheTreePlan::create(*context_, problem(c), tables(c), {.sharing = TreeSharing::always});
  ASSERT_TRUE(plan.ok());
  c.clear();
  cudaDeviceSynchronize();
  const auto before = c.output();
  const auto refused = [&](const CacheView& cache, const CacheTensors& tensors, const char* field) {
    const Status status = plan->attend(*context_, cache, {}, tensors);
    EXPECT_EQ(status.code(), StatusCode::invalid_argument) << status.message();
    EXPECT_EQ(status.field(), field) << status.message();
  };
  CacheView cache = c.view();
  cache.seqlens = nullptr;
  cache.seqlen = 1200;  // the shortest sequences' own keys end at 1280
  EXPECT_TRUE(plan->attend(*context_, cache, {}, c.tensors()).ok());
  EXPECT_TRUE(context_->synchronize().ok());
  c.clear();
  cudaDeviceSynchronize();
  cache.seqlen = 1281;
  refused(cache, c.tensors(), "cache_seqlens");
  cache.seqlen = 1023;
  refused(cache, c.tensors(), "cache_seqlens");
  cache = c.view();
  cache.block_table = c.table.data();
  refused(cache, c.tensors(), "block_table");
  cache = c.view();
  cache.num_blocks -= 1;
  refused(cache, c.tensors(), "num_blocks");
  CacheTensors tensors = c.tensors();
  tensors.q.data = nullptr;
  refused(c.view(), tensors, "q");
  std::vector<float> lse(16 * 16);
  tensors = c.tensors();
  tensors.lse = lse.data();
  refused(c.view(), tensors, "lse");
  EXPECT_TRUE(context_->synchronize().ok());
  EXPECT_EQ(c.output(), before);
}

TEST_F(CacheTreePlanOnGpu, APlanIsNotMadeDuringACapture) {
  PagedCase c(shape());
  std::string field, message;
  const auto graph = tessera::cuda::Graph::capture(*stream_, [&]() -> Status {
    const auto plan = CacheTreePlan::create(*context_, problem(c), tables(c));
    field = plan.status().field();
    message = plan.status().message();
    return {};
  });
  EXPECT_TRUE(graph.ok()) << "refusing must not break the capture: " << graph.status().message();
  EXPECT_EQ(field, "context");
  EXPECT_NE(message.find("captured"), std::string::npos) << message;
}

TEST_F(CacheTreePlanOnGpu, TheCpusContextIsRefused) {
  PagedCase c(shape());
  auto plan = CacheTreePlan::create(*context_, problem(c), tables(c));
  ASSERT_TRUE(plan.ok());
  auto cpu = CpuContext::create({.threads = 1});
  ASSERT_TRUE(cpu.ok());
  EXPECT_EQ(plan->attend(*cpu, c.view(), {}, c.tensors()).field(), "context");
}

}  // namespace
}  // namespace tessera::attention
