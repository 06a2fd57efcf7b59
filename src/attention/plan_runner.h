// Runs a WorkPlan: shared by paged_attention and the contiguous forward.
#pragma once

#include <cstdint>

#include "attention/cpu/tile_kernel.h"
#include "attention/paged.h"

namespace tessera::attention {

struct RowKernels;

// Where rows of q and o lie. Row r is token r % seqlen of batch r / seqlen.
struct RowsIo {
  Strided<const void*> q;
  Strided<void*> o;
  float* lse = nullptr;  // [batch][heads][seqlen] or null
  int64_t seqlen = INT64_MAX;
  DType dtype = DType::f32;  // of q and o: f32, f16 or bf16
  // With cu_seqlens the rows of all sequences count as one batch, and a row's own sequence is found here.
  const int32_t* cu_seqlens_q = nullptr;
  int64_t sequences = 0;
};

class PlanRunner {
 public:
  PlanRunner(Context& context, const AttentionProblem& problem, const KvStorage& storage, int layer,
             const WorkPlan& plan, const RowsIo& io);
  // Queries outside, keys inside; by items over all threads.
  void run();
  // FlashAttention-1's order over the same tiles: for each sequence and kv head, every tile of keys meets all
  // query blocks in turn, whose states are read and written back in memory each time. The same bits as run().
  // Threads divide sequences and kv heads only. REQUIRES: a dense plan made for one thread (nothing split).
  void run_keys_outside();

 private:
  struct Scratch;
  struct Place {
    int64_t sequence, row;
  };
  // A row of q and o: of the batch axis, and the head.
  struct RowAt {
    int64_t batch, token, head;
  };
  Place place_of(int32_t row) const;
  template <typename Ahead, typename Use>
  void each_row(int32_t first_row, int32_t rows, int kv_head, Ahead&& ahead, Use&& use) const;
  const char* first_pair(int64_t unit) const;
  ItemRows start_rows(int32_t first_row, int32_t rows, int kv_head, const StateRows& segment,
                      const Scratch& scratch) const;
  void start_features(int32_t first_row, int32_t rows, int kv_head, const Scratch& scratch) const;
  void clear_total(const StateRows& total, int32_t rows) const;
  void clear_segment(const StateRows& segment, int32_t rows) const;
  void run_item(int64_t unit, const Scratch& scratch);
  void run_sequence(const WorkPlan::Item* items, size_t count, int kv_head, const Scratch& scratch);
  bool segment_ends(const WorkPlan::Item& item, int32_t step) const;
  void fold_split_token(const WorkPlan::SplitToken& token, int kv_head, const Scratch& scratch);
  void pack_row(const RowAt& at, void* packed) const;
  void write_row(const RowAt& at, const StateRows& total) const;
  void write_rows(int32_t first_row, int32_t rows, int kv_head, const StateRows& total) const;
  RowAt row_at(int32_t row, int kv_head) const;
  const char* query(const RowAt& at) const;
  char* output(const RowAt& at) const;
  Scratch scratch_of(int worker, int64_t rows) const;
  int64_t partial_rows() const;
  StateRows partial(int kv_head, int32_t row) const;

  Context& context_;
  const AttentionProblem& problem_;
  const KvStorage& storage_;
  const int layer_;
  const WorkPlan& plan_;
  const RowsIo& io_;
  const TileKernel& kernel_;
  const RowKernels& convert_;
  const int group_;
  const int v_width_;
  const int64_t element_bytes_;  // of q and o
  const bool featured_;          // rows go to walk_featured
  const DropoutKey dropout_;
  float* partials_ = nullptr;  // [kv_heads][partials][2 + v_width, padded]
};

}  // namespace tessera::attention
