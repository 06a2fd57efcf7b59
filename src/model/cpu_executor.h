// The CPU's executor of decoder graphs.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "core/thread_pool.h"
#include "model/executor.h"
#include "model/model_file.h"
#include "ops/packed_weight.h"

namespace tessera::model {

struct CpuExecutorOptions {
  // Behaviour.
  ops::Compute compute = ops::Compute::quantized;
  DType kv_dtype = DType::bf16;  // bf16 or f32
  int max_positions = 0;         // longest sequence; 0: the model's context
  // Performance.
  int num_blocks = 0;     // of the KV pool, >= 1
  int max_rows = 256;     // of one step
  bool two_phase = true;  // read shared blocks once per step; same bits
  bool fused = true;      // the fused lowering; same bits
  std::function<void(double)> progress;
};

// Bytes of one block id (all layers, K and V) under these options, before anything is allocated.
int64_t kv_block_bytes(const ModelConfig& config, DType kv_dtype);

// The pool must outlive the executor. Errors: unsupported (a feature of the model that the CPU's ops lack, by
// name), resource_exhausted, and those of reading the file.
Result<std::unique_ptr<Executor>> create_cpu_executor(const ModelFile& model,
                                                      const CpuExecutorOptions& options, ThreadPool& pool);

}  // namespace tessera::model
