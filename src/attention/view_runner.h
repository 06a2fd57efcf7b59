// Attention over a checked CacheView: keys are read where they lie, or packed into tiles in scratch as they
// are walked.
//
// Invariants:
//  1. Law 1, as in paged.h: tiles of kKeyTile, segments of kSegment, both from key 0; a segment starts from
//     the identity and is folded first segment first, whoever walked it.
//  2. Only keys that some row of the item sees are read; in a tile, V of the others is zero.
//  3. Whole tiles of few query rows are read where they lie, all others are packed first: equal bits.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/cache_view.h"
#include "attention/cpu/tile_kernel.h"
#include "attention/execution.h"
#include "attention/kv_storage.h"
#include "attention/row_runs.h"

namespace tessera::attention {

class ViewRunner {
 public:
  // The arguments must outlive the runner. unsupported when no kernel takes the problem.
  static Result<ViewRunner> create(Context& context, const AttentionProblem& problem, const CheckedView& view,
                                   const Rotary* rotary, const CacheTensors& tensors);
  void run();

 private:
  // Rows [first_token, first_token + tokens) of a sequence over tiles [first_tile, end_tile), for every kv
  // head. With `partial` it covers one segment and leaves its states at partial rows [partial, ...).
  struct Item {
    int32_t sequence, first_token, tokens;
    int32_t first_tile, end_tile;
    int32_t first_key;  // that some row sees
    int32_t partial;    // -1: none
    int64_t cost;
  };
  // Rows whose segments were handed over apart: parts [first, first + parts) of parts_ are their partial
  // rows.
  struct Split {
    int32_t sequence, first_token, tokens;
    int32_t first, parts;
  };
  // Keys [key, key + rows) of some heads, to be fetched while others are packed.
  struct Next {
    int64_t key;
    int rows, first_head, end_head;
  };
  struct Scratch;

  ViewRunner(Context& context, const AttentionProblem& problem, const CheckedView& view, const Rotary* rotary,
             const CacheTensors& tensors, const TileKernel& kernel);
  void plan();
  Scratch scratch_of(int worker) const;
  void run_unit(int64_t unit, const Scratch& scratch) const;
  bool in_place(int32_t rows) const;
  int64_t kernel_bytes() const { return align64(kernel_.scratch_bytes(problem_.head_dim, tile_.v_width())); }
  void walk_packed(const ViewSequence& sequence, int64_t tile, int64_t first, int64_t end, int first_head,
                   int end_head, int64_t end_seen, int32_t count, const Scratch& scratch) const;
  int unit_heads() const;
  int64_t parts() const { return (problem_.kv_heads + unit_heads_ - 1) / unit_heads_; }
  RowsOfTile rows_of(const ViewSequence& sequence, int64_t key, int64_t end, int first_head,
                     int end_head) const;
  RowsOfTile start_of(int64_t unit) const;
  void pack_rows(const Item& item, int kv_head, int32_t at, const Scratch& scratch) const;
  void pack_keys(const ViewSequence& sequence, int kv_head, int64_t tile, int64_t first, int64_t end,
                 const Next* next, const Scratch& scratch) const;
  void write_rows(int32_t sequence, int32_t first_token, int32_t tokens, int kv_head,
                  const StateRows& total) const;
  StateRows rows_from(const StateRows& state, int64_t row, int sums) const;
  StateRows partial(int kv_head, int64_t row) const;

  Context& context_;
  const AttentionProblem& problem_;
  const CheckedView& view_;
  const Rotary* rotary_;
  const CacheTensors& tensors_;
  const TileKernel& kernel_;
  const KvFormat tile_;  // f16 is held as f32
  const int group_;
  std::vector<Item> items_;  // dearest first
  std::vector<Split> splits_;
  std::vector<int32_t> parts_;
  int64_t partials_ = 0;             // partial rows of one kv head
  int32_t most_rows_ = 0;            // of an item and kv head
  int unit_heads_ = 1;               // kv heads that one worker takes together
  float* partial_memory_ = nullptr;  // [kv_heads][m, l [partials], o [partials][v_width]]
};

}  // namespace tessera::attention
