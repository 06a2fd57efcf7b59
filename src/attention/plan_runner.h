// Runs a WorkPlan: shared by paged_attention and the contiguous forward.
#pragma once

#include <cstdint>

#include "attention/cpu/tile_kernel.h"
#include "attention/paged.h"

namespace tessera::attention {

// Where rows of q and o lie. Row r is token r % seqlen of batch r / seqlen.
struct RowsIo {
  const void* q = nullptr;  // f32, or bf16 when bf16_rows
  int64_t q_batch_stride = 0, q_row_stride = 0, q_head_stride = 0;
  void* o = nullptr;
  int64_t o_batch_stride = 0, o_row_stride = 0, o_head_stride = 0;
  float* lse = nullptr;  // [batch][heads][seqlen] or null
  int64_t seqlen = INT64_MAX;
  bool bf16_rows = false;
};

class PlanRunner {
 public:
  PlanRunner(Context& context, const AttentionProblem& problem, const KvStorage& storage, int layer,
             const WorkPlan& plan, const RowsIo& io);
  void run();

 private:
  struct Scratch;
  const char* first_pair(int64_t unit) const;
  void run_item(int64_t unit, const Scratch& scratch);
  void fold_split_token(const WorkPlan::SplitToken& token, int kv_head, const Scratch& scratch);
  void pack_row(int32_t row, int kv_head, void* packed) const;
  void write_row(int32_t row, int kv_head, const StateRows& total) const;
  Scratch scratch_of(int worker) const;
  StateRows partial(int kv_head, int32_t row) const;

  Context& context_;
  const AttentionProblem& problem_;
  const KvStorage& storage_;
  const int layer_;
  const WorkPlan& plan_;
  const RowsIo& io_;
  const TileKernel& kernel_;
  const int group_;
  const int v_width_;
  float* partials_ = nullptr;  // [kv_heads][partials][2 + v_width, padded]
};

}  // namespace tessera::attention
