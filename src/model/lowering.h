// Lowering: a graph as a list of ops that an executor has. Either node by node, or with the fusions that save
// passes over memory; both give the same bits, and the unfused form stays as the test of the fused one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/graph.h"

namespace tessera::model {

enum class OpKind : uint8_t {
  // One node each.
  embed,
  rms_norm,
  linear,
  rope,
  attention,
  add,
  glu,
  head,
  // Fused.
  add_rms_norm,     // outputs[0] = inputs[0] + inputs[1]; outputs[1] = norm of it
  qkv_rope_append,  // outputs[0] = q, k rotated and v side by side; k and v are appended to the layer's cache
  gate_up_silu,     // outputs[0] = activation(gate) * up; one weight
};
const char* name(OpKind kind);

struct Op {
  OpKind kind;
  int layer = -1;
  WeightRole weight = WeightRole::none;  // q and gate stand for the fused weights q+k+v and gate+up
  int inputs[3] = {-1, -1, -1};          // buffers
  int outputs[2] = {-1, -1};             // buffers
  int64_t width = 0;                     // columns of outputs[0]
  int heads = 0;
  int64_t input_width = 0;  // columns of inputs[0]
};

// Buffers are reused as soon as their value is dead; widths[b] is the widest value that buffer b ever holds.
struct Program {
  std::vector<Op> ops;
  std::vector<int64_t> widths;
  bool fused = false;
};

Program lower(const Graph& graph, bool fused);

// The program as text, one op a line; for `inspect` and tests.
std::string to_string(const Program& program);

}  // namespace tessera::model
