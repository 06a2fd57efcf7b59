// Executor: runs one step of a decoder over a batch of rows. Rows of several sequences come in one batch; K/V
// live in blocks that the caller names by id (it owns the ids, the executor owns the bytes).
#pragma once

#include <cstdint>
#include <span>

#include "tessera/status.h"

namespace tessera::model {

// The rows of one sequence in this step. Its rows are contiguous in the batch, at consecutive positions.
struct SequenceRows {
  int32_t first_row = 0;
  int32_t rows = 0;
  int32_t first_position = 0;  // of first_row; the K/V of positions before it are in the blocks already
  const int32_t* blocks =
      nullptr;  // [ceil((first_position + rows) / block_tokens)] block ids in order of position
};

// Copies rows [first, first + count) of one block to the same rows of another, in every layer.
struct BlockCopy {
  int32_t source = 0, destination = 0;
  int32_t first = 0, count = 0;
};

struct Batch {
  std::span<const int32_t> tokens;  // [rows]
  std::span<const SequenceRows> sequences;
  std::span<const BlockCopy> copies;    // carried out before anything is computed
  std::span<const int32_t> logit_rows;  // rows whose logits are wanted, rising
};

struct ExecutorCounters {
  uint64_t blocks_read = 0;  // K+V block pairs read by attention: one per (layer, kv head group, block) walk
  uint64_t shared_blocks_read = 0;  // of those, blocks read once for several sequences
  double attention_seconds = 0;     // time in attention, all layers
  double step_seconds = 0;
};

class Executor {
 public:
  virtual ~Executor() = default;
  virtual int vocab_size() const = 0;
  virtual int block_tokens() const = 0;
  virtual int64_t block_bytes() const = 0;  // of one block id: all layers, K and V
  virtual int num_blocks() const = 0;
  // Computes logits [logit_rows.size(), vocab_size], f32. Caller's mistakes are CHECKs. Not thread-safe.
  virtual void forward(const Batch& batch, float* logits) = 0;
  virtual ExecutorCounters counters() const = 0;  // since the start
};

}  // namespace tessera::model
