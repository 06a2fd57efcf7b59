#include "model/lowering.h"

#include <gtest/gtest.h>

#include <set>

namespace tessera::model {
namespace {

ModelConfig two_layers(bool tied) {
  ModelConfig config;
  config.architecture = "llama";
  config.vocab_size = 100;
  config.context_length = 64;
  config.tied_head = tied;
  StackConfig stack;
  stack.layers = 2;
  stack.width = 32;
  stack.heads = 4;
  stack.kv_heads = 2;
  stack.head_dim = 8;
  stack.ffn_width = 48;
  stack.windows = {0, 0};
  config.stacks.push_back(stack);
  return config;
}

TEST(Graph, HasTheNodesOfALlamaInOrder) {
  const Graph graph = build(two_layers(true));
  // Embedding, 15 nodes a layer, norm and head.
  EXPECT_EQ(graph.nodes.size(), 1u + 2 * 15 + 2);
  std::set<int> known;
  for (const Node& node : graph.nodes) {
    for (const int input : node.inputs) {
      EXPECT_TRUE(input < 0 || known.count(input) == 1)
          << name(node.kind) << " reads a value that is not made yet";
    }
    EXPECT_TRUE(known.insert(node.output).second);
  }
  EXPECT_EQ(graph.nodes.back().weight, WeightRole::token_embedding);
  EXPECT_EQ(build(two_layers(false)).nodes.back().weight, WeightRole::output);
}

TEST(Lowering, FusesToSixOpsALayerAndKeepsTheHead) {
  const Program program = lower(build(two_layers(true)), true);
  int fused = 0, plain_adds = 0;
  for (const Op& op : program.ops) {
    fused += op.kind == OpKind::qkv_rope_append || op.kind == OpKind::gate_up_silu ||
             op.kind == OpKind::add_rms_norm;
    plain_adds += op.kind == OpKind::add || op.kind == OpKind::glu || op.kind == OpKind::rope;
  }
  // The first norm of the first layer has nothing to add.
  EXPECT_EQ(fused, 2 + 2 + 4);
  EXPECT_EQ(plain_adds, 0);
  // embed, rms_norm, then qkv, attention, o, add+norm, gate_up, down, add+norm in each layer, head.
  EXPECT_EQ(program.ops.size(), 2u + 2 * 7 + 1);
  EXPECT_EQ(program.ops.back().kind, OpKind::head);
}

// Runs the program on labels instead of numbers: every read must find the value that was meant.
TEST(Lowering, NoBufferIsReusedWhileItsValueIsStillRead) {
  for (const bool fused : {false, true}) {
    const Graph graph = build(two_layers(false));
    const Program program = lower(graph, fused);
    // The unfused program has one op a node, so values and buffers can be compared one by one.
    std::vector<int> holds(program.widths.size(), -1);
    if (!fused) {
      ASSERT_EQ(program.ops.size(), graph.nodes.size());
      for (size_t i = 0; i < program.ops.size(); ++i) {
        for (int k = 0; k < 3; ++k) {
          const int buffer = program.ops[i].inputs[k];
          if (buffer < 0) continue;
          EXPECT_EQ(holds[static_cast<size_t>(buffer)], graph.nodes[i].inputs[k]) << "op " << i;
        }
        if (program.ops[i].outputs[0] >= 0) {
          holds[static_cast<size_t>(program.ops[i].outputs[0])] = graph.nodes[i].output;
        }
      }
    }
    for (const Op& op : program.ops) {
      for (const int output : op.outputs) {
        if (output < 0) continue;
        EXPECT_GE(program.widths[static_cast<size_t>(output)], op.width);
        for (const int input : op.inputs) {
          if (op.kind == OpKind::add_rms_norm && output == op.outputs[0]) continue;  // in place
          EXPECT_NE(output, input) << name(op.kind) << " writes what it reads";
        }
      }
    }
    EXPECT_LE(program.widths.size(), 6u) << to_string(program);
  }
}

}  // namespace
}  // namespace tessera::model
