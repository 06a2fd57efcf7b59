// The engine's attention: rows of many sequences, prefill chunks and decode rows together, over K and V in
// blocks.
//
// A WorkPlan is made once a step, on the host, from the sequences' block tables, and serves every layer. It
// cuts the step into work items and finds the runs of blocks that several sequences share: such a block is
// read once for all of them, with their query rows stacked (rows = tokens x heads of the GQA group). Private
// blocks follow.
//
// Invariants (law 1):
//  1. A row's keys are cut by position alone: tiles of kKeyTile, segments of kSegment. In every path a
//  segment starts
//     from the identity, takes its tiles in rising order and is folded into the row, first segment first.
//  2. So the bits of a row depend on its own q, its own K and V and the kernel: not on the other rows, the
//  chunks,
//     what is shared, two_phase or the number of threads. Work is divided at rows and at segment edges only.
//  3. Nothing is read of a block but the K rows of a tile that some row sees, and V rows up to the last such
//  key.
//     K past it may be anything, NaN too. (K and V up to it are taken for numbers.)
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attention/kv_storage.h"
#include "attention/problem.h"
#include "core/context.h"

namespace tessera::attention {

struct TileKernel;

// Row r of a sequence stands at first_position + r. Its K and V are already appended. It sees the positions
// up to its own (causal), of those the last window_left + 1 when the mask has a window.
struct PagedSequence {
  int32_t first_row = 0;  // of its rows in q and o
  int32_t rows = 0;
  int32_t first_position = 0;
  const int32_t* blocks = nullptr;  // [ceil(keys / kKeyTile)] ids in order of position. Ids of blocks
                                    // that lie wholly outside every row's window are never used.
  int32_t keys =
      -1;  // positions that have K and V; -1: first_position + rows. Differs for masks that look ahead.
  int32_t first_key = 0;  // no row sees a position before it
  // The last tree_keys keys are nodes of a speculative tree, the rows its last nodes (Ancestors of
  // tessera/attention.h, whose bits the kernel applies). depth [tree_keys] or null.
  int32_t tree_keys = 0;
  const int32_t* depth = nullptr;
};

struct WorkPlanOptions {
  int threads = 1;  // of the pool that will run it
  // Tables made of a caller's tensors: every feature is allowed, nothing is shared, and the ids of a sequence
  // follow each other, so that the plan stores no steps and is linear in the rows.
  bool dense = false;
  bool two_phase = true;  // false: every sequence walks its own table, shared or not (same bits)
};

// K+V tile pairs that the kernels read: one count for each (kv head, block) walk.
struct AttentionCounters {
  uint64_t block_reads = 0;
  uint64_t shared_block_reads = 0;  // of those, read once for several sequences
};

class WorkPlan {
 public:
  // `problem` gives heads, kv_heads, head_dim, dtype and the mask (batch and seqlens are not used). The
  // tables are read here only. Mistakes are CHECKs; what no kernel can do was refused by validate().
  WorkPlan(std::span<const PagedSequence> sequences, const AttentionProblem& problem,
           const WorkPlanOptions& options);

  // Since the plan was made, over all layers.
  AttentionCounters counters() const {
    return {reads_->all.load(std::memory_order_relaxed), reads_->shared.load(std::memory_order_relaxed)};
  }
  // Of one layer: what the plan reads, and what it would read if every sequence walked its own table.
  AttentionCounters planned_reads() const { return planned_; }
  int64_t unshared_reads() const { return unshared_reads_; }
  // The kernel, the items, and the cost model's figures for what was chosen and what was not; for people and
  // tests.
  std::string explain() const;
  // Of memory that the plan holds, its rows' fields included.
  int64_t bytes() const;

  // One tile for a run of the item's rows.
  struct Step {
    int32_t first_row;  // in the item
    int32_t rows;
    int32_t tile;  // position / kKeyTile
    int32_t block;
    int32_t valid;      // keys of the tile that any row of the step may see: reading ends there
    int32_t sequences;  // that share the read
  };
  // Rows [first_row, first_row + rows) of the plan over consecutive steps, for one kv head. Without `partial`
  // the item holds all segments of its rows and writes their output; with it, it holds one segment and leaves
  // the state at partial rows [partial, partial + rows).
  struct Item {
    int32_t first_row, rows;
    int32_t first_step, steps;  // first_step -1: dense, and these say what the steps are:
    int32_t first_tile, first_block, end_key;
    int32_t partial;  // -1: none
    int64_t cost;
  };
  // What the cost model found for groups of at most `most_sequences` stacked sequences (1: no sharing). Costs
  // are in rows of one tile; `longest` is the dearest item, `makespan` the bound that the choice goes by.
  struct Estimate {
    int32_t most_sequences;
    int64_t reads, shared_reads, cost, longest, makespan;
  };
  // A token whose segments were handed over apart; folded in this order.
  struct SplitToken {
    int32_t first_row;                // group() rows of the plan
    int32_t first_partial, partials;  // in partial_rows_
  };

 private:
  friend class PlanBuilder;
  friend class PlanRunner;
  struct Reads {
    std::atomic<uint64_t> all{0}, shared{0};
  };
  Step step_of(const Item& item, int32_t i) const {
    if (item.first_step >= 0) return steps_[static_cast<size_t>(item.first_step + i)];
    const int32_t tile = item.first_tile + i, left = item.end_key - tile * kKeyTile;
    return {0, item.rows, tile, item.first_block + i, left < kKeyTile ? left : kKeyTile, 1};
  }

  const TileKernel* kernel_ = nullptr;
  int heads_ = 0, kv_heads_ = 0, head_dim_ = 0;
  DType dtype_ = DType::f32;
  Mask mask_;
  // Per row of the plan (a token and a head of the group), the group innermost.
  std::vector<int32_t> batch_row_, position_, first_key_, end_key_;
  std::vector<Step> steps_;  // of items that are not dense
  std::vector<Item> items_;  // dearest first, in each worker's part of them
  std::vector<SplitToken> split_tokens_;
  std::vector<int32_t> partial_rows_;  // first partial row of (split token, segment)
  int32_t partials_ = 0;               // partial rows of one kv head
  int32_t most_rows_ = 0;              // of an item
  AttentionCounters planned_;
  int64_t unshared_reads_ = 0;
  std::vector<Estimate> estimates_;  // the chosen one first
  std::unique_ptr<Reads> reads_ = std::make_unique<Reads>();
};

// o [row][heads][v_head_dim] = attention of q [row][heads][head_dim] (f32, rows at their strides in floats)
// over `layer`. REQUIRES: plan made for this problem; storage of problem.dtype. Uses workspace slot 3 of
// every worker, and slot 2 of worker 0. Moves each tile pair of the plan once, q once and o once; adds to the
// plan's counters.
void paged_attention(Context& context, const AttentionProblem& problem, const KvStorage& storage, int layer,
                     const WorkPlan& plan, const float* q, int64_t q_row_stride, float* o,
                     int64_t o_row_stride);

}  // namespace tessera::attention
