#include "attention/paged.h"

#include <cmath>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "attention/plan_runner.h"
#include "core/check.h"

namespace tessera::attention {
namespace {

constexpr double kLog2e = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;
constexpr int kPartialSlot = 2;
constexpr int kScratchSlot = 3;

// Flush-to-zero and denormals-are-zero while it lives: tiny probabilities would halve the speed. Part of the
// arithmetic, so every path runs under it.
class FlushSubnormals {
 public:
#if defined(__x86_64__)
  FlushSubnormals() : saved_(_mm_getcsr()) {
    _mm_setcsr(saved_ | 0x8040u);
  }
  ~FlushSubnormals() {
    _mm_setcsr(saved_);
  }

 private:
  unsigned saved_;
#endif
};

int64_t align64(int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

}  // namespace

// One worker's memory for an item of up to most_rows rows.
struct PlanRunner::Scratch {
  char* q;
  StateRows segment, total;
  float* slope;
  void* kernel;
};

PlanRunner::PlanRunner(Context& context, const AttentionProblem& problem, const KvStorage& storage, int layer,
                       const WorkPlan& plan, const RowsIo& io)
    : context_(context),
      problem_(problem),
      storage_(storage),
      layer_(layer),
      plan_(plan),
      io_(io),
      kernel_(*plan.kernel_),
      group_(plan.heads_ / plan.kv_heads_),
      v_width_(storage.format().v_width()) {
  const KvFormat& format = storage.format();
  TESSERA_CHECK(problem.heads == plan.heads_ && problem.kv_heads == plan.kv_heads_ &&
                problem.head_dim == plan.head_dim_ && problem.dtype == plan.dtype_);
  TESSERA_CHECK(problem.mask.causal == plan.mask_.causal &&
                problem.mask.window_left == plan.mask_.window_left &&
                problem.mask.window_right == plan.mask_.window_right);
  TESSERA_CHECK(format.dtype == problem.dtype && format.kv_heads == problem.kv_heads &&
                format.head_dim == problem.head_dim && format.v_head_dim == problem.v_head_dim);
  TESSERA_CHECK(layer >= 0 && layer < storage.layers());
  TESSERA_CHECK(kernel_.dtype == format.dtype);
}

PlanRunner::Scratch PlanRunner::scratch_of(int worker) const {
  const int64_t rows = plan_.most_rows_;
  const int64_t q = align64(rows * kernel_.query_bytes(problem_.head_dim));
  const int64_t o = align64(rows * v_width_ * 4), l = align64(rows * kSumLanes * 4), one = align64(rows * 4);
  const int64_t kernel = kernel_.scratch_bytes(problem_.head_dim, v_width_);
  const int64_t bytes = q + 2 * o + l + 4 * one + kernel;
  char* at = static_cast<char*>(context_.workspace(worker).get(kScratchSlot, static_cast<size_t>(bytes)));
  const auto take = [&](int64_t size) {
    char* taken = at;
    at += size;
    return taken;
  };
  Scratch scratch;
  scratch.kernel = take(align64(kernel));
  scratch.q = take(q);
  scratch.segment.o = reinterpret_cast<float*>(take(o));
  scratch.segment.l = reinterpret_cast<float*>(take(l));
  scratch.segment.m = reinterpret_cast<float*>(take(one));
  scratch.total.o = reinterpret_cast<float*>(take(o));
  scratch.total.l = reinterpret_cast<float*>(take(one));
  scratch.total.m = reinterpret_cast<float*>(take(one));
  scratch.slope = reinterpret_cast<float*>(take(one));
  return scratch;
}

StateRows PlanRunner::partial(int kv_head, int32_t row) const {
  const int64_t rows = plan_.partials_;
  float* m = partials_ + int64_t{kv_head} * rows * (v_width_ + 2);
  return {m + row, m + rows + row, m + 2 * rows + int64_t{row} * v_width_};
}

void PlanRunner::pack_row(int32_t row, int kv_head, void* packed) const {
  const int64_t batch_row = plan_.batch_row_[static_cast<size_t>(row)];
  const int64_t head = int64_t{kv_head} * group_ + row % group_;
  const int64_t at = batch_row / io_.seqlen * io_.q_batch_stride + batch_row % io_.seqlen * io_.q_row_stride +
                     head * io_.q_head_stride;
  const float scale = static_cast<float>(problem_.scale * kLog2e);
  if (!io_.bf16_rows) {
    kernel_.pack_query(static_cast<const float*>(io_.q) + at, problem_.head_dim, scale, packed);
    return;
  }
  float wide[256];
  for (int d = 0; d < problem_.head_dim; ++d)
    wide[d] = bf16_to_f32(static_cast<const uint16_t*>(io_.q)[at + d]);
  kernel_.pack_query(wide, problem_.head_dim, scale, packed);
}

void PlanRunner::write_row(int32_t row, int kv_head, const StateRows& total) const {
  const int64_t batch_row = plan_.batch_row_[static_cast<size_t>(row)];
  const int64_t batch = batch_row / io_.seqlen, token = batch_row % io_.seqlen;
  const int64_t head = int64_t{kv_head} * group_ + row % group_;
  const int64_t at = batch * io_.o_batch_stride + token * io_.o_row_stride + head * io_.o_head_stride;
  if (!io_.bf16_rows) {
    kernel_.finish(total, problem_.v_head_dim, static_cast<float*>(io_.o) + at);
  } else {
    float wide[256];
    kernel_.finish(total, problem_.v_head_dim, wide);
    for (int d = 0; d < problem_.v_head_dim; ++d)
      static_cast<uint16_t*>(io_.o)[at + d] = f32_to_bf16(wide[d]);
  }
  if (io_.lse != nullptr) {
    const double l = *total.l;
    io_.lse[(batch * problem_.heads + head) * io_.seqlen + token] =
        l == 0 ? -INFINITY : static_cast<float>(*total.m * kLn2 + std::log(l));
  }
}

// The pair that unit (item, kv head) number `unit` begins with, or null: what follows is worth prefetching
// even when another worker takes it.
const char* PlanRunner::first_pair(int64_t unit) const {
  const size_t index = static_cast<size_t>(unit / plan_.kv_heads_);
  if (index >= plan_.items_.size() || plan_.items_[index].steps == 0) return nullptr;
  const WorkPlan::Step& step = plan_.steps_[static_cast<size_t>(plan_.items_[index].first_step)];
  return storage_.pair(layer_, step.block, static_cast<int>(unit % plan_.kv_heads_));
}

void PlanRunner::run_item(int64_t unit, const Scratch& scratch) {
  const WorkPlan::Item& item = plan_.items_[static_cast<size_t>(unit / plan_.kv_heads_)];
  const int kv_head = static_cast<int>(unit % plan_.kv_heads_);
  const int64_t query_bytes = kernel_.query_bytes(problem_.head_dim);
  const auto clear = [&](const StateRows& state, int sums) {
    for (int32_t row = 0; row < item.rows; ++row) state.m[row] = kNoMaximum;
    std::memset(state.l, 0, sizeof(float) * static_cast<size_t>(item.rows) * static_cast<size_t>(sums));
    std::memset(state.o, 0, sizeof(float) * static_cast<size_t>(item.rows) * static_cast<size_t>(v_width_));
  };
  const StateRows total = item.partial < 0 ? scratch.total : partial(kv_head, item.partial);
  clear(total, 1);
  clear(scratch.segment, kSumLanes);
  for (int32_t row = 0; row < item.rows; ++row) {
    pack_row(item.first_row + row, kv_head, scratch.q + row * query_bytes);
    if (problem_.alibi_slopes != nullptr) {
      const int head = kv_head * group_ + (item.first_row + row) % group_;
      scratch.slope[row] = static_cast<float>(problem_.alibi_slopes[head] * kLog2e);
    }
  }
  ItemRows rows{};
  rows.head_dim = problem_.head_dim;
  rows.v_width = v_width_;
  rows.q = scratch.q;
  rows.first_key = plan_.first_key_.data() + item.first_row;
  rows.end_key = plan_.end_key_.data() + item.first_row;
  rows.position = plan_.position_.data() + item.first_row;
  rows.slope = problem_.alibi_slopes != nullptr ? scratch.slope : nullptr;
  rows.softcap = static_cast<float>(problem_.softcap * kLog2e);
  rows.segment = scratch.segment;
  rows.scratch = scratch.kernel;

  uint64_t shared = 0;
  const WorkPlan::Step* steps = plan_.steps_.data() + item.first_step;
  for (int32_t i = 0; i < item.steps; ++i) {
    const WorkPlan::Step& step = steps[i];
    TilePair tile{};
    tile.data = storage_.pair(layer_, step.block, kv_head);
    tile.next =
        i + 1 < item.steps ? storage_.pair(layer_, steps[i + 1].block, kv_head) : first_pair(unit + 1);
    tile.first_key = int64_t{step.tile} * kKeyTile;
    tile.valid = step.valid;
    kernel_.walk(rows, step.first_row, step.rows, tile);
    shared += step.sequences > 1;
    const bool segment_ends =
        i + 1 == item.steps || steps[i + 1].tile / kTilesPerSegment != step.tile / kTilesPerSegment;
    if (segment_ends) kernel_.fold(total, scratch.segment, item.rows, v_width_);
  }
  plan_.reads_->all.fetch_add(static_cast<uint64_t>(item.steps), std::memory_order_relaxed);
  plan_.reads_->shared.fetch_add(shared, std::memory_order_relaxed);
  if (item.partial >= 0) return;
  for (int32_t row = 0; row < item.rows; ++row) {
    write_row(item.first_row + row, kv_head,
              {total.m + row, total.l + row, total.o + int64_t{row} * v_width_});
  }
}

void PlanRunner::fold_split_token(const WorkPlan::SplitToken& token, int kv_head, const Scratch& scratch) {
  const StateRows total = scratch.total;
  for (int g = 0; g < group_; ++g) {
    *total.m = kNoMaximum;
    *total.l = 0;
    std::memset(total.o, 0, sizeof(float) * static_cast<size_t>(v_width_));
    for (int32_t i = 0; i < token.partials; ++i) {
      const int32_t row = plan_.partial_rows_[static_cast<size_t>(token.first_partial + i)] + g;
      kernel_.fold_part(total, partial(kv_head, row), v_width_);
    }
    write_row(token.first_row + g, kv_head, total);
  }
}

void PlanRunner::run() {
  const int64_t kv_heads = plan_.kv_heads_;
  if (plan_.partials_ > 0) {
    const int64_t bytes = kv_heads * plan_.partials_ * (v_width_ + 2) * 4;
    partials_ = static_cast<float*>(context_.workspace(0).get(kPartialSlot, static_cast<size_t>(bytes)));
  }
  const auto run_items = [&](int64_t begin, int64_t end, int worker) {
    const FlushSubnormals flush;
    const Scratch scratch = scratch_of(worker);
    for (int64_t unit = begin; unit < end; ++unit) run_item(unit, scratch);
  };
  context_.pool.parallel_for(static_cast<int64_t>(plan_.items_.size()) * kv_heads, 1, run_items);
  if (plan_.split_tokens_.empty()) return;
  const auto fold_tokens = [&](int64_t begin, int64_t end, int worker) {
    const FlushSubnormals flush;
    const Scratch scratch = scratch_of(worker);
    for (int64_t i = begin; i < end; ++i) {
      fold_split_token(plan_.split_tokens_[static_cast<size_t>(i / kv_heads)], static_cast<int>(i % kv_heads),
                       scratch);
    }
  };
  context_.pool.parallel_for(static_cast<int64_t>(plan_.split_tokens_.size()) * kv_heads, 8, fold_tokens);
}

void paged_attention(Context& context, const AttentionProblem& problem, const KvStorage& storage, int layer,
                     const WorkPlan& plan, const float* q, int64_t q_row_stride, float* o,
                     int64_t o_row_stride) {
  RowsIo io;
  io.q = q;
  io.q_row_stride = q_row_stride;
  io.q_head_stride = problem.head_dim;
  io.o = o;
  io.o_row_stride = o_row_stride;
  io.o_head_stride = problem.v_head_dim;
  PlanRunner(context, problem, storage, layer, plan, io).run();
}

}  // namespace tessera::attention
