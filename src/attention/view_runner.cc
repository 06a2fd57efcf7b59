#include "attention/view_runner.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "attention/cpu/kernel_scope.h"
#include "attention/execution.h"
#include "attention/pack_tile.h"
#include "attention/registry.h"
#include "attention/rope.h"
#include "core/context.h"

namespace tessera::attention {
namespace {

// Rows up to which segments may be divided; what packing a tile costs in rows of arithmetic.
constexpr int kSplitRows = 64;
constexpr int64_t kPackCost = 12;
// Query rows of a kv head up to which tiles are read in place: transposing K anew for every register block of
// rows is then cheaper than packing once.
constexpr int kInPlaceRows = 12;
// Query rows of all kv heads that a unit may take together when it reads in place.
constexpr int64_t kUnitRows = 64;

}  // namespace

// One worker's memory for an item of up to most_rows rows.
struct ViewRunner::Scratch {
  char* kernel;  // of each head
  char* pair;
  char* k_rows;  // [kKeyTile] rows as they are in the cache, gathered
  char* v_rows;
  char* q;
  StateRows segment, total;
  ItemRows* heads;  // [unit_heads_]
  RowRuns* runs;
  float* slope;
  int32_t *first_key, *end_key, *position;
};

ViewRunner::ViewRunner(Context& context, const AttentionProblem& problem, const CheckedView& view,
                       const Rotary* rotary, const CacheTensors& tensors, const TileKernel& kernel)
    : context_(context),
      problem_(problem),
      view_(view),
      rotary_(rotary),
      tensors_(tensors),
      kernel_(kernel),
      tile_{kernel.dtype, problem.kv_heads, problem.head_dim, problem.v_head_dim, kKeyTile},
      group_(problem.heads / problem.kv_heads) {}

Result<ViewRunner> ViewRunner::create(Context& context, const AttentionProblem& problem,
                                      const CheckedView& view, const Rotary* rotary,
                                      const CacheTensors& tensors) {
  AttentionProblem tiles = problem;
  if (problem.dtype == DType::f16) tiles.dtype = DType::f32;
  tiles.leftpad_k = nullptr;
  tiles.cu_seqlens_q = nullptr;
  tiles.alibi_batch_stride = 0;
  tiles.seqlen_k = 0;
  TESSERA_ASSIGN_OR_RETURN(const TileKernel* kernel, find(tiles, Kind::decode));
  ViewRunner runner(context, problem, view, rotary, tensors, *kernel);
  runner.plan();
  return runner;
}

void ViewRunner::plan() {
  const int threads = context_.pool.size();
  const auto& sequences = view_.sequences();
  const int32_t most_tokens = std::max(1, kItemRows / group_);
  for (size_t s = 0; s < sequences.size(); ++s) {
    const bool whole = sequences[s].rows * group_ <= kSplitRows;
    for (int64_t first = 0; first < sequences[s].rows; first += most_tokens) {
      const int64_t tokens = std::min<int64_t>(most_tokens, sequences[s].rows - first);
      int64_t from = INT64_MAX, to = 0;
      for (int64_t t = first; t < first + tokens; ++t) {
        const CheckedView::Range seen = view_.visible(sequences[s], t);
        if (seen.first == seen.end) continue;
        from = std::min(from, seen.first);
        to = std::max(to, seen.end);
      }
      Item item{};
      item.sequence = static_cast<int32_t>(s);
      item.first_token = static_cast<int32_t>(first);
      item.tokens = static_cast<int32_t>(tokens);
      item.first_tile = to > 0 ? static_cast<int32_t>(from / kKeyTile) : 0;
      item.end_tile = static_cast<int32_t>((to + kKeyTile - 1) / kKeyTile);
      item.first_key = to > 0 ? static_cast<int32_t>(from) : 0;
      item.partial = whole ? -1 : -2;  // -2: never divided
      item.cost = 1 + (item.end_tile - item.first_tile) * (kPackCost + tokens * group_);
      items_.push_back(item);
    }
  }
  int64_t total = 0;
  for (const Item& item : items_) total += item.cost * problem_.kv_heads;
  std::vector<Item> divided;
  for (Item item : items_) {
    most_rows_ = std::max(most_rows_, item.tokens * group_);
    const bool several = item.first_tile / kTilesPerSegment != (item.end_tile - 1) / kTilesPerSegment;
    if (item.partial == -2 || threads == 1 || !several || item.cost * kItemsPerThread * threads <= total) {
      item.partial = -1;
      divided.push_back(item);
      continue;
    }
    Split split{item.sequence, item.first_token, item.tokens, static_cast<int32_t>(parts_.size()), 0};
    const int32_t end = item.end_tile;
    while (item.first_tile < end) {
      item.end_tile = std::min(end, (item.first_tile / kTilesPerSegment + 1) * kTilesPerSegment);
      item.partial = static_cast<int32_t>(partials_);
      item.cost = 1 + (item.end_tile - item.first_tile) * (kPackCost + int64_t{item.tokens} * group_);
      divided.push_back(item);
      parts_.push_back(item.partial);
      partials_ += item.tokens * group_;
      ++split.parts;
      item.first_tile = item.end_tile;
      item.first_key = item.first_tile * kKeyTile;
    }
    splits_.push_back(split);
  }
  items_ = std::move(divided);
  std::stable_sort(items_.begin(), items_.end(),
                   [](const Item& a, const Item& b) { return a.cost > b.cost; });
  unit_heads_ = unit_heads();
}

// Few rows: reading is the cost, and the rows of all heads of a key lie in one page.
int ViewRunner::unit_heads() const {
  if (most_rows_ > kSplitRows || !view_.heads_inside_rows()) return 1;
  const int threads = context_.pool.size();
  const int64_t enough = threads == 1 ? 1 : kItemsPerThread * threads;
  const int64_t most = in_place(most_rows_)
                           ? std::clamp<int64_t>(kUnitRows / std::max(most_rows_, 1), 1, problem_.kv_heads)
                           : problem_.kv_heads;
  return static_cast<int>(
      std::clamp<int64_t>(problem_.kv_heads * static_cast<int64_t>(items_.size()) / enough, 1, most));
}

ViewRunner::Scratch ViewRunner::scratch_of(int worker) const {
  const int64_t rows = int64_t{most_rows_} * unit_heads_, v_width = tile_.v_width();
  const int64_t one = align64(rows * 4), o = align64(rows * v_width * 4);
  const int64_t sizes[] = {kernel_bytes() * unit_heads_,
                           align64(tile_.pair_bytes()),
                           align64(tile_.k_tile_bytes()),
                           align64(tile_.v_tile_bytes()),
                           align64(rows * kernel_.query_bytes(problem_.head_dim)),
                           align64(static_cast<int64_t>(sizeof(ItemRows)) * unit_heads_),
                           o,
                           align64(rows * kSumLanes * 4),
                           one,
                           o,
                           one,
                           one,
                           one,
                           one,
                           one,
                           one};
  int64_t bytes = 0;
  for (const int64_t size : sizes) bytes += size;
  char* at = static_cast<char*>(context_.workspace(worker).get(kScratchSlot, static_cast<size_t>(bytes)));
  size_t next = 0;
  const auto take = [&]() {
    char* taken = at;
    at += sizes[next++];
    return taken;
  };
  const auto floats = [&]() { return reinterpret_cast<float*>(take()); };
  const auto ints = [&]() { return reinterpret_cast<int32_t*>(take()); };
  Scratch s{};
  s.kernel = take();
  s.pair = take();
  s.k_rows = take();
  s.v_rows = take();
  s.q = take();
  s.heads = reinterpret_cast<ItemRows*>(take());
  s.segment.o = floats();
  s.segment.l = floats();
  s.segment.m = floats();
  s.total.o = floats();
  s.total.l = floats();
  s.total.m = floats();
  s.slope = floats();
  s.first_key = ints();
  s.end_key = ints();
  s.position = ints();
  return s;
}

StateRows ViewRunner::partial(int kv_head, int64_t row) const {
  float* m = partial_memory_ + kv_head * partials_ * (tile_.v_width() + 2);
  return {m + row, m + partials_ + row, m + 2 * partials_ + row * tile_.v_width()};
}

// The item's query rows in the kernel's form, what each sees and where it stands. The tile kernel wants the
// group innermost.
void ViewRunner::pack_rows(const Item& item, int kv_head, int32_t at, const Scratch& scratch) const {
  const ViewSequence& s = view_.sequences()[static_cast<size_t>(item.sequence)];
  const RowKernels& kernels = row_kernels();
  const float scale = static_cast<float>(problem_.scale * kLog2e);
  const int64_t query_bytes = kernel_.query_bytes(problem_.head_dim);
  const Mask& mask = problem_.mask;
  const bool own_position = mask.causal || mask.window_left >= 0 || mask.window_right >= 0;
  std::unique_ptr<RowRotator> rotator;
  if (rotary_ != nullptr) rotator = std::make_unique<RowRotator>(*rotary_, false);
  float wide[256];
  for (int32_t t = 0; t < item.tokens; ++t) {
    const int64_t row = item.first_token + t;
    const CheckedView::Range seen = view_.visible(s, row);
    if (rotator != nullptr) rotator->move_to(s.old_keys + (own_position ? row : 0));
    const int64_t batch = problem_.cu_seqlens_q != nullptr ? 0 : s.batch;
    for (int g = 0; g < group_; ++g) {
      const int32_t i = t * group_ + g;
      const int64_t head = int64_t{kv_head} * group_ + g;
      const Strided<const void*>& q = tensors_.q;
      const char* from =
          static_cast<const char*>(q.data) +
          (batch * q.batch_stride + (s.first_row + row) * q.row_stride + head * q.head_stride) *
              view_.element_bytes();
      kernels.widen(problem_.dtype, from, problem_.head_dim, wide);
      if (rotator != nullptr) rotator->turn(wide);
      kernel_.pack_query(wide, problem_.head_dim, scale, scratch.q + (at + i) * query_bytes);
      scratch.first_key[i] = static_cast<int32_t>(seen.first);
      scratch.end_key[i] = static_cast<int32_t>(seen.end);
      scratch.position[i] = static_cast<int32_t>(row + s.keys - s.rows);
      if (problem_.alibi_slopes != nullptr) {
        scratch.slope[at + i] =
            static_cast<float>(problem_.alibi_slopes[s.batch * problem_.alibi_batch_stride + head] * kLog2e);
      }
    }
  }
}

// Keys [first, end) of the sequence, inside tile `tile`, to scratch.pair.
void ViewRunner::pack_keys(const ViewSequence& s, int kv_head, int64_t tile, int64_t first, int64_t end,
                           const Next* next, const Scratch& scratch) const {
  const int64_t start = tile * kKeyTile;
  const auto rows_at = [&](int64_t key) {
    return PackRows{problem_.dtype,
                    view_.k_row(s, key, kv_head),
                    view_.k_row_bytes(),
                    view_.v_row(s, key, kv_head),
                    view_.v_row_bytes(),
                    static_cast<int>(key - start),
                    static_cast<int>(view_.run(key, end))};
  };
  if (first == start && (view_.run(first, end) == end - first || view_.block_size() % 2 == 0)) {
    PackAhead k, v;
    if (next != nullptr) {
      const int heads = next->end_head - next->first_head;
      const int rows = static_cast<int>(view_.run(next->key, next->key + next->rows));
      const auto ahead = [&](const char* at, int64_t row_bytes, int64_t head_bytes, int dim) {
        const int64_t bytes = (heads - 1) * head_bytes + view_.element_bytes() * dim;
        return PackAhead{at, row_bytes, rows, static_cast<int>((bytes + 63) / 64)};
      };
      k = ahead(view_.k_row(s, next->key, next->first_head), view_.k_row_bytes(), view_.k_head_bytes(),
                problem_.head_dim);
      v = ahead(view_.v_row(s, next->key, next->first_head), view_.v_row_bytes(), view_.v_head_bytes(),
                problem_.v_head_dim);
    }
    for (int64_t key = first; key < end; key += view_.run(key, end)) {
      PackRows rows = rows_at(key);
      if (next != nullptr && key == first) {
        rows.k_ahead = &k;
        rows.v_ahead = &v;
      }
      pack_tile(tile_, rows, scratch.pair);
    }
    return;
  }
  // Keys that nothing sees lie before, or runs begin at odd keys: gathered first.
  const int64_t k_bytes = view_.element_bytes() * problem_.head_dim;
  const int64_t v_bytes = view_.element_bytes() * problem_.v_head_dim;
  std::memset(scratch.k_rows, 0, static_cast<size_t>((first - start) * k_bytes));
  std::memset(scratch.v_rows, 0, static_cast<size_t>((first - start) * v_bytes));
  for (int64_t key = first; key < end; key += view_.run(key, end)) {
    const PackRows rows = rows_at(key);
    for (int64_t i = 0; i < rows.keys; ++i) {
      std::memcpy(scratch.k_rows + (rows.first_key + i) * k_bytes, rows.k + i * rows.k_row_bytes,
                  static_cast<size_t>(k_bytes));
      std::memcpy(scratch.v_rows + (rows.first_key + i) * v_bytes, rows.v + i * rows.v_row_bytes,
                  static_cast<size_t>(v_bytes));
    }
  }
  pack_tile(
      tile_,
      {problem_.dtype, scratch.k_rows, k_bytes, scratch.v_rows, v_bytes, 0, static_cast<int>(end - start)},
      scratch.pair);
}

void ViewRunner::write_rows(int32_t sequence, int32_t first_token, int32_t tokens, int kv_head,
                            const StateRows& total) const {
  const ViewSequence& s = view_.sequences()[static_cast<size_t>(sequence)];
  const RowKernels& kernels = row_kernels();
  const bool varlen = problem_.cu_seqlens_q != nullptr;
  const int64_t lse_rows = varlen ? problem_.cu_seqlens_q[problem_.batch] : problem_.seqlen_q;
  const int64_t batch = varlen ? 0 : s.batch;
  float wide[256];
  for (int32_t i = 0; i < tokens * group_; ++i) {
    const int64_t row = s.first_row + first_token + i / group_, head = int64_t{kv_head} * group_ + i % group_;
    kernel_.finish({total.m + i, total.l + i, total.o + int64_t{i} * tile_.v_width()}, problem_.v_head_dim,
                   wide);
    const Strided<void*>& o = tensors_.o;
    char* to = static_cast<char*>(o.data) +
               (batch * o.batch_stride + row * o.row_stride + head * o.head_stride) * view_.element_bytes();
    kernels.narrow(problem_.dtype, wide, problem_.v_head_dim, to);
    if (tensors_.lse != nullptr) {
      const double l = total.l[i];
      tensors_.lse[(batch * problem_.heads + head) * lse_rows + row] =
          l == 0 ? -INFINITY : static_cast<float>(total.m[i] * kLn2 + std::log(l));
    }
  }
}

// Whether the kernel takes tiles of the cache where they lie for so many query rows of a head.
bool ViewRunner::in_place(int32_t rows) const {
  return rows <= kInPlaceRows && kernel_.walk_rows != nullptr && problem_.v_head_dim == tile_.v_width();
}

// The rows of some heads from `key` on, up to kKeyTile of them before `end` that lie one behind the other.
RowsOfTile ViewRunner::rows_of(const ViewSequence& s, int64_t key, int64_t end, int first_head,
                               int end_head) const {
  if (key >= end) return {};
  return {static_cast<int>(view_.run(key, std::min(end, key + kKeyTile))),
          end_head - first_head,
          view_.k_row(s, key, first_head),
          view_.element_bytes() * problem_.head_dim,
          view_.k_row_bytes(),
          view_.k_head_bytes(),
          view_.v_row(s, key, first_head),
          view_.element_bytes() * problem_.v_head_dim,
          view_.v_row_bytes(),
          view_.v_head_bytes()};
}

// What a unit (item, heads) begins with: worth fetching even when another worker takes it.
RowsOfTile ViewRunner::start_of(int64_t unit) const {
  if (unit >= static_cast<int64_t>(items_.size()) * parts()) return {};
  const Item& item = items_[static_cast<size_t>(unit / parts())];
  if (item.first_tile >= item.end_tile) return {};
  const ViewSequence& s = view_.sequences()[static_cast<size_t>(item.sequence)];
  const int first_head = static_cast<int>(unit % parts()) * unit_heads_;
  const int64_t end = std::min<int64_t>(s.keys, int64_t{item.first_tile + 1} * kKeyTile);
  return rows_of(s, item.first_key, end, first_head, std::min(first_head + unit_heads_, problem_.kv_heads));
}

// Keys [first, end) of a tile, packed for each head in turn.
void ViewRunner::walk_packed(const ViewSequence& s, int64_t tile, int64_t first, int64_t end, int first_head,
                             int end_head, int64_t end_seen, int32_t count, const Scratch& scratch) const {
  const int64_t start = tile * kKeyTile;
  for (int head = first_head; head < end_head; ++head) {
    // Meanwhile this head's share of the next keys comes near, whole rows in order: that is what memory is
    // fastest at, and heads one by one are not.
    const int heads = end_head - first_head;
    const int share = kKeyTile * (head - first_head) / heads;
    const int share_end = kKeyTile * (head - first_head + 1) / heads;
    const Next next = {start + kKeyTile + share, share_end - share, first_head, end_head};
    pack_keys(s, head, tile, first, end, next.key + next.rows <= end_seen ? &next : nullptr, scratch);
    kernel_.walk(scratch.heads[head - first_head], 0, count,
                 {scratch.pair, nullptr, start, static_cast<int>(end - start)});
  }
}

void ViewRunner::run_unit(int64_t unit, const Scratch& scratch) const {
  const Item& item = items_[static_cast<size_t>(unit / parts())];
  const int first_head = static_cast<int>(unit % parts()) * unit_heads_;
  const int end_head = std::min(first_head + unit_heads_, problem_.kv_heads);
  const ViewSequence& s = view_.sequences()[static_cast<size_t>(item.sequence)];
  const int32_t count = item.tokens * group_;
  const int v_width = tile_.v_width();
  const auto clear = [&](const StateRows& state, int sums) {
    std::fill(state.m, state.m + count, kNoMaximum);
    std::memset(state.l, 0, sizeof(float) * static_cast<size_t>(count) * static_cast<size_t>(sums));
    std::memset(state.o, 0, sizeof(float) * static_cast<size_t>(count) * static_cast<size_t>(v_width));
  };
  // Rows of kv head `head` stand behind those of the heads before it.
  const auto first_row = [&](int head) { return (head - first_head) * count; };
  const auto segment_of = [&](int head) { return rows_from(scratch.segment, first_row(head), kSumLanes); };
  const auto total_of = [&](int head) {
    return item.partial < 0 ? rows_from(scratch.total, first_row(head), 1) : partial(head, item.partial);
  };
  for (int head = first_head; head < end_head; ++head) {
    clear(total_of(head), 1);
    clear(segment_of(head), kSumLanes);
    pack_rows(item, head, first_row(head), scratch);
  }
  for (int head = first_head; head < end_head; ++head) {
    ItemRows& rows = scratch.heads[head - first_head];
    rows = {};
    rows.head_dim = problem_.head_dim;
    rows.v_width = v_width;
    rows.q = scratch.q + first_row(head) * kernel_.query_bytes(problem_.head_dim);
    rows.first_key = scratch.first_key;
    rows.end_key = scratch.end_key;
    rows.position = scratch.position;
    rows.slope = problem_.alibi_slopes != nullptr ? scratch.slope + first_row(head) : nullptr;
    rows.softcap = static_cast<float>(problem_.softcap * kLog2e);
    rows.segment = segment_of(head);
    rows.scratch = scratch.kernel + (head - first_head) * kernel_bytes();
  }
  int64_t first_seen = INT64_MAX, end_seen = 0;
  for (int32_t i = 0; i < count; ++i) {
    if (scratch.first_key[i] == scratch.end_key[i]) continue;
    first_seen = std::min<int64_t>(first_seen, scratch.first_key[i]);
    end_seen = std::max<int64_t>(end_seen, scratch.end_key[i]);
  }
  const bool direct = in_place(count);
  RowRuns& runs = *scratch.runs;
  runs.reset();
  for (int32_t i = item.first_tile; i < item.end_tile; ++i) {
    const int64_t start = int64_t{i} * kKeyTile;
    const int64_t first = std::max(first_seen, start), end = std::min(end_seen, start + kKeyTile);
    if (direct && end - first == kKeyTile && view_.run(first, end) == kKeyTile) {
      const RowsOfTile tile = rows_of(s, start, end, first_head, end_head);
      runs.move_to(tile, i + 1 < item.end_tile ? rows_of(s, start + kKeyTile, end_seen, first_head, end_head)
                                               : start_of(unit + 1));
      kernel_.walk_rows(scratch.heads, end_head - first_head, count,
                        {problem_.dtype == DType::f16, tile.k, tile.k_row_bytes, tile.k_head_bytes, tile.v,
                         tile.v_row_bytes, tile.v_head_bytes, start},
                        runs.ahead());
    } else if (first < end) {
      runs.reset();
      walk_packed(s, i, first, end, first_head, end_head, end_seen, count, scratch);
    }
    if (i + 1 < item.end_tile && (i + 1) % kTilesPerSegment != 0) continue;
    for (int head = first_head; head < end_head; ++head)
      kernel_.fold(total_of(head), segment_of(head), count, v_width);
  }
  if (item.partial >= 0) return;
  for (int head = first_head; head < end_head; ++head)
    write_rows(item.sequence, item.first_token, item.tokens, head, total_of(head));
}

StateRows ViewRunner::rows_from(const StateRows& state, int64_t row, int sums) const {
  return {state.m + row, state.l + row * sums, state.o + row * tile_.v_width()};
}

void ViewRunner::run() {
  const int64_t kv_heads = problem_.kv_heads;
  if (partials_ > 0) {
    const int64_t bytes = kv_heads * partials_ * (tile_.v_width() + 2) * 4;
    partial_memory_ = static_cast<float*>(context_.workspace(0).get(kSharedSlot, static_cast<size_t>(bytes)));
  }
  const auto run_units = [&](int64_t begin, int64_t end, int worker) {
    const KernelScope<TileKernel> scope(kernel_);
    Scratch scratch = scratch_of(worker);
    RowRuns runs;
    scratch.runs = &runs;
    for (int64_t unit = begin; unit < end; ++unit) run_unit(unit, scratch);
  };
  context_.pool.parallel_for(static_cast<int64_t>(items_.size()) * parts(), 1, run_units);
  context_.pool.parallel_for(
      static_cast<int64_t>(splits_.size()) * kv_heads, 1, [&](int64_t begin, int64_t end, int worker) {
        const KernelScope<TileKernel> scope(kernel_);
        const Scratch scratch = scratch_of(worker);
        for (int64_t i = begin; i < end; ++i) {
          const Split& split = splits_[static_cast<size_t>(i / kv_heads)];
          const int kv_head = static_cast<int>(i % kv_heads);
          const int32_t count = split.tokens * group_;
          for (int32_t row = 0; row < count; ++row) {
            const StateRows total = {scratch.total.m + row, scratch.total.l + row,
                                     scratch.total.o + int64_t{row} * tile_.v_width()};
            *total.m = kNoMaximum;
            *total.l = 0;
            std::memset(total.o, 0, sizeof(float) * static_cast<size_t>(tile_.v_width()));
            for (int32_t part = 0; part < split.parts; ++part) {
              const int32_t at = parts_[static_cast<size_t>(split.first + part)] + row;
              kernel_.fold_part(total, partial(kv_head, at), tile_.v_width());
            }
          }
          write_rows(split.sequence, split.first_token, split.tokens, kv_head, scratch.total);
        }
      });
}

}  // namespace tessera::attention
