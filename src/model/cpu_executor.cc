#include "model/cpu_executor.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "attention/kv_storage.h"
#include "attention/paged.h"
#include "core/clock.h"
#include "core/context.h"
#include "core/format.h"
#include "model/lowering.h"
#include "model/weights.h"
#include "ops/embed.h"
#include "ops/glu.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"

namespace tessera::model {
namespace {

using ops::ConstRowsView;
using ops::RowsView;

class CpuExecutor final : public Executor {
 public:
  CpuExecutor(const ModelConfig& config, const CpuExecutorOptions& options, ThreadPool& pool)
      : config_(config), options_(options), context_(pool) {}

  // Invariants after create():
  //  1. buffers_[b] has options_.max_rows rows of program_.widths[b] columns; quantized_[b] takes its place
  //  where the
  //     reader of a value wants int8 rows.
  //  2. Rows of a step keep their order; after the last attention only the rows whose logits are wanted are
  //  left.
  Status create(const ModelFile& model) {
    const StackConfig& stack = config_.stacks.front();
    if (config_.stacks.size() != 1)
      return unsupported("a model of several stacks of layers is not supported");
    if (stack.qk_norm || stack.qkv_bias || !stack.gated || !stack.pre_norm || !stack.causal) {
      return unsupported("the CPU runs causal pre-norm gated layers without biases and q/k norms");
    }
    if (!stack.rope.factors.empty())
      return unsupported("rope factors (rope_freqs.weight) are not supported yet");
    program_ = lower(build(config_), options_.fused);
    TESSERA_ASSIGN_OR_RETURN(
        weights_,
        Weights::load(context_, model,
                      {.compute = options_.compute, .fused = options_.fused, .progress = options_.progress}));
    TESSERA_ASSIGN_OR_RETURN(
        rope_, ops::RopeTable::create(
                   {.dims = stack.rope.dims,
                    .base = stack.rope.base,
                    .style = stack.rope.kind == RopeKind::interleaved ? ops::RopeStyle::interleaved
                                                                      : ops::RopeStyle::half,
                    .scaling = stack.rope.scale == 1.0f ? ops::RopeScaling::none : ops::RopeScaling::linear,
                    .factor = stack.rope.scale,
                    .max_positions = options_.max_positions}));
    TESSERA_ASSIGN_OR_RETURN(storage_, attention::KvStorage::create(kv_format(stack, options_.kv_dtype),
                                                                    stack.layers, options_.num_blocks));
    for (const int64_t width : program_.widths) {
      TESSERA_ASSIGN_OR_RETURN(
          Buffer buffer,
          Buffer::create(static_cast<size_t>(width * options_.max_rows) * sizeof(float), "activations"));
      buffers_.push_back(std::move(buffer));
    }
    quantized_.resize(program_.widths.size());
    is_quantized_.assign(program_.widths.size(), false);
    plan_quantized_values();
    for (size_t i = 0; i < program_.ops.size(); ++i) {
      if (program_.ops[i].kind == OpKind::attention) last_attention_ = i;
    }
    return {};
  }

  static attention::KvFormat kv_format(const StackConfig& stack, DType dtype) {
    return {
        .dtype = dtype, .kv_heads = stack.kv_heads, .head_dim = stack.head_dim, .v_head_dim = stack.head_dim};
  }

  int vocab_size() const override { return config_.vocab_size; }
  int block_tokens() const override { return attention::kKeyTile; }
  int64_t block_bytes() const override { return storage_.bytes_per_block(); }
  int num_blocks() const override { return options_.num_blocks; }
  ExecutorCounters counters() const override { return counters_; }

  void forward(const Batch& batch, float* logits) override {
    const int64_t start = system_clock().now_ns();
    begin(batch);
    for (size_t i = 0; i < program_.ops.size(); ++i) {
      run(program_.ops[i], needs_quantized_[i], batch, logits);
      if (i == last_attention_) {
        if (batch.logit_rows.empty()) break;
        keep_rows(i, batch.logit_rows);
      }
    }
    for (const auto& [window, plan] : plans_) {
      counters_.blocks_read += plan.counters().block_reads;
      counters_.shared_blocks_read += plan.counters().shared_block_reads;
    }
    counters_.step_seconds += static_cast<double>(system_clock().now_ns() - start) * 1e-9;
  }

 private:
  // A value that only int8 kernels read is made as int8 by the op before.
  void plan_quantized_values() {
    needs_quantized_.assign(program_.ops.size(), false);
    if (!program_.fused) return;
    for (size_t i = 0; i + 1 < program_.ops.size(); ++i) {
      const Op& op = program_.ops[i];
      const Op& next = program_.ops[i + 1];
      const bool reads = next.kind == OpKind::linear || next.kind == OpKind::qkv_rope_append ||
                         next.kind == OpKind::gate_up_silu || next.kind == OpKind::head;
      const bool makes =
          op.kind == OpKind::rms_norm || op.kind == OpKind::add_rms_norm || op.kind == OpKind::gate_up_silu;
      if (!reads || !makes || next.inputs[0] != output_of(op)) continue;
      const bool whole_blocks = program_width(op) % ops::kQuantBlock == 0;
      needs_quantized_[i] = whole_blocks && weights_.matrix(next.layer, next.weight).takes_quantized();
    }
  }
  static int output_of(const Op& op) {
    return op.kind == OpKind::add_rms_norm ? op.outputs[1] : op.outputs[0];
  }
  static int64_t program_width(const Op& op) { return op.width; }

  void begin(const Batch& batch) {
    rows_ = static_cast<int64_t>(batch.tokens.size());
    TESSERA_CHECK(rows_ >= 1 && rows_ <= options_.max_rows);
    positions_.resize(static_cast<size_t>(rows_));
    blocks_.resize(static_cast<size_t>(rows_));
    offsets_.resize(static_cast<size_t>(rows_));
    sequences_.clear();
    int32_t next_row = 0;
    for (const SequenceRows& sequence : batch.sequences) {
      TESSERA_CHECK(sequence.first_row == next_row && sequence.rows >= 1);
      TESSERA_CHECK(sequence.first_position + sequence.rows <= options_.max_positions);
      next_row += sequence.rows;
      for (int32_t r = 0; r < sequence.rows; ++r) {
        const int32_t position = sequence.first_position + r;
        const int32_t block = sequence.blocks[position / attention::kKeyTile];
        TESSERA_CHECK(block >= 0 && block < options_.num_blocks);
        positions_[static_cast<size_t>(sequence.first_row + r)] = position;
        blocks_[static_cast<size_t>(sequence.first_row + r)] = block;
        offsets_[static_cast<size_t>(sequence.first_row + r)] = position % attention::kKeyTile;
      }
      sequences_.push_back({.first_row = sequence.first_row,
                            .rows = sequence.rows,
                            .first_position = sequence.first_position,
                            .blocks = sequence.blocks});
    }
    TESSERA_CHECK(next_row == rows_);
    for (const BlockCopy& copy : batch.copies) {
      storage_.copy_rows(copy.source, copy.destination, copy.first, copy.count);
    }
    // Layers of one window share a plan.
    plans_.clear();
    const StackConfig& stack = config_.stacks.front();
    for (const int window : stack.windows) {
      if (plans_.count(window) != 0) continue;
      plans_.emplace(window,
                     attention::WorkPlan(sequences_, problem(window),
                                         {.threads = context_.pool.size(), .two_phase = options_.two_phase}));
    }
  }

  attention::AttentionProblem problem(int window) const {
    const StackConfig& stack = config_.stacks.front();
    attention::AttentionProblem problem;
    problem.heads = stack.heads;
    problem.kv_heads = stack.kv_heads;
    problem.head_dim = stack.head_dim;
    problem.v_head_dim = stack.head_dim;
    problem.dtype = options_.kv_dtype;
    problem.scale = stack.attention_scale;
    problem.mask.causal = true;
    problem.mask.window_left = window == 0 ? -1 : window - 1;  // a window counts the token itself
    return problem;
  }

  RowsView view(int buffer) {
    return {buffers_[static_cast<size_t>(buffer)].as<float>(), rows_,
            program_.widths[static_cast<size_t>(buffer)]};
  }
  ops::QuantizedRows& quantized(int buffer) { return quantized_[static_cast<size_t>(buffer)]; }
  ops::LinearInput input(int buffer) {
    if (is_quantized_[static_cast<size_t>(buffer)]) return quantized(buffer);
    return view(buffer);
  }
  void mark(int buffer, bool quantized) { is_quantized_[static_cast<size_t>(buffer)] = quantized; }
  static RowsView columns(RowsView whole, int64_t first) {
    return {whole.data + first, whole.rows, whole.stride};
  }

  void run(const Op& op, bool quantize, const Batch& batch, float* logits) {
    const StackConfig& stack = config_.stacks.front();
    const int out = output_of(op);
    if (out >= 0) mark(out, quantize);
    switch (op.kind) {
      case OpKind::embed:
        ops::embed(context_, weights_.matrix(-1, op.weight), batch.tokens, view(out));
        break;
      case OpKind::rms_norm:
        if (quantize) {
          ops::rms_norm(context_, norm(op), view(op.inputs[0]), quantized(out));
        } else {
          ops::rms_norm(context_, norm(op), view(op.inputs[0]), view(out));
        }
        break;
      case OpKind::add_rms_norm:
        TESSERA_CHECK(op.outputs[0] == op.inputs[0]);  // the running sum is updated in place
        if (quantize) {
          ops::add_rms_norm(context_, norm(op), view(op.inputs[1]), view(op.inputs[0]), quantized(out));
        } else {
          ops::add_rms_norm(context_, norm(op), view(op.inputs[1]), view(op.inputs[0]), view(out));
        }
        break;
      case OpKind::linear:
        ops::linear(context_, weights_.matrix(op.layer, op.weight), input(op.inputs[0]), view(out));
        break;
      case OpKind::gate_up_silu:
        if (quantize) {
          ops::gate_up_silu(context_, weights_.matrix(op.layer, op.weight), input(op.inputs[0]),
                            quantized(out));
        } else {
          ops::gate_up_silu(context_, weights_.matrix(op.layer, op.weight), input(op.inputs[0]), view(out));
        }
        break;
      case OpKind::qkv_rope_append: {
        const RowsView qkv = view(out);
        const int64_t q_width = int64_t{stack.heads} * stack.head_dim;
        const int64_t kv_width = int64_t{stack.kv_heads} * stack.head_dim;
        ops::linear(context_, weights_.matrix(op.layer, op.weight), input(op.inputs[0]), qkv);
        // q and k stand side by side, so one call turns the heads of both.
        ops::rope(context_, rope_, qkv, stack.heads + stack.kv_heads, stack.head_dim, positions_);
        append(op.layer, columns(qkv, q_width), columns(qkv, q_width + kv_width));
        break;
      }
      case OpKind::rope:
        copy_rows(view(op.inputs[0]), op.width, view(out));
        ops::rope(context_, rope_, view(out), static_cast<int>(op.width / stack.head_dim), stack.head_dim,
                  positions_);
        break;
      case OpKind::attention:
        if (op.inputs[1] >= 0) append(op.layer, view(op.inputs[1]), view(op.inputs[2]));
        attend(op, view(op.inputs[0]), view(out));
        break;
      case OpKind::add:
        add_rows(view(op.inputs[0]), view(op.inputs[1]), op.width, view(out));
        break;
      case OpKind::glu:
        ops::silu_mul(context_, view(op.inputs[0]), view(op.inputs[1]), op.width, view(out));
        break;
      case OpKind::head:
        ops::linear(context_, weights_.matrix(-1, op.weight), input(op.inputs[0]),
                    {logits, rows_, config_.vocab_size});
        break;
    }
  }

  ops::RmsNorm norm(const Op& op) const {
    const StackConfig& stack = config_.stacks.front();
    return {.weight = weights_.norm(op.layer, op.weight), .n = stack.width, .epsilon = stack.norm_eps};
  }

  void append(int layer, RowsView k, RowsView v) {
    storage_.append(context_, layer,
                    {.rows = rows_,
                     .k = k.data,
                     .k_row_stride = k.stride,
                     .v = v.data,
                     .v_row_stride = v.stride,
                     .block = blocks_.data(),
                     .offset = offsets_.data()});
  }

  void attend(const Op& op, RowsView q, RowsView o) {
    const int window = config_.stacks.front().windows[static_cast<size_t>(op.layer)];
    const attention::WorkPlan& plan = plans_.at(window);
    const int64_t start = system_clock().now_ns();
    attention::paged_attention(context_, problem(window), storage_, op.layer, plan, q.data, q.stride, o.data,
                               o.stride);
    counters_.attention_seconds += static_cast<double>(system_clock().now_ns() - start) * 1e-9;
  }

  // Leaves only the wanted rows in the buffers that later ops read before they write them.
  void keep_rows(size_t after, std::span<const int32_t> wanted) {
    std::vector<bool> written(buffers_.size(), false), kept(buffers_.size(), false);
    for (size_t i = after + 1; i < program_.ops.size(); ++i) {
      const Op& op = program_.ops[i];
      for (const int b : op.inputs) {
        if (b < 0 || written[static_cast<size_t>(b)] || kept[static_cast<size_t>(b)]) continue;
        kept[static_cast<size_t>(b)] = true;
        TESSERA_CHECK(!is_quantized_[static_cast<size_t>(b)]);
        const RowsView rows = view(b);
        // Wanted rows rise, so a row never moves onto one that is still to be read.
        for (size_t to = 0; to < wanted.size(); ++to) {
          if (static_cast<int32_t>(to) == wanted[to]) continue;
          std::memcpy(rows.row(static_cast<int64_t>(to)), rows.row(wanted[to]),
                      static_cast<size_t>(rows.stride) * sizeof(float));
        }
      }
      for (const int b : op.outputs) {
        if (b >= 0) written[static_cast<size_t>(b)] = true;
      }
    }
    rows_ = static_cast<int64_t>(wanted.size());
  }

  // The plain forms of the unfused program.
  static void copy_rows(ConstRowsView from, int64_t width, RowsView to) {
    for (int64_t r = 0; r < from.rows; ++r) {
      std::memcpy(to.row(r), from.row(r), static_cast<size_t>(width) * sizeof(float));
    }
  }
  static void add_rows(ConstRowsView a, ConstRowsView b, int64_t width, RowsView to) {
    for (int64_t r = 0; r < a.rows; ++r) {
      for (int64_t i = 0; i < width; ++i) to.row(r)[i] = a.row(r)[i] + b.row(r)[i];
    }
  }

  const ModelConfig config_;
  const CpuExecutorOptions options_;
  Context context_;
  Program program_;
  Weights weights_;
  ops::RopeTable rope_;
  attention::KvStorage storage_;
  std::vector<Buffer> buffers_;                // [program_.widths.size()]
  std::vector<ops::QuantizedRows> quantized_;  // [program_.widths.size()]
  std::vector<bool> is_quantized_;             // [program_.widths.size()]: which of the two holds the value
  std::vector<bool> needs_quantized_;          // [program_.ops.size()]
  size_t last_attention_ = 0;

  // Of the current step.
  int64_t rows_ = 0;
  std::vector<int32_t> positions_;
  std::vector<int32_t> blocks_, offsets_;  // where each row's K and V go
  std::vector<attention::PagedSequence> sequences_;
  std::map<int, attention::WorkPlan> plans_;  // by window
  ExecutorCounters counters_;
};

}  // namespace

int64_t kv_block_bytes(const ModelConfig& config, DType kv_dtype) {
  int64_t bytes = 0;
  for (const StackConfig& stack : config.stacks) {
    bytes += CpuExecutor::kv_format(stack, kv_dtype).bytes_per_block(stack.layers);
  }
  return bytes;
}

Result<std::unique_ptr<Executor>> create_cpu_executor(const ModelFile& model,
                                                      const CpuExecutorOptions& options, ThreadPool& pool) {
  if (options.kv_dtype != DType::bf16 && options.kv_dtype != DType::f32) {
    return unsupported(format("kv-cache-dtype {}: the CPU stores bf16 or f32", name(options.kv_dtype)),
                       "kv-cache-dtype");
  }
  CpuExecutorOptions chosen = options;
  if (chosen.max_positions == 0) chosen.max_positions = model.config.context_length;
  auto executor = std::make_unique<CpuExecutor>(model.config, chosen, pool);
  TESSERA_RETURN_IF_ERROR(executor->create(model));
  return std::unique_ptr<Executor>(std::move(executor));
}

}  // namespace tessera::model
