// Graph: what a decoder computes, in some fifteen kinds of node, unfused, written once from the
// configuration.
//
// A value is a matrix [rows, width] of f32, numbered from 0; a node reads values and writes one. Executors
// take a graph and a lowering of it (lowering.h): they run it, count it, or (training) tape it. Nothing here
// touches weights.
#pragma once

#include <cstdint>
#include <vector>

#include "model/config.h"

namespace tessera::model {

enum class NodeKind : uint8_t {
  embed,      // tokens -> [rows, width]
  norm,       // x -> RMS norm of x
  linear,     // x -> x W^T
  rope,       // x [rows, heads * head_dim] -> rotated by the rows' positions
  attention,  // q, k, v -> o; appends k and v to the layer's cache first
  add,        // a, b -> a + b
  glu,        // gate, up -> activation(gate) * up
  head,       // x -> logits of the wanted rows
};
const char* name(NodeKind kind);

// Which weight a node reads; with the layer it names one tensor.
enum class WeightRole : uint8_t {
  none,
  token_embedding,
  attention_norm,
  q,
  k,
  v,
  attention_output,
  ffn_norm,
  gate,
  up,
  down,
  output_norm,
  output
};
const char* name(WeightRole role);

struct Node {
  NodeKind kind;
  int layer = -1;  // -1: outside the layers
  WeightRole weight = WeightRole::none;
  int inputs[3] = {-1, -1, -1};  // value ids; -1: unused
  int output = -1;               // value id
  int64_t width = 0;             // columns of the output
  int heads = 0;                 // rope and attention: query heads, or kv heads for the rope of k
};

struct Graph {
  std::vector<Node> nodes;  // in an order in which they can run
  int values = 0;
};

// REQUIRES: a validated config of a supported family.
Graph build(const ModelConfig& config);

}  // namespace tessera::model
