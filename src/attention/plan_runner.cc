#include "attention/plan_runner.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "attention/cpu/kernel_scope.h"
#include "attention/cpu/row_kernels.h"
#include "attention/dropout.h"
#include "attention/execution.h"
#include "attention/registry.h"
#include "attention/sequences.h"
#include "core/check.h"

namespace tessera::attention {
namespace {

// Rows of q and o lie heads * dim elements apart, which no hardware prefetcher follows: without this, reading
// and writing them took a tenth of a short call. (Fetching them while the item before is walked gained
// nothing more.)
constexpr int32_t kRowsAhead = 8;
template <int for_writing>
void touch(const char* row, int64_t bytes) {
  // A row need not begin with a cache line.
  const char* line = row - reinterpret_cast<uintptr_t>(row) % 64;
  for (; line < row + bytes; line += 64) __builtin_prefetch(line, for_writing);
}

MaskForm mask_form(const MaskTensor& mask) {
  if (mask.kind == MaskKind::none) return MaskForm::none;
  if (mask.kind == MaskKind::boolean) return MaskForm::boolean;
  return mask.dtype == DType::f32 ? MaskForm::f32 : mask.dtype == DType::f16 ? MaskForm::f16 : MaskForm::bf16;
}

constexpr uint32_t kElementFeatures = kMaskTensor | kAncestors | kDropout;

}  // namespace

// One worker's memory for up to so many rows.
struct PlanRunner::Scratch {
  char* q;
  StateRows segment, total;
  float* slope;
  RowFeatures* features;
  const void** mask;
  const uint64_t** ancestors;
  DropoutRow* dropout;
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
      convert_(row_kernels()),
      group_(plan.heads_ / plan.kv_heads_),
      v_width_(storage.format().v_width()),
      element_bytes_(info(io.dtype).block_bytes),
      featured_((wanted_features(problem) & kElementFeatures) != 0),
      dropout_(dropout_key(problem.dropout)) {
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

PlanRunner::Scratch PlanRunner::scratch_of(int worker, int64_t rows) const {
  const int64_t q = align64(rows * kernel_.query_bytes(problem_.head_dim));
  const int64_t o = align64(rows * v_width_ * 4), l = align64(rows * kSumLanes * 4), one = align64(rows * 4);
  const int64_t kernel = align64(kernel_.scratch_bytes(problem_.head_dim, v_width_));
  const int64_t pointers = featured_ ? align64(rows * 8) : 0;
  const int64_t drops = featured_ ? align64(rows * static_cast<int64_t>(sizeof(DropoutRow))) : 0;
  const int64_t features = align64(sizeof(RowFeatures));
  const int64_t bytes = q + 2 * o + l + 4 * one + kernel + features + 2 * pointers + drops;
  char* at = static_cast<char*>(context_.workspace(worker).get(kScratchSlot, static_cast<size_t>(bytes)));
  const auto take = [&](int64_t size) {
    char* taken = at;
    at += size;
    return taken;
  };
  Scratch scratch;
  scratch.kernel = take(kernel);
  scratch.q = take(q);
  scratch.segment.o = reinterpret_cast<float*>(take(o));
  scratch.segment.l = reinterpret_cast<float*>(take(l));
  scratch.segment.m = reinterpret_cast<float*>(take(one));
  scratch.total.o = reinterpret_cast<float*>(take(o));
  scratch.total.l = reinterpret_cast<float*>(take(one));
  scratch.total.m = reinterpret_cast<float*>(take(one));
  scratch.slope = reinterpret_cast<float*>(take(one));
  scratch.features = reinterpret_cast<RowFeatures*>(take(features));
  scratch.mask = reinterpret_cast<const void**>(take(pointers));
  scratch.ancestors = reinterpret_cast<const uint64_t**>(take(pointers));
  scratch.dropout = reinterpret_cast<DropoutRow*>(take(drops));
  return scratch;
}

PlanRunner::Place PlanRunner::place_of(int32_t row) const {
  const int64_t batch_row = plan_.batch_row_[static_cast<size_t>(row)];
  if (io_.cu_seqlens_q == nullptr) return {batch_row / io_.seqlen, batch_row % io_.seqlen};
  // The last sequence that begins at the row or before: those of length 0 come before it.
  const int32_t* after = std::upper_bound(io_.cu_seqlens_q, io_.cu_seqlens_q + io_.sequences, batch_row);
  return {after - io_.cu_seqlens_q - 1, batch_row - after[-1]};
}

// Whole cache lines for each of m, l and o: an item of one segment walks them.
int64_t PlanRunner::partial_rows() const {
  return (int64_t{plan_.partials_} + 15) / 16 * 16;
}

StateRows PlanRunner::partial(int kv_head, int32_t row) const {
  const int64_t rows = partial_rows();
  float* m = partials_ + int64_t{kv_head} * rows * (v_width_ + 2);
  return {m + row, m + rows + row, m + 2 * rows + int64_t{row} * v_width_};
}

// Calls ahead(row, at) for rows 0 to `rows` - 1 of those from first_row on, kRowsAhead before use(row, at).
template <typename Ahead, typename Use>
void PlanRunner::each_row(int32_t first_row, int32_t rows, int kv_head, Ahead&& ahead, Use&& use) const {
  RowAt ring[kRowsAhead];
  RowAt at{};
  int64_t last = -2;  // row of the batch that `at` is of
  int g = 0;
  for (int32_t row = 0; row < rows + kRowsAhead; ++row) {
    if (row >= kRowsAhead) use(row - kRowsAhead, ring[row % kRowsAhead]);
    if (row >= rows) continue;
    const int64_t batch_row = plan_.batch_row_[static_cast<size_t>(first_row + row)];
    if (batch_row != last) {
      // Rows mostly follow each other: a division for each would cost as much as its conversion.
      if (batch_row == last + 1 && at.token + 1 < io_.seqlen) {
        ++at.token;
      } else {
        at.batch = batch_row / io_.seqlen;
        at.token = batch_row % io_.seqlen;
      }
      last = batch_row;
    }
    at.head = int64_t{kv_head} * group_ + g;
    if (++g == group_) g = 0;
    ring[row % kRowsAhead] = at;
    ahead(row, at);
  }
}

PlanRunner::RowAt PlanRunner::row_at(int32_t row, int kv_head) const {
  const int64_t batch_row = plan_.batch_row_[static_cast<size_t>(row)];
  return {batch_row / io_.seqlen, batch_row % io_.seqlen, int64_t{kv_head} * group_ + row % group_};
}

const char* PlanRunner::query(const RowAt& at) const {
  const Strided<const void*>& q = io_.q;
  return static_cast<const char*>(q.data) +
         (at.batch * q.batch_stride + at.token * q.row_stride + at.head * q.head_stride) * element_bytes_;
}

char* PlanRunner::output(const RowAt& at) const {
  const Strided<void*>& o = io_.o;
  return static_cast<char*>(o.data) +
         (at.batch * o.batch_stride + at.token * o.row_stride + at.head * o.head_stride) * element_bytes_;
}

void PlanRunner::pack_row(const RowAt& at, void* packed) const {
  const float scale = static_cast<float>(problem_.scale * kLog2e);
  if (io_.dtype == DType::f32) {
    kernel_.pack_query(reinterpret_cast<const float*>(query(at)), problem_.head_dim, scale, packed);
    return;
  }
  float wide[256];
  convert_.widen(io_.dtype, query(at), problem_.head_dim, wide);
  kernel_.pack_query(wide, problem_.head_dim, scale, packed);
}

void PlanRunner::write_row(const RowAt& at, const StateRows& total) const {
  char* to = output(at);
  const float keep = problem_.dropout.p > 0 ? problem_.dropout.scale() : 1.0f;
  if (io_.dtype == DType::f32 && keep == 1.0f) {
    kernel_.finish(total, problem_.v_head_dim, reinterpret_cast<float*>(to));
  } else {
    float wide[256];
    kernel_.finish(total, problem_.v_head_dim, wide);
    for (int d = 0; keep != 1.0f && d < problem_.v_head_dim; ++d) wide[d] *= keep;
    if (io_.dtype == DType::f32) {
      std::memcpy(to, wide, sizeof(float) * static_cast<size_t>(problem_.v_head_dim));
    } else {
      convert_.narrow(io_.dtype, wide, problem_.v_head_dim, to);
    }
  }
  if (io_.lse != nullptr) {
    const double l = *total.l;
    io_.lse[(at.batch * problem_.heads + at.head) * io_.seqlen + at.token] =
        l == 0 ? -INFINITY : static_cast<float>(*total.m * kLn2 + std::log(l));
  }
}

void PlanRunner::write_rows(int32_t first_row, int32_t rows, int kv_head, const StateRows& total) const {
  const int64_t row_bytes = element_bytes_ * problem_.v_head_dim;
  each_row(
      first_row, rows, kv_head, [&](int32_t, const RowAt& at) { touch<1>(output(at), row_bytes); },
      [&](int32_t row, const RowAt& at) {
        write_row(at, {total.m + row, total.l + row, total.o + int64_t{row} * v_width_});
      });
}

// The pair that unit (item, kv head) number `unit` begins with, or null: what follows is worth prefetching
// even when another worker takes it.
const char* PlanRunner::first_pair(int64_t unit) const {
  const size_t index = static_cast<size_t>(unit / plan_.kv_heads_);
  if (index >= plan_.items_.size() || plan_.items_[index].steps == 0) return nullptr;
  const WorkPlan::Step step = plan_.step_of(plan_.items_[index], 0);
  return storage_.pair(layer_, step.block, static_cast<int>(unit % plan_.kv_heads_));
}

// Of a total the kernels read o only when l says that there is something.
void PlanRunner::clear_total(const StateRows& total, int32_t rows) const {
  for (int32_t row = 0; row < rows; ++row) {
    total.m[row] = kNoMaximum;
    total.l[row] = 0;
  }
}

void PlanRunner::clear_segment(const StateRows& segment, int32_t rows) const {
  const size_t count = static_cast<size_t>(rows);
  std::fill_n(segment.m, count, kNoMaximum);
  std::memset(segment.l, 0, sizeof(float) * count * kSumLanes);
  std::memset(segment.o, 0, sizeof(float) * count * static_cast<size_t>(v_width_));
}

void PlanRunner::start_features(int32_t first_row, int32_t rows, int kv_head, const Scratch& scratch) const {
  const MaskTensor& mask = problem_.mask.tensor;
  const Ancestors& tree = problem_.mask.ancestors;
  const Place first = place_of(first_row);
  TESSERA_CHECK(place_of(first_row + rows - 1).sequence == first.sequence);
  const SequenceView sequence = sequence_of(problem_, first.sequence);
  RowFeatures& f = *scratch.features;
  f = {};
  f.mask_form = mask_form(mask);
  f.mask = scratch.mask;
  f.mask_stride = mask.key_stride;
  f.keys = sequence.keys;
  f.tree_keys = tree.tree_keys;
  f.tree_first = sequence.keys - tree.tree_keys;
  f.ancestors = scratch.ancestors;
  if (tree.depth != nullptr) f.depth = tree.depth + first.sequence * tree.tree_keys;
  if (problem_.dropout.p > 0) f.dropout = scratch.dropout;
  f.dropout_key = dropout_;
  const int64_t element = f.mask_form == MaskForm::boolean ? 1 : f.mask_form == MaskForm::f32 ? 4 : 2;
  const int64_t words = (tree.tree_keys + 63) / 64;
  for (int32_t i = 0; i < rows; ++i) {
    const Place place = place_of(first_row + i);
    const int64_t head = int64_t{kv_head} * group_ + (first_row + i) % group_;
    if (f.mask_form != MaskForm::none) {
      scratch.mask[i] =
          static_cast<const char*>(mask.data) +
          (place.sequence * mask.batch_stride + head * mask.head_stride + place.row * mask.row_stride) *
              element;
    }
    if (tree.tree_keys > 0) {
      scratch.ancestors[i] = tree.bits + (place.sequence * problem_.seqlen_q + place.row) * words;
    }
    scratch.dropout[i] = {static_cast<uint32_t>(place.sequence), static_cast<uint32_t>(head),
                          static_cast<uint32_t>(place.row)};
  }
}

// Packs q of the rows and names what the kernel reads of them. Clears the segment state.
ItemRows PlanRunner::start_rows(int32_t first_row, int32_t rows, int kv_head, const StateRows& segment,
                                const Scratch& scratch) const {
  const int64_t query_bytes = kernel_.query_bytes(problem_.head_dim);
  clear_segment(segment, rows);
  const int64_t row_bytes = element_bytes_ * problem_.head_dim;
  each_row(
      first_row, rows, kv_head, [&](int32_t, const RowAt& at) { touch<0>(query(at), row_bytes); },
      [&](int32_t row, const RowAt& at) { pack_row(at, scratch.q + row * query_bytes); });
  if (problem_.alibi_slopes != nullptr) {
    for (int32_t row = 0; row < rows; ++row) {
      int64_t at = int64_t{kv_head} * group_ + (first_row + row) % group_;
      if (problem_.alibi_batch_stride > 0)
        at += place_of(first_row + row).sequence * problem_.alibi_batch_stride;
      scratch.slope[row] = static_cast<float>(problem_.alibi_slopes[at] * kLog2e);
    }
  }
  ItemRows item{};
  item.head_dim = problem_.head_dim;
  item.v_width = v_width_;
  item.q = scratch.q;
  item.first_key = plan_.first_key_.data() + first_row;
  item.end_key = plan_.end_key_.data() + first_row;
  item.position = plan_.position_.data() + first_row;
  item.slope = problem_.alibi_slopes != nullptr ? scratch.slope : nullptr;
  item.softcap = static_cast<float>(problem_.softcap * kLog2e);
  item.segment = segment;
  item.scratch = scratch.kernel;
  if (featured_) {
    start_features(first_row, rows, kv_head, scratch);
    item.features = scratch.features;
  }
  return item;
}

bool PlanRunner::segment_ends(const WorkPlan::Item& item, int32_t step) const {
  return step + 1 == item.steps || plan_.step_of(item, step + 1).tile / kTilesPerSegment !=
                                       plan_.step_of(item, step).tile / kTilesPerSegment;
}

void PlanRunner::run_item(int64_t unit, const Scratch& scratch) {
  const WorkPlan::Item& item = plan_.items_[static_cast<size_t>(unit / plan_.kv_heads_)];
  const int kv_head = static_cast<int>(unit % plan_.kv_heads_);
  const StateRows total = item.partial < 0 ? scratch.total : partial(kv_head, item.partial);
  clear_total(total, item.rows);
  // The first segment's output grows in the total, where it is wanted; those behind it have a place of their
  // own.
  const StateRows first = {scratch.segment.m, scratch.segment.l, total.o};
  ItemRows rows = start_rows(item.first_row, item.rows, kv_head, first, scratch);
  const auto walk = featured_ ? kernel_.walk_featured : kernel_.walk;

  uint64_t shared = 0;
  for (int32_t i = 0; i < item.steps; ++i) {
    const WorkPlan::Step step = plan_.step_of(item, i);
    TilePair tile{};
    tile.data = storage_.pair(layer_, step.block, kv_head);
    tile.next = i + 1 < item.steps ? storage_.pair(layer_, plan_.step_of(item, i + 1).block, kv_head)
                                   : first_pair(unit + 1);
    tile.first_key = int64_t{step.tile} * kKeyTile;
    tile.valid = step.valid;
    walk(rows, step.first_row, step.rows, tile);
    shared += step.sequences > 1;
    if (!segment_ends(item, i)) continue;
    kernel_.fold(total, rows.segment, item.rows, v_width_);
    if (i + 1 == item.steps || rows.segment.o != total.o) continue;
    rows.segment = scratch.segment;
    clear_segment(rows.segment, item.rows);
  }
  plan_.reads_->all.fetch_add(static_cast<uint64_t>(item.steps), std::memory_order_relaxed);
  plan_.reads_->shared.fetch_add(shared, std::memory_order_relaxed);
  if (item.partial >= 0) return;
  write_rows(item.first_row, item.rows, kv_head, total);
}

// Items of one sequence in order of their rows, which follow each other.
void PlanRunner::run_sequence(const WorkPlan::Item* items, size_t count, int kv_head,
                              const Scratch& scratch) {
  const int32_t first_row = items[0].first_row;
  const int32_t row_count = items[count - 1].first_row + items[count - 1].rows - first_row;
  const auto state_at = [&](const StateRows& state, int32_t row, int sums) {
    return StateRows{state.m + row, state.l + int64_t{row} * sums, state.o + int64_t{row} * v_width_};
  };
  clear_total(scratch.total, row_count);
  const ItemRows rows = start_rows(first_row, row_count, kv_head, scratch.segment, scratch);
  const auto walk = featured_ ? kernel_.walk_featured : kernel_.walk;
  std::vector<int32_t> next(count, 0);  // step of each item
  uint64_t reads = 0;
  for (;;) {
    int32_t tile = INT32_MAX;
    for (size_t i = 0; i < count; ++i) {
      if (next[i] < items[i].steps) {
        tile = std::min(tile, plan_.step_of(items[i], next[i]).tile);
      }
    }
    if (tile == INT32_MAX) break;
    for (size_t i = 0; i < count; ++i) {
      const WorkPlan::Item& item = items[i];
      if (next[i] == item.steps) continue;
      const WorkPlan::Step step = plan_.step_of(item, next[i]);
      if (step.tile != tile) continue;
      TilePair pair{};
      pair.data = storage_.pair(layer_, step.block, kv_head);
      pair.first_key = int64_t{tile} * kKeyTile;
      pair.valid = step.valid;
      const int32_t at = item.first_row - first_row;
      walk(rows, at + step.first_row, step.rows, pair);
      ++reads;
      if (segment_ends(item, next[i]++)) {
        kernel_.fold(state_at(scratch.total, at, 1), state_at(scratch.segment, at, kSumLanes), item.rows,
                     v_width_);
      }
    }
  }
  plan_.reads_->all.fetch_add(reads, std::memory_order_relaxed);
  write_rows(first_row, row_count, kv_head, scratch.total);
}

void PlanRunner::run_keys_outside() {
  TESSERA_CHECK(plan_.partials_ == 0);
  std::vector<WorkPlan::Item> items = plan_.items_;
  std::sort(items.begin(), items.end(),
            [](const WorkPlan::Item& a, const WorkPlan::Item& b) { return a.first_row < b.first_row; });
  std::vector<size_t> starts;  // of each sequence's items
  int64_t most_rows = 0, rows = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    if (i == 0 || place_of(items[i].first_row).sequence != place_of(items[i - 1].first_row).sequence) {
      starts.push_back(i);
      rows = 0;
    }
    rows += items[i].rows;
    most_rows = std::max(most_rows, rows);
  }
  const int64_t kv_heads = plan_.kv_heads_, sequences = static_cast<int64_t>(starts.size());
  starts.push_back(items.size());
  context_.pool.parallel_for(sequences * kv_heads, 1, [&](int64_t begin, int64_t end, int worker) {
    const KernelScope<TileKernel> scope(kernel_);
    const Scratch scratch = scratch_of(worker, most_rows);
    for (int64_t unit = begin; unit < end; ++unit) {
      const size_t first = starts[static_cast<size_t>(unit / kv_heads)];
      run_sequence(items.data() + first, starts[static_cast<size_t>(unit / kv_heads) + 1] - first,
                   static_cast<int>(unit % kv_heads), scratch);
    }
  });
}

void PlanRunner::fold_split_token(const WorkPlan::SplitToken& token, int kv_head, const Scratch& scratch) {
  const StateRows total = scratch.total;
  RowAt at = row_at(token.first_row, kv_head);
  for (int g = 0; g < group_; ++g) {
    clear_total(total, 1);
    for (int32_t i = 0; i < token.partials; ++i) {
      const int32_t row = plan_.partial_rows_[static_cast<size_t>(token.first_partial + i)] + g;
      kernel_.fold_part(total, partial(kv_head, row), v_width_);
    }
    write_row(at, total);
    ++at.head;
  }
}

void PlanRunner::run() {
  const int64_t kv_heads = plan_.kv_heads_;
  if (plan_.partials_ > 0) {
    const int64_t bytes = kv_heads * partial_rows() * (v_width_ + 2) * 4;
    partials_ = static_cast<float*>(context_.workspace(0).get(kSharedSlot, static_cast<size_t>(bytes)));
  }
  const auto run_items = [&](int64_t begin, int64_t end, int worker) {
    const KernelScope<TileKernel> scope(kernel_);
    const Scratch scratch = scratch_of(worker, plan_.most_rows_);
    for (int64_t unit = begin; unit < end; ++unit) run_item(unit, scratch);
  };
  context_.pool.parallel_for(static_cast<int64_t>(plan_.items_.size()) * kv_heads, 1, run_items);
  if (plan_.split_tokens_.empty()) return;
  const auto fold_tokens = [&](int64_t begin, int64_t end, int worker) {
    const KernelScope<TileKernel> scope(kernel_);
    const Scratch scratch = scratch_of(worker, plan_.most_rows_);
    for (int64_t i = begin; i < end; ++i) {
      fold_split_token(plan_.split_tokens_[static_cast<size_t>(i / kv_heads)], static_cast<int>(i % kv_heads),
                       scratch);
    }
  };
  context_.pool.parallel_for(static_cast<int64_t>(plan_.split_tokens_.size()) * kv_heads, 8, fold_tokens);
}

}  // namespace tessera::attention
