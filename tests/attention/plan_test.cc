// What a WorkPlan reads, and what it says about it.
#include <algorithm>
#include <numeric>
#include <set>

#include "tests/attention/paged_fixture.h"

namespace tessera::attention {
namespace {

// 16 sequences over one cache: `shared` tokens in common, `own` of their own.
struct SharedBatch {
  AttentionProblem problem = make_problem(DType::bf16, 9, 3, 16);
  std::vector<std::vector<int32_t>> tables;
  std::vector<PagedSequence> sequences;
  int shared_blocks, own_blocks;

  SharedBatch(int count, int shared, int own)
      : shared_blocks(shared / kKeyTile), own_blocks((own + 63) / kKeyTile) {
    int next = 0;
    std::vector<int32_t> prefix;
    for (int i = 0; i < shared_blocks; ++i) prefix.push_back(next++);
    for (int s = 0; s < count; ++s) {
      tables.push_back(prefix);
      for (int i = 0; i < own_blocks; ++i) tables.back().push_back(next++);
    }
    // Block ids scattered over the batch: the plan has to find its own order.
    for (int s = 0; s < count; ++s) {
      const std::vector<int32_t>& table = tables[size_t((s * 7) % count)];
      sequences.push_back({s, 1, shared + own - 1, table.data()});
    }
  }
};

TEST(WorkPlan, ReadsEachSharedBlockOnce) {
  const SharedBatch batch(16, 1024, 64);
  for (int threads : {1, 2, 3}) {
    const WorkPlan plan(batch.sequences, batch.problem, {.threads = threads});
    EXPECT_EQ(plan.planned_reads().shared_block_reads, 3u * 16u) << plan.explain();
    EXPECT_EQ(plan.planned_reads().block_reads, 3u * (16u + 16u));
    EXPECT_EQ(plan.unshared_reads(), 3 * 16 * 17);
    const WorkPlan walked(batch.sequences, batch.problem, {.threads = threads, .two_phase = false});
    EXPECT_EQ(walked.planned_reads().shared_block_reads, 0u);
    EXPECT_EQ(walked.planned_reads().block_reads, 3u * 16u * 17u);
  }
}

TEST(WorkPlan, WithNothingSharedIsThePagedPlan) {
  const SharedBatch batch(8, 0, 500);
  const WorkPlan on(batch.sequences, batch.problem, {.threads = 2}),
      off(batch.sequences, batch.problem, {.threads = 2, .two_phase = false});
  EXPECT_EQ(on.explain(), off.explain());
  EXPECT_EQ(on.planned_reads().block_reads, 3u * 8u * 8u);
}

TEST(WorkPlan, ExplainsTheChoice) {
  const SharedBatch batch(16, 1024, 64);
  const WorkPlan plan(batch.sequences, batch.problem, {.threads = 2});
  const std::string text = plan.explain();
  EXPECT_NE(text.find(find(batch.problem, Kind::tree).value()->name), std::string::npos) << text;
  EXPECT_NE(text.find("> up to 16 sequences stacked: 96 block reads (48 shared)"), std::string::npos) << text;
  EXPECT_NE(text.find("  sequence by sequence: 816 block reads (0 shared)"), std::string::npos) << text;
}

TEST(WorkPlan, SmallerGroupsWhenThreadsWouldIdle) {
  // One segment, one kv head: stacked, it is one item.
  SharedBatch batch(64, 448, 1);
  batch.problem = make_problem(DType::bf16, 1, 1, 16);
  const WorkPlan plan(batch.sequences, batch.problem, {.threads = 16});
  EXPECT_GT(plan.planned_reads().shared_block_reads, 7u) << plan.explain();
  EXPECT_LT(plan.planned_reads().block_reads, 64u * 8u);
}

TEST(WorkPlan, WindowSkipsWholeTiles) {
  SharedBatch batch(1, 0, 1088);
  batch.problem.mask.window_left = 100;
  const WorkPlan plan(batch.sequences, batch.problem, {});
  // Position 1087 sees 987..1087: tiles 15 and 16.
  EXPECT_EQ(plan.planned_reads().block_reads, 3u * 2u);
}

TEST(WorkPlan, CountsWhatTheKernelsRead) {
  const AttentionProblem problem = make_problem(DType::f32, 4, 2, 16);
  ThreadPool pool{ThreadPoolOptions{.threads = 2}};
  Context context(pool);
  Cache cache(problem, 20);
  Sequence a(problem, 400, kSeed), b(problem, 450, kSeed + 9);
  b.share(a, problem, 256);
  std::vector<int32_t> first, second;
  cache.append(context, a, 0, 400, first);
  second.assign(first.begin(), first.begin() + 4);
  cache.append(context, b, 256, 450, second);
  const StepRows step[] = {{&a, &first, 399, 1}, {&b, &second, 449, 1}};
  AttentionCounters counters;
  run_step(context, problem, cache.storage, step, {}, &counters);
  EXPECT_EQ(counters.shared_block_reads, 2u * 4u);
  EXPECT_EQ(counters.block_reads, 2u * (4u + 3u + 4u));
}

// A plan of a caller's tensors holds no steps: twice the rows, twice the bytes.
TEST(WorkPlan, DenseIsLinear) {
  const AttentionProblem problem = make_problem(DType::f32, 4, 1, 16);
  for (const int threads : {1, 2}) {
    int64_t bytes[2];
    for (const int i : {0, 1}) {
      const int32_t rows = 65536 << i;
      std::vector<int32_t> table(size_t(rows / kKeyTile));
      std::iota(table.begin(), table.end(), 0);
      const PagedSequence sequence = {0, rows, 0, table.data()};
      const WorkPlan plan({&sequence, 1}, problem, {.threads = threads, .dense = true});
      bytes[i] = plan.bytes();
      // Row by row it would be rows^2 / 128 tiles; items of 48 tokens read each tile for all of them.
      EXPECT_EQ(plan.planned_reads().block_reads, uint64_t(plan.unshared_reads()));
      EXPECT_GT(plan.unshared_reads(), int64_t{rows} * rows / 64 / 48 / 2);
    }
    EXPECT_LT(bytes[1], int64_t{24} << 20) << "threads " << threads;
    EXPECT_LT(bytes[1], 2 * bytes[0] + 4096) << "threads " << threads;
  }
}

TEST(WorkPlan, EmptyStepsAndSequencesAreFine) {
  const AttentionProblem problem = make_problem(DType::f32, 4, 2, 16);
  ThreadPool pool{ThreadPoolOptions{.threads = 2}};
  Context context(pool);
  Cache cache(problem, 2);
  EXPECT_TRUE(run_step(context, problem, cache.storage, {}).empty());
  Sequence s(problem, 5, kSeed);
  std::vector<int32_t> table;
  cache.append(context, s, 0, 5, table);
  const StepRows step[] = {{&s, &table, 4, 0}, {&s, &table, 4, 1}};
  for (const float value : run_step(context, problem, cache.storage, step)) EXPECT_TRUE(std::isfinite(value));
}

}  // namespace
}  // namespace tessera::attention
