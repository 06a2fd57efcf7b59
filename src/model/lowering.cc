#include "model/lowering.h"

#include <algorithm>

#include "core/check.h"
#include "core/format.h"

namespace tessera::model {
namespace {

OpKind plain(NodeKind kind) {
  switch (kind) {
    case NodeKind::embed:
      return OpKind::embed;
    case NodeKind::norm:
      return OpKind::rms_norm;
    case NodeKind::linear:
      return OpKind::linear;
    case NodeKind::rope:
      return OpKind::rope;
    case NodeKind::attention:
      return OpKind::attention;
    case NodeKind::add:
      return OpKind::add;
    case NodeKind::glu:
      return OpKind::glu;
    case NodeKind::head:
      return OpKind::head;
  }
  return OpKind::embed;
}

// Finds the fusions. An op's inputs and outputs are still value ids here.
class Fuser {
 public:
  explicit Fuser(const Graph& graph) : graph_(graph), producer_(static_cast<size_t>(graph.values), -1) {
    for (size_t i = 0; i < graph.nodes.size(); ++i) {
      producer_[static_cast<size_t>(graph.nodes[i].output)] = static_cast<int>(i);
    }
  }

  std::vector<Op> run() {
    std::vector<bool> done(graph_.nodes.size(), false);
    std::vector<Op> ops;
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      if (done[i]) continue;
      const Node& node = graph_.nodes[i];
      Op op = make(node);
      if (node.kind == NodeKind::linear && node.weight == WeightRole::q) {
        fuse_qkv(i, op, ops, done);
      } else if (node.kind == NodeKind::linear && node.weight == WeightRole::gate) {
        fuse_gate_up(i, op, done);
      } else if (node.kind == NodeKind::add && i + 1 < graph_.nodes.size() &&
                 graph_.nodes[i + 1].kind == NodeKind::norm && graph_.nodes[i + 1].inputs[0] == node.output) {
        const Node& norm = graph_.nodes[i + 1];
        op.kind = OpKind::add_rms_norm;
        op.layer = norm.layer;
        op.weight = norm.weight;
        op.outputs[1] = norm.output;
        done[i + 1] = true;
      }
      ops.push_back(op);
    }
    return ops;
  }

  Op make(const Node& node) const {
    Op op{.kind = plain(node.kind), .layer = node.layer, .weight = node.weight};
    std::copy(std::begin(node.inputs), std::end(node.inputs), op.inputs);
    op.outputs[0] = node.output;
    op.width = node.width;
    op.heads = node.heads;
    if (node.inputs[0] >= 0) {
      op.input_width =
          graph_.nodes[static_cast<size_t>(producer_[static_cast<size_t>(node.inputs[0])])].width;
    }
    return op;
  }

 private:
  // q, rope q, k, rope k, v, attention stand together in the graph; the attention that follows reads q alone.
  void fuse_qkv(size_t at, Op& op, std::vector<Op>& ops, std::vector<bool>& done) {
    TESSERA_CHECK(at + 5 < graph_.nodes.size());
    const Node* n = &graph_.nodes[at];
    TESSERA_CHECK(n[1].kind == NodeKind::rope && n[2].weight == WeightRole::k &&
                  n[3].kind == NodeKind::rope && n[4].weight == WeightRole::v &&
                  n[5].kind == NodeKind::attention);
    op.kind = OpKind::qkv_rope_append;
    op.outputs[0] = n[1].output;
    op.heads = n[1].heads;
    op.width = n[0].width + n[2].width + n[4].width;
    ops.push_back(op);
    op = make(n[5]);
    op.inputs[1] = op.inputs[2] = -1;
    for (size_t i = at; i <= at + 5; ++i) done[i] = true;
  }
  void fuse_gate_up(size_t at, Op& op, std::vector<bool>& done) {
    TESSERA_CHECK(at + 2 < graph_.nodes.size());
    const Node* n = &graph_.nodes[at];
    TESSERA_CHECK(n[1].weight == WeightRole::up && n[2].kind == NodeKind::glu);
    op.kind = OpKind::gate_up_silu;
    op.outputs[0] = n[2].output;
    for (size_t i = at; i <= at + 2; ++i) done[i] = true;
  }

  const Graph& graph_;
  std::vector<int> producer_;  // value -> node
};

// Replaces value ids by buffers, reusing a buffer once its value has been read for the last time.
void assign_buffers(Program& program, int values) {
  std::vector<int> last_read(static_cast<size_t>(values), -1);
  for (size_t i = 0; i < program.ops.size(); ++i) {
    for (int input : program.ops[i].inputs) {
      if (input >= 0) last_read[static_cast<size_t>(input)] = static_cast<int>(i);
    }
  }
  std::vector<int> buffer_of(static_cast<size_t>(values), -1);
  std::vector<int> free;
  for (size_t i = 0; i < program.ops.size(); ++i) {
    Op& op = program.ops[i];
    std::vector<int> dying;
    for (int& input : op.inputs) {
      if (input < 0) continue;
      const int value = input;
      input = buffer_of[static_cast<size_t>(value)];
      if (last_read[static_cast<size_t>(value)] == static_cast<int>(i)) dying.push_back(input);
    }
    if (op.kind == OpKind::head) op.outputs[0] = -1;  // logits go to the caller's memory
    // An output never takes the buffer of an input of the same op, except the running sum of add_rms_norm,
    // which is updated in place.
    for (int side = 0; side < 2; ++side) {
      int& output = op.outputs[side];
      if (output < 0) continue;
      const int value = output;
      const bool in_place = op.kind == OpKind::add_rms_norm && side == 0 &&
                            std::find(dying.begin(), dying.end(), op.inputs[0]) != dying.end();
      if (in_place) {
        output = op.inputs[0];
        std::erase(dying, output);
      } else if (!free.empty()) {
        output = free.back();
        free.pop_back();
      } else {
        output = static_cast<int>(program.widths.size());
        program.widths.push_back(0);
      }
      int64_t& width = program.widths[static_cast<size_t>(output)];
      width = std::max(width, op.width);
      buffer_of[static_cast<size_t>(value)] = output;
      // Nobody reads it (the sum before the last norm): free again after this op.
      if (last_read[static_cast<size_t>(value)] < 0) dying.push_back(output);
    }
    std::sort(dying.begin(), dying.end());
    dying.erase(std::unique(dying.begin(), dying.end()), dying.end());
    free.insert(free.end(), dying.begin(), dying.end());
  }
}

}  // namespace

Program lower(const Graph& graph, bool fused) {
  Program program;
  program.fused = fused;
  Fuser fuser(graph);
  if (fused) {
    program.ops = fuser.run();
  } else {
    for (const Node& node : graph.nodes) program.ops.push_back(fuser.make(node));
  }
  assign_buffers(program, graph.values);
  return program;
}

const char* name(OpKind kind) {
  switch (kind) {
    case OpKind::embed:
      return "embed";
    case OpKind::rms_norm:
      return "rms_norm";
    case OpKind::linear:
      return "linear";
    case OpKind::rope:
      return "rope";
    case OpKind::attention:
      return "attention";
    case OpKind::add:
      return "add";
    case OpKind::glu:
      return "glu";
    case OpKind::head:
      return "head";
    case OpKind::add_rms_norm:
      return "add_rms_norm";
    case OpKind::qkv_rope_append:
      return "qkv_rope_append";
    case OpKind::gate_up_silu:
      return "gate_up_silu";
  }
  return "unknown";
}

std::string to_string(const Program& program) {
  std::string text;
  for (const Op& op : program.ops) {
    text += format("{:>3} {:<16} {:<16} in {} {} {} out {} {} width {}\n", op.layer, name(op.kind),
                   name(op.weight), op.inputs[0], op.inputs[1], op.inputs[2], op.outputs[0], op.outputs[1],
                   op.width);
  }
  return text;
}

}  // namespace tessera::model
