// StepPlan: everything that a runner needs for one step of the model, as flat arrays of fixed capacity inside
// one allocation, so that it is one copy to a device and one broadcast to ranks.
//
// Who fills it: the scheduler, on the engine's thread. Who reads it: a Runner, until submit() returns.
//
// Invariants:
//  1. The rows of a sequence are contiguous, at consecutive positions, and each sequence comes at most once.
//  2. Copies come before all rows. No block is the source of one copy and the destination of another, no
//     destination comes twice, and no row writes a (block, offset) that a copy reads.
//  3. logit_rows rises strictly. Several samples may name one logit row (parallel samples of one prompt): a
//     runner that samples in place copies the logits for all but one of them.
//  4. Steps are carried out in the order of submission. With one step of lag, a row may take its token from
//     the previous step's result (row_token_source), and blocks that were given up at the end of a step may
//     be written by the next one.
//  5. A (block, offset) is written by at most one row of a step, and its block belongs to that row's sequence
//     alone, except that a cached tail may hold rows before the offset.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/buffer.h"
#include "engine/request.h"
#include "model/executor.h"
#include "tessera/status.h"

namespace tessera::engine {

// How the token came, which is a property of the token and never of the batch: a backend with two
// arithmetics picks by this alone, also when the row is computed again after a preemption.
enum class RowKind : uint8_t { prompt, step };

struct StepLimits {
  int max_rows = 0;                 // of one step
  int max_sequences = 0;            // with rows, or with samples
  int max_scored_rows = 0;          // prompt rows with PlanSample::scored
  int max_blocks_per_sequence = 0;  // entries of one block table
  int max_model_len = 0;            // tokens of one sequence, for the history that penalties read
};

struct PlanSequence {
  int32_t first_row = 0;
  int32_t rows = 0;            // >= 1
  int32_t first_position = 0;  // of first_row; K/V of the positions before it are in the blocks already
  int32_t table = 0;           // offset into StepPlan::tables
  int32_t blocks = 0;          // entries there, >= ceil((first_position + rows) / block_tokens)
};

struct TokenBias {
  int32_t token = 0;
  float bias = 0.0f;
};

// One token to draw, or (draw = false) the question whether the row's logits are finite: the last row of
// every prefill chunk is asked for, so that no K/V enters the prefix tree unchecked. With `scored`, also how
// likely that token is.
struct PlanSample {
  int32_t logit_row = 0;  // index into logit_rows
  bool draw = true;
  int32_t scored = -1;  // with draw = false: the prompt's next token, or -1
  int32_t top_k = 0;
  float temperature = 1.0f;
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  int32_t logprobs = -1;
  uint64_t seed = 0;
  uint32_t stream = 0;
  uint32_t token_index = 0;  // of the token to be drawn, counted from the first generated one
  // Into StepPlan::ids. The history is there only when a penalty needs it.
  int32_t history = 0;
  int32_t history_prompt = 0;  // tokens of the prompt
  int32_t history_output = 0;  // known generated tokens, right behind them
  int32_t history_last_source =
      -1;              // >= 0: one more generated token, the previous step's sample of this index
  int32_t banned = 0;  // into StepPlan::ids: ids that may not come now
  int32_t banned_count = 0;
  int32_t bias = 0;  // into StepPlan::biases
  int32_t bias_count = 0;
};

class StepPlan {
 public:
  // A resource_exhausted Status when there is no memory. Pages that no step touches are never resident.
  static Result<StepPlan> create(const StepLimits& limits);

  // Empties it; the capacity stays.
  void clear();

  uint64_t step = 0;  // counts plans, from 1; rises by one from a submitted plan to the next

  // [rows]
  int32_t rows = 0;
  int32_t* row_token = nullptr;  // -1 when row_token_source >= 0
  int32_t* row_token_source =
      nullptr;  // -1: the token is known; else the previous step's sample of this index
  int32_t* row_position = nullptr;
  int32_t* row_slot = nullptr;  // block * block_tokens + offset: where its K/V go
  int32_t* row_sequence = nullptr;
  RowKind* row_kind = nullptr;

  int32_t num_sequences = 0;
  PlanSequence* sequences = nullptr;  // [num_sequences]
  int32_t num_tables = 0;
  int32_t* tables = nullptr;  // [num_tables] block ids

  int32_t num_copies = 0;
  model::BlockCopy* copies = nullptr;  // [num_copies]

  int32_t num_logit_rows = 0;
  int32_t* logit_rows = nullptr;  // [num_logit_rows]
  int32_t num_samples = 0;
  PlanSample* samples = nullptr;  // [num_samples]; a StepResult answers in this order

  int32_t num_ids = 0;
  int32_t* ids = nullptr;  // histories and banned ids
  int32_t num_biases = 0;
  TokenBias* biases = nullptr;

  std::span<const int32_t> table_of(const PlanSequence& sequence) const {
    return {tables + sequence.table, static_cast<size_t>(sequence.blocks)};
  }
  std::span<const int32_t> history_prompt_of(const PlanSample& sample) const {
    return {ids + sample.history, static_cast<size_t>(sample.history_prompt)};
  }
  std::span<const int32_t> history_output_of(const PlanSample& sample) const {
    return {ids + sample.history + sample.history_prompt, static_cast<size_t>(sample.history_output)};
  }
  std::span<const int32_t> banned_of(const PlanSample& sample) const {
    return {ids + sample.banned, static_cast<size_t>(sample.banned_count)};
  }
  std::span<const TokenBias> biases_of(const PlanSample& sample) const {
    return {biases + sample.bias, static_cast<size_t>(sample.bias_count)};
  }
  // The sampler's parameters of one sample; `params` is reused between calls. Stop conditions are not in a
  // plan.
  void load_params(const PlanSample& sample, SamplingParams* params) const;

  const StepLimits& limits() const { return limits_; }

 private:
  StepLimits limits_;
  Buffer storage_;
};

}  // namespace tessera::engine
