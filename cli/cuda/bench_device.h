// `tessera bench ... --device cuda`. A build without CUDA has the same functions, which say so.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/status.h"

namespace tessera::cli {

// Cells are the product of the lists; dense attention of equal lengths.
struct DeviceAttentionOptions {
  int device = 0;
  std::vector<int64_t> seqlens = {512, 1024, 2048, 4096, 8192, 16384};
  std::vector<int> dims = {64, 128};
  int batch = 0;                    // 0: as many sequences as make 16,384 tokens
  int heads = 0;                    // 0: as many as make 2,048 elements a token
  std::vector<int> kv_heads = {0};  // 0: as many as heads
  std::vector<std::string> dtypes = {"bf16"};
  std::string causal = "both";
  bool backward = false;
  int rounds = 11;
  std::string json;
};
// Our kernels beside the dense peak and a matrix product of the same run; fails when a result is wrong.
Status bench_attention_on_device(const DeviceAttentionOptions& options);

// One query a sequence over caches of the caller's.
struct DeviceDecodeOptions {
  int device = 0;
  int batch = 32, heads = 32;
  // Also steps of one sequence of 64, 256 and 1,024 keys, in blocks of 64: latency, not bandwidth.
  bool small_steps = true;
  std::vector<int> kv_heads = {32, 8};
  int dim = 128;
  std::vector<int64_t> lengths = {1024, 2048, 4096};
  std::vector<int> pages = {64, 16, 0};  // slots of a block; 0: contiguous
  std::string dtype = "bf16";
  int rounds = 11;
  std::string json;
};
// Beside the fastest reader of as many bytes in the same rounds; fails when a result is wrong.
Status bench_decode_on_device(const DeviceDecodeOptions& options);

// One query a sequence over prefixes that sequences share: prompts of which nothing, a half, three quarters
// and all is common to the batch, and a tree of three levels. bf16.
struct DeviceTreeOptions {
  int device = 0;
  int batch = 32, heads = 32;
  std::vector<int> kv_heads = {32, 8};
  int dim = 128;
  std::vector<int64_t> prompts = {1024, 2048, 4096};
  int page = 64;
  int rounds = 11;
  std::string json;
};
// Beside the paged kernel on the same tables and the fastest reader of the unique bytes, in the same rounds,
// and whether a row is within the limit (bench/cuda/figures.h). Fails when a result is wrong.
Status bench_tree_on_device(const DeviceTreeOptions& options);

}  // namespace tessera::cli
