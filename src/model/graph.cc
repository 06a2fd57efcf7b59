#include "model/graph.h"

namespace tessera::model {
namespace {

class Builder {
 public:
  explicit Builder(const ModelConfig& config) : config_(config) {}

  Graph build() {
    const StackConfig& first = config_.stacks.front();
    int x = add({.kind = NodeKind::embed, .weight = WeightRole::token_embedding, .width = first.width});
    int layer = 0;
    for (const StackConfig& stack : config_.stacks) {
      for (int i = 0; i < stack.layers; ++i) x = decoder_layer(stack, layer++, x);
    }
    const int width = config_.stacks.back().width;
    const int h = unary(NodeKind::norm, -1, WeightRole::output_norm, x, width);
    const WeightRole head = config_.tied_head ? WeightRole::token_embedding : WeightRole::output;
    unary(NodeKind::head, -1, head, h, config_.vocab_size);
    return std::move(graph_);
  }

 private:
  // Pre-norm, gated: h = x + attention(norm(x)); h + down(glu(gate(norm(h)), up(norm(h)))).
  int decoder_layer(const StackConfig& stack, int layer, int x) {
    const int64_t q_width = int64_t{stack.heads} * stack.head_dim;
    const int64_t kv_width = int64_t{stack.kv_heads} * stack.head_dim;
    const int h = unary(NodeKind::norm, layer, WeightRole::attention_norm, x, stack.width);
    const int q =
        rope(layer, unary(NodeKind::linear, layer, WeightRole::q, h, q_width), q_width, stack.heads);
    const int k =
        rope(layer, unary(NodeKind::linear, layer, WeightRole::k, h, kv_width), kv_width, stack.kv_heads);
    const int v = unary(NodeKind::linear, layer, WeightRole::v, h, kv_width);
    const int o = add({.kind = NodeKind::attention,
                       .layer = layer,
                       .inputs = {q, k, v},
                       .width = q_width,
                       .heads = stack.heads});
    const int a = unary(NodeKind::linear, layer, WeightRole::attention_output, o, stack.width);
    const int y = binary(NodeKind::add, layer, x, a, stack.width);
    const int f = unary(NodeKind::norm, layer, WeightRole::ffn_norm, y, stack.width);
    const int gate = unary(NodeKind::linear, layer, WeightRole::gate, f, stack.ffn_width);
    const int up = unary(NodeKind::linear, layer, WeightRole::up, f, stack.ffn_width);
    const int g = binary(NodeKind::glu, layer, gate, up, stack.ffn_width);
    return binary(NodeKind::add, layer, y, unary(NodeKind::linear, layer, WeightRole::down, g, stack.width),
                  stack.width);
  }

  int unary(NodeKind kind, int layer, WeightRole weight, int x, int64_t width) {
    return add({.kind = kind, .layer = layer, .weight = weight, .inputs = {x, -1, -1}, .width = width});
  }
  int binary(NodeKind kind, int layer, int a, int b, int64_t width) {
    return add({.kind = kind, .layer = layer, .inputs = {a, b, -1}, .width = width});
  }
  int rope(int layer, int x, int64_t width, int heads) {
    return add(
        {.kind = NodeKind::rope, .layer = layer, .inputs = {x, -1, -1}, .width = width, .heads = heads});
  }
  int add(Node node) {
    node.output = graph_.values++;
    graph_.nodes.push_back(node);
    return node.output;
  }

  const ModelConfig& config_;
  Graph graph_;
};

}  // namespace

Graph build(const ModelConfig& config) {
  return Builder(config).build();
}

const char* name(NodeKind kind) {
  switch (kind) {
    case NodeKind::embed:
      return "embed";
    case NodeKind::norm:
      return "norm";
    case NodeKind::linear:
      return "linear";
    case NodeKind::rope:
      return "rope";
    case NodeKind::attention:
      return "attention";
    case NodeKind::add:
      return "add";
    case NodeKind::glu:
      return "glu";
    case NodeKind::head:
      return "head";
  }
  return "unknown";
}

const char* name(WeightRole role) {
  switch (role) {
    case WeightRole::none:
      return "none";
    case WeightRole::token_embedding:
      return "token_embedding";
    case WeightRole::attention_norm:
      return "attention_norm";
    case WeightRole::q:
      return "q";
    case WeightRole::k:
      return "k";
    case WeightRole::v:
      return "v";
    case WeightRole::attention_output:
      return "attention_output";
    case WeightRole::ffn_norm:
      return "ffn_norm";
    case WeightRole::gate:
      return "gate";
    case WeightRole::up:
      return "up";
    case WeightRole::down:
      return "down";
    case WeightRole::output_norm:
      return "output_norm";
    case WeightRole::output:
      return "output";
  }
  return "unknown";
}

}  // namespace tessera::model
