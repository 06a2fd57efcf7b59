// What `tessera explain` shows. Every number of the algorithm comes from the library's own code: the tile
// kernel and its merge, rope_frequencies and rope_forward, alibi_slopes, KvFormat, the kernel registry. Only
// what it is compared with (the naive forms, double) is computed here.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "tessera/attention.h"
#include "tessera/rope.h"
#include "tessera/status.h"

namespace tessera::cli {

struct Explanation {
  std::string text;
  boost::json::object json;  // the same figures
};

// Softmax of `scores` (1 to 256 finite numbers): naive in f16, bf16 and f32, in two passes, and online in one
// pass, a score a step.
Result<Explanation> explain_softmax(const std::vector<double>& scores);

struct AttentionWalk {
  std::string text;  // words apart by spaces, at most 512
  int block = 4;     // keys a tile, 1 to 64
  int row = -1;      // of the only row to show; -1: all
  bool causal = false;
};
// Attention of a sentence over itself, tile by tile: m, l and the rescaling of each row.
Result<Explanation> explain_attention(const AttentionWalk& options);

struct HeadsDrawing {
  int heads = 8;
  int kv_heads = 2;
  int head_dim = 64;
  int layers = 1;
  int64_t seqlen = 1024;
  DType dtype = DType::bf16;
};
// Who reads which K and V in MHA, GQA and MQA, and the bytes.
Result<Explanation> explain_heads(const HeadsDrawing& options);

struct AlibiDrawing {
  int heads = 8;
  int head = 0;       // whose matrix is drawn
  int positions = 6;  // 1 to 64
};
Result<Explanation> explain_alibi(const AlibiDrawing& options);

struct RopeDrawing {
  attention::RopeConfig config;  // of its scaling only factor, lengths and bands count: every kind is shown
  int64_t position = 5;
};
// Frequencies with each scaling, and one rotation.
Result<Explanation> explain_rope(const RopeDrawing& options);

// The kernels that forward and backward take for the problem, and why not the others.
// On this machine, or on a context's device.
Explanation explain_kernel(const attention::AttentionProblem& problem, Context* context = nullptr);

}  // namespace tessera::cli
