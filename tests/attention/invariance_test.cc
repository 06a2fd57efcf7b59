// Law 1: the bits of a row do not depend on the rows, chunks, sharing or threads that it comes with.
#include <memory>

#include "attention/cpu/kernel_scope.h"
#include "attention/cpu/tile_kernel.h"
#include "core/buffer.h"
#include "tests/attention/paged_fixture.h"

namespace tessera::attention {
namespace {

const int kContexts[] = {63, 64, 65, 511, 512, 513, 1100};

struct Pools {
  ThreadPool one{ThreadPoolOptions{.threads = 1}}, two{ThreadPoolOptions{.threads = 2}},
      three{ThreadPoolOptions{.threads = 3}};
  Context contexts[3] = {Context(one), Context(two), Context(three)};
};

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

class InvarianceTest : public ::testing::TestWithParam<DType> {
 protected:
  AttentionProblem problem = make_problem(GetParam(), 6, 2, 40);
  size_t width = 6 * 40;
  Pools pools;

  // Row `position` of every sequence, alone: one thread, one sequence, nothing shared.
  std::vector<float> alone(const KvStorage& storage, const Sequence& s, const std::vector<int32_t>& table,
                           int position) {
    const StepRows step[] = {{&s, &table, position, 1}};
    return run_step(pools.contexts[0], problem, storage, step, {.two_phase = false});
  }
};

TEST_P(InvarianceTest, ChunksOfAPromptDoNotChangeItsRows) {
  const int length = 1100;
  const Sequence s(problem, length, kSeed);
  Cache whole(problem, 18);
  std::vector<int32_t> table;
  whole.append(pools.contexts[0], s, 0, length, table);
  const StepRows all[] = {{&s, &table, 0, length}};
  const std::vector<float> want = run_step(pools.contexts[0], problem, whole.storage, all);
  for (int chunk : {1, 17, 64, 200, 1100}) {
    for (Context& context : pools.contexts) {
      if (chunk == 1 && context.pool.size() == 3) continue;
      // A fresh cache: later positions are still poison when an early chunk runs.
      Cache cache(problem, 18);
      std::vector<int32_t> own;
      for (int first = 0; first < length; first += chunk) {
        const int rows = std::min(chunk, length - first);
        cache.append(context, s, first, first + rows, own);
        const StepRows step[] = {{&s, &own, first, rows}};
        const std::vector<float> got = run_step(context, problem, cache.storage, step);
        ASSERT_TRUE(same_bits(got, std::span(want).subspan(size_t(first) * width, size_t(rows) * width)))
            << "chunk " << chunk << " at " << first << ", threads " << context.pool.size();
      }
    }
  }
}

TEST_P(InvarianceTest, NumberOfRowsAndThreadsDoesNotChangeARow) {
  Cache cache(problem, 65 * 18 + 1);
  std::vector<Sequence> sequences;
  std::vector<std::vector<int32_t>> tables(65);
  std::vector<std::vector<float>> want;
  for (size_t i = 0; i < 65; ++i) {
    const int length = kContexts[i % 7] + int(i / 7);
    sequences.emplace_back(problem, length, kSeed + uint32_t(10 * i));
    cache.append(pools.contexts[1], sequences[i], 0, length, tables[i]);
    want.push_back(alone(cache.storage, sequences[i], tables[i], length - 1));
  }
  for (size_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 65}) {
    for (Context& context : pools.contexts) {
      std::vector<StepRows> step;
      for (size_t i = 0; i < rows; ++i)
        step.push_back({&sequences[i], &tables[i], sequences[i].length - 1, 1});
      const std::vector<float> got = run_step(context, problem, cache.storage, step);
      for (size_t i = 0; i < rows; ++i) {
        ASSERT_TRUE(same_bits(std::span(got).subspan(i * width, width), want[i]))
            << rows << " rows, threads " << context.pool.size() << ", row " << i;
      }
    }
  }
}

TEST_P(InvarianceTest, PrefillChunksAndDecodeRowsTogetherKeepTheirBits) {
  Cache cache(problem, 100);
  std::vector<Sequence> sequences;
  std::vector<std::vector<int32_t>> tables(4);
  const int lengths[] = {1100, 513, 300, 65};
  const int rows[] = {1, 130, 300, 17};
  std::vector<StepRows> step;
  std::vector<float> want;
  for (size_t i = 0; i < 4; ++i) {
    sequences.emplace_back(problem, lengths[i], kSeed + uint32_t(10 * i));
    cache.append(pools.contexts[1], sequences[i], 0, lengths[i], tables[i]);
  }
  for (size_t i = 0; i < 4; ++i) {
    step.push_back({&sequences[i], &tables[i], lengths[i] - rows[i], rows[i]});
    for (int row = 0; row < rows[i]; ++row) {
      const std::vector<float> one =
          alone(cache.storage, sequences[i], tables[i], lengths[i] - rows[i] + row);
      want.insert(want.end(), one.begin(), one.end());
    }
  }
  for (Context& context : pools.contexts) {
    EXPECT_TRUE(same_bits(run_step(context, problem, cache.storage, step), want));
  }
}

// The last row of a sequence by the kernel's own functions, its keys cut into segments at `edges`. A tile
// with an edge inside is walked once for each side, each time seeing its side alone.
std::vector<float> row_with_edges(const AttentionProblem& p, const KvStorage& storage, const Sequence& s,
                                  const std::vector<int32_t>& table, std::vector<int> edges) {
  const TileKernel& kernel = **find(p, Kind::decode);
  const int v_width = storage.format().v_width();
  const int32_t position = s.length - 1;
  edges.push_back(s.length);
  std::vector<float> out(size_t(p.heads) * size_t(p.v_head_dim));
  const KernelScope<TileKernel> scope(kernel);
  auto scratch = Buffer::create(size_t(kernel.scratch_bytes(p.head_dim, v_width)), "scratch");
  auto q = Buffer::create(size_t(kernel.query_bytes(p.head_dim)), "q");
  for (int head = 0; head < p.heads; ++head) {
    const size_t at = (size_t(position) * size_t(p.heads) + size_t(head)) * size_t(p.head_dim);
    kernel.pack_query(s.q.data() + at, p.head_dim, static_cast<float>(p.scale * 1.4426950408889634),
                      q->as<char>());
    float m = kNoMaximum, l[kSumLanes] = {}, total_m = kNoMaximum, total_l = 0;
    std::vector<float> o(static_cast<size_t>(v_width)), total_o(static_cast<size_t>(v_width));
    const StateRows segment{&m, l, o.data()}, total{&total_m, &total_l, total_o.data()};
    int32_t from = 0;
    for (const int32_t to : edges) {
      const ItemRows rows{.head_dim = p.head_dim,
                          .v_width = v_width,
                          .q = q->as<char>(),
                          .first_key = &from,
                          .end_key = &to,
                          .position = &position,
                          .slope = nullptr,
                          .softcap = 0,
                          .segment = segment,
                          .scratch = scratch->as<char>()};
      for (int tile = from / kKeyTile; tile * kKeyTile < to; ++tile) {
        const char* pair = storage.pair(0, table[size_t(tile)], head * p.kv_heads / p.heads);
        kernel.walk(rows, 0, 1, {pair, nullptr, tile * kKeyTile, std::min(kKeyTile, to - tile * kKeyTile)});
      }
      kernel.fold(total, segment, 1, v_width);
      from = to;
    }
    kernel.finish(total, p.v_head_dim, out.data() + size_t(head) * size_t(p.v_head_dim));
  }
  return out;
}

// What shows that the comparison can fail: one key more or less in a segment, and the bits are others.
TEST_P(InvarianceTest, ASegmentEdgeMovedByOneIsSeen) {
  const Sequence s(problem, 1100, kSeed);
  Cache cache(problem, 18);
  std::vector<int32_t> table;
  cache.append(pools.contexts[0], s, 0, 1100, table);
  const std::vector<float> want = alone(cache.storage, s, table, 1099);
  EXPECT_TRUE(same_bits(row_with_edges(problem, cache.storage, s, table, {512, 1024}), want));
  const std::vector<int> moves[] = {{511, 1024}, {513, 1024}, {512, 1023}, {512, 1025}};
  for (const std::vector<int>& edges : moves) {
    const std::vector<float> moved = row_with_edges(problem, cache.storage, s, table, edges);
    EXPECT_FALSE(same_bits(moved, want)) << "edges " << edges[0] << ", " << edges[1];
    for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(moved[i], want[i], 2e-3);
  }
}

// A random forest of sequences: each takes a random prefix of blocks of an earlier one, or none.
struct Forest {
  std::vector<Sequence> sequences;
  std::vector<std::vector<int32_t>> shared, copied;  // tables
  std::vector<int> rows;

  Forest(const AttentionProblem& p, Context& context, Cache& cache, Cache& copies, int count,
         std::mt19937& random, int most_rows) {
    for (int i = 0; i < count; ++i) {
      int prefix = 0;
      std::vector<int32_t> table;
      const size_t parent = i > 0 ? random() % size_t(i) : 0;
      if (i > 0 && random() % 8 != 0) {
        const size_t blocks = random() % (size_t(sequences[parent].length / kKeyTile) + 1);
        prefix = int(blocks) * kKeyTile;
        table.assign(shared[parent].begin(), shared[parent].begin() + long(blocks));
      }
      const int own = 1 + int(random() % 300);
      sequences.emplace_back(p, prefix + own, uint32_t(random()));
      if (prefix > 0) sequences.back().share(sequences[parent], p, prefix);
      cache.append(context, sequences.back(), prefix, prefix + own, table);
      shared.push_back(table);
      std::vector<int32_t> all;
      copies.append(context, sequences.back(), 0, prefix + own, all);
      copied.push_back(all);
      rows.push_back(1 + int(random() % size_t(std::min(most_rows, own))));
    }
  }
  std::vector<StepRows> step(bool copies) const {
    std::vector<StepRows> all;
    for (size_t i = 0; i < sequences.size(); ++i) {
      all.push_back(
          {&sequences[i], copies ? &copied[i] : &shared[i], sequences[i].length - rows[i], rows[i]});
    }
    return all;
  }
};

TEST_P(InvarianceTest, SharingOfAnySubsetAndDepthKeepsTheBits) {
  std::mt19937 random(kSeed);
  for (int round = 0; round < 12; ++round) {
    SCOPED_TRACE("seed " + std::to_string(kSeed) + " round " + std::to_string(round));
    if (round % 3 == 2) problem.mask.window_left = 200;
    const int count = 2 + int(random() % 14);
    Cache cache(problem, 400), copies(problem, 600);
    const Forest forest(problem, pools.contexts[1], cache, copies, count, random, round % 2 == 0 ? 1 : 40);
    const std::vector<float> want =
        run_step(pools.contexts[0], problem, copies.storage, forest.step(true), {.two_phase = false});
    for (const float value : want) ASSERT_TRUE(std::isfinite(value));
    for (Context& context : pools.contexts) {
      AttentionCounters on, off;
      EXPECT_TRUE(same_bits(run_step(context, problem, cache.storage, forest.step(false), {}, &on), want));
      EXPECT_TRUE(same_bits(
          run_step(context, problem, cache.storage, forest.step(false), {.two_phase = false}, &off), want));
      EXPECT_LE(on.block_reads, off.block_reads);
      EXPECT_EQ(off.shared_block_reads, 0u);
    }
    problem.mask.window_left = -1;
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, InvarianceTest, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& info) { return std::string(name(info.param)); });

}  // namespace
}  // namespace tessera::attention
