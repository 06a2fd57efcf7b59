// Building a WorkPlan. Terms: a slice is some rows of one sequence that are always together (a decode row, a
// chunk, or a query block of a long chunk); a group is a range of slices that share blocks from the start of
// their tables.
#include <algorithm>
#include <cstring>

#include "attention/execution.h"
#include "attention/paged.h"
#include "attention/registry.h"
#include "core/check.h"
#include "core/format.h"

namespace tessera::attention {
namespace {

// Over dense tensors, where no other request fills the threads, slices get smaller until each thread has this
// many of them (a causal slice costs up to twice the mean), but not smaller than a tile's bytes are worth.
constexpr int64_t kSlicesPerThread = 8;
constexpr int kLeastSliceRows = 48;
// Slices of more rows than this gain nothing from stacking: they already do more arithmetic than a tile's
// bytes cost.
constexpr int kStackRows = 64;
// Reading a tile pair from memory takes as long as the arithmetic of this many rows (16 KiB at 28 GB/s
// against 16 kFLOP at 190 GFLOP/s; the ratio hardly depends on head_dim).
constexpr int64_t kReadCost = 7;
// Starting on a tile.
constexpr int64_t kStepCost = 1;

struct Slice {
  const PagedSequence* sequence;
  int32_t first_token;  // in plan order
  int32_t tokens;
  int32_t first;  // of its rows in the sequence
  int32_t first_tile, end_tile;
  int32_t end_key;           // the largest end of a row's keys
  int32_t shared_with_next;  // leading blocks equal to the next slice's
  bool stackable;
};

struct Range {
  int32_t first, end;
};

int64_t keys_of(const PagedSequence& sequence) {
  return sequence.keys >= 0 ? sequence.keys : int64_t{sequence.first_position} + sequence.rows;
}

int64_t position_of(const PagedSequence& sequence, int32_t row) {
  if (sequence.tree_keys == 0 || sequence.depth == nullptr) return int64_t{sequence.first_position} + row;
  return keys_of(sequence) - sequence.tree_keys + sequence.depth[sequence.tree_keys - sequence.rows + row];
}

// Of the row; inside a tree the kernel hides more.
Range visible_keys(const PagedSequence& sequence, int32_t row, const Mask& mask) {
  const int64_t position = position_of(sequence, row), keys = keys_of(sequence);
  const int64_t tree = keys - sequence.tree_keys;
  int64_t end = keys, first = 0;
  if (sequence.tree_keys == 0) {
    if (mask.causal) end = std::min(end, position + 1);
    if (mask.window_right >= 0) end = std::min(end, position + mask.window_right + 1);
    if (mask.window_left >= 0) first = std::max<int64_t>(0, position - mask.window_left);
  } else if (mask.window_left >= 0) {
    first = std::clamp<int64_t>(position - mask.window_left, 0, tree);
  }
  first = std::max<int64_t>(first, sequence.first_key);
  if (end <= first) return {0, 0};
  return {static_cast<int32_t>(first), static_cast<int32_t>(end)};
}

int64_t step_cost(int64_t rows) {
  return std::max(kReadCost, rows) + kStepCost;
}

}  // namespace

class PlanBuilder {
 public:
  PlanBuilder(WorkPlan& plan, const WorkPlanOptions& options)
      : plan_(plan), options_(options), group_(plan.heads_ / plan.kv_heads_) {}

  void build(std::span<const PagedSequence> sequences) {
    if (options_.dense) size_slices(sequences);
    for (const PagedSequence& sequence : sequences) cut(sequence);
    sort_slices();
    number_rows();
    for (const Slice& slice : slices_) {
      plan_.unshared_reads_ += int64_t{slice.end_tile - slice.first_tile} * plan_.kv_heads_;
    }
    choose();
    for (const WorkPlan::Item& item : plan_.items_) plan_.most_rows_ = std::max(plan_.most_rows_, item.rows);
  }

 private:
  // One way to divide the step.
  struct Candidate {
    WorkPlan::Estimate estimate{};
    std::vector<WorkPlan::Step> steps;
    std::vector<WorkPlan::Item> items;
    std::vector<WorkPlan::SplitToken> split_tokens;
    std::vector<int32_t> partial_rows;
    int32_t partials = 0;
  };

  void size_slices(std::span<const PagedSequence> sequences) {
    int64_t rows = 0, keys = 0;
    for (const PagedSequence& sequence : sequences) {
      rows += int64_t{sequence.rows} * group_ * plan_.kv_heads_;
      keys += keys_of(sequence);
    }
    const int64_t wanted = options_.threads > 1 ? kSlicesPerThread * options_.threads : 1;
    while (slice_rows_ > kLeastSliceRows && rows < wanted * slice_rows_) slice_rows_ /= 2;
    // The states that split items hand over take no more memory than the tiles of K and V.
    most_partials_ = static_cast<int32_t>(std::min<int64_t>(2 * keys, INT32_MAX));
  }

  void cut(const PagedSequence& sequence) {
    const int64_t keys = keys_of(sequence);
    TESSERA_CHECK(sequence.rows >= 0 && sequence.first_row >= 0 && keys <= INT32_MAX);
    const int32_t most = std::max(1, slice_rows_ / group_);
    const bool stackable = !options_.dense && int64_t{sequence.rows} * group_ <= kStackRows;
    for (int32_t first = 0; first < sequence.rows; first += most) {
      Slice slice{};
      slice.sequence = &sequence;
      slice.first = first;
      slice.tokens = std::min(most, sequence.rows - first);
      slice.stackable = stackable;
      // A tile is needed when some row sees a key of it; the rows' windows overlap or follow each other.
      // Outside trees they only move on, so that the outermost rows that see anything say it all.
      int32_t from = INT32_MAX, to = 0;
      const auto look = [&](int32_t token) {
        const Range seen = visible_keys(sequence, first + token, plan_.mask_);
        if (seen.first == seen.end) return false;
        from = std::min(from, seen.first);
        to = std::max(to, seen.end);
        return sequence.tree_keys == 0;
      };
      for (int32_t token = 0; token < slice.tokens && !look(token); ++token) continue;
      for (int32_t token = slice.tokens - 1; token > 0 && !look(token); --token) continue;
      if (to > 0) {
        slice.end_key = to;
        slice.first_tile = from / kKeyTile;
        slice.end_tile = (to + kKeyTile - 1) / kKeyTile;
      }
      slices_.push_back(slice);
    }
  }

  // Slices that share blocks become neighbours: tables in lexicographic order.
  void sort_slices() {
    std::stable_sort(slices_.begin(), slices_.end(), [](const Slice& a, const Slice& b) {
      if (!a.stackable || !b.stackable) return a.stackable && !b.stackable;
      return std::lexicographical_compare(a.sequence->blocks, a.sequence->blocks + a.end_tile,
                                          b.sequence->blocks, b.sequence->blocks + b.end_tile);
    });
    for (size_t i = 0; i + 1 < slices_.size(); ++i) {
      const Slice &a = slices_[i], &b = slices_[i + 1];
      if (!a.stackable || !b.stackable) break;
      const int32_t most = std::min(a.end_tile, b.end_tile);
      const auto differ = std::mismatch(a.sequence->blocks, a.sequence->blocks + most, b.sequence->blocks);
      const int32_t equal = static_cast<int32_t>(differ.first - a.sequence->blocks);
      // Only a block that both need is shared.
      if (equal > std::max(a.first_tile, b.first_tile)) slices_[i].shared_with_next = equal;
    }
  }

  void number_rows() {
    int32_t token = 0;
    for (Slice& slice : slices_) {
      slice.first_token = token;
      token += slice.tokens;
    }
    const size_t rows = static_cast<size_t>(token) * static_cast<size_t>(group_);
    for (auto* field : {&plan_.batch_row_, &plan_.position_, &plan_.first_key_, &plan_.end_key_}) {
      field->resize(rows);
    }
    size_t row = 0;
    for (const Slice& slice : slices_) {
      const PagedSequence& sequence = *slice.sequence;
      for (int32_t t = 0; t < slice.tokens; ++t) {
        const auto position = static_cast<int32_t>(position_of(sequence, slice.first + t));
        const Range seen = visible_keys(sequence, slice.first + t, plan_.mask_);
        for (int g = 0; g < group_; ++g, ++row) {
          plan_.batch_row_[row] = sequence.first_row + slice.first + t;
          plan_.position_[row] = position;
          plan_.first_key_[row] = seen.first;
          plan_.end_key_[row] = seen.end;
        }
      }
    }
  }

  // Steps of slices [a, b) over tiles [from, to), tile by tile; first_row counts from slice a.
  void add_steps(size_t a, size_t b, int32_t from, int32_t to, std::vector<WorkPlan::Step>& steps) const {
    const auto needs = [&](size_t i, int32_t tile) {
      return tile >= slices_[i].first_tile && tile < slices_[i].end_tile;
    };
    for (int32_t tile = from; tile < to; ++tile) {
      for (size_t i = a; i < b;) {
        if (!needs(i, tile)) {
          ++i;
          continue;
        }
        size_t end = i + 1;
        while (end < b && slices_[end - 1].shared_with_next > tile && needs(end, tile)) ++end;
        WorkPlan::Step step{};
        step.first_row = (slices_[i].first_token - slices_[a].first_token) * group_;
        const int32_t last_token = slices_[end - 1].first_token + slices_[end - 1].tokens;
        step.rows = (last_token - slices_[i].first_token) * group_;
        step.tile = tile;
        step.block = slices_[i].sequence->blocks[tile];
        step.sequences = static_cast<int32_t>(end - i);
        int32_t last = 0;
        for (size_t of = i; of < end; ++of) last = std::max(last, slices_[of].end_key);
        step.valid = std::min(kKeyTile, last - tile * kKeyTile);
        steps.push_back(step);
        i = end;
      }
    }
  }

  Range tiles_of(size_t a, size_t b) const {
    Range tiles = {INT32_MAX, 0};
    for (size_t i = a; i < b; ++i) {
      if (slices_[i].end_tile == slices_[i].first_tile) continue;
      tiles.first = std::min(tiles.first, slices_[i].first_tile);
      tiles.end = std::max(tiles.end, slices_[i].end_tile);
    }
    return tiles.end == 0 ? Range{0, 0} : tiles;
  }

  // What walking tiles [from, to) for slices [a, b) costs; a dense group is one slice, whose steps follow
  // from its tiles.
  int64_t cost_of(size_t a, size_t b, Range tiles, std::vector<WorkPlan::Step>& steps) const {
    const size_t first = steps.size();
    int64_t cost = 1;
    if (options_.dense) return cost + (tiles.end - tiles.first) * step_cost(slices_[a].tokens * group_);
    add_steps(a, b, tiles.first, tiles.end, steps);
    for (size_t i = first; i < steps.size(); ++i) cost += step_cost(steps[i].rows);
    return cost;
  }

  // Adds an item of slices [a, b) over `tiles`; partial: see WorkPlan::Item.
  const WorkPlan::Item& add_item(size_t a, size_t b, Range tiles, int32_t partial, Candidate& c) const {
    const Slice& slice = slices_[a];
    if (options_.dense) {
      TESSERA_CHECK(b == a + 1);
      tiles = {std::max(tiles.first, slice.first_tile), std::min(tiles.end, slice.end_tile)};
    }
    WorkPlan::Item item{};
    item.first_row = slice.first_token * group_;
    item.rows = (slices_[b - 1].first_token + slices_[b - 1].tokens - slice.first_token) * group_;
    item.first_step = static_cast<int32_t>(c.steps.size());
    item.partial = partial;
    item.cost = cost_of(a, b, tiles, c.steps);
    item.steps = static_cast<int32_t>(c.steps.size()) - item.first_step;
    if (options_.dense) {
      item.first_step = -1;
      item.steps = tiles.end - tiles.first;
      item.first_tile = tiles.first;
      item.first_block = item.steps > 0 ? slice.sequence->blocks[tiles.first] : 0;
      item.end_key = slice.end_key;
    }
    return c.items.emplace_back(item);
  }

  // One item for each segment and each set of slices that is connected inside it.
  void add_split_group(size_t a, size_t b, Range tiles, Candidate& c) const {
    const int32_t first_token = slices_[a].first_token;
    std::vector<std::vector<int32_t>> partials(
        static_cast<size_t>(slices_[b - 1].first_token + slices_[b - 1].tokens - first_token));
    for (int32_t segment = tiles.first / kTilesPerSegment; segment * kTilesPerSegment < tiles.end;
         ++segment) {
      const int32_t from = segment * kTilesPerSegment, to = std::min(from + kTilesPerSegment, tiles.end);
      for (size_t i = a; i < b;) {
        if (slices_[i].end_tile <= from || slices_[i].first_tile >= to) {
          ++i;
          continue;
        }
        size_t end = i + 1;
        while (end < b && slices_[end - 1].shared_with_next > from && slices_[end].end_tile > from &&
               slices_[end].first_tile < to) {
          ++end;
        }
        const WorkPlan::Item item = add_item(i, end, {from, to}, c.partials, c);
        for (int32_t token = 0; token < item.rows / group_; ++token) {
          partials[static_cast<size_t>(slices_[i].first_token - first_token + token)].push_back(
              c.partials + token * group_);
        }
        c.partials += item.rows;
        i = end;
      }
    }
    for (size_t token = 0; token < partials.size(); ++token) {
      c.split_tokens.push_back({(first_token + static_cast<int32_t>(token)) * group_,
                                static_cast<int32_t>(c.partial_rows.size()),
                                static_cast<int32_t>(partials[token].size())});
      c.partial_rows.insert(c.partial_rows.end(), partials[token].begin(), partials[token].end());
    }
  }

  // The step divided into groups of at most `most` sequences.
  Candidate divide(int32_t most) const {
    Candidate c;
    c.estimate.most_sequences = most;
    std::vector<Range> groups;
    for (size_t a = 0; a < slices_.size();) {
      size_t b = a + 1;
      while (b < slices_.size() && b - a < static_cast<size_t>(most) && slices_[b - 1].shared_with_next > 0)
        ++b;
      groups.push_back({static_cast<int32_t>(a), static_cast<int32_t>(b)});
      a = b;
    }
    std::vector<int64_t> costs;
    int64_t total = 0;
    for (const Range& group : groups) {
      const Range tiles = tiles_of(static_cast<size_t>(group.first), static_cast<size_t>(group.end));
      c.steps.clear();
      costs.push_back(
          cost_of(static_cast<size_t>(group.first), static_cast<size_t>(group.end), tiles, c.steps));
      total += costs.back();
    }
    c.steps.clear();
    const int64_t share = total * plan_.kv_heads_ / options_.threads;
    for (size_t g = 0; g < groups.size(); ++g) {
      const size_t a = static_cast<size_t>(groups[g].first), b = static_cast<size_t>(groups[g].end);
      const Range tiles = tiles_of(a, b);
      const bool several =
          tiles.end > 0 && tiles.first / kTilesPerSegment != (tiles.end - 1) / kTilesPerSegment;
      const int64_t segments = (tiles.end - 1) / kTilesPerSegment - tiles.first / kTilesPerSegment + 1;
      const int64_t rows =
          int64_t{slices_[b - 1].first_token + slices_[b - 1].tokens - slices_[a].first_token} * group_;
      if (options_.threads > 1 && several && costs[g] * kItemsPerThread > share &&
          c.partials + segments * rows <= most_partials_) {
        add_split_group(a, b, tiles, c);
        continue;
      }
      add_item(a, b, tiles, -1, c);
    }
    estimate(c);
    return c;
  }

  void estimate(Candidate& c) const {
    WorkPlan::Estimate& e = c.estimate;
    for (const WorkPlan::Item& item : c.items) {
      e.cost += item.cost * plan_.kv_heads_;
      e.longest = std::max(e.longest, item.cost);
      e.reads += int64_t{item.steps} * plan_.kv_heads_;
    }
    for (const WorkPlan::Step& step : c.steps) {
      if (step.sequences > 1) e.shared_reads += plan_.kv_heads_;
    }
    e.makespan = std::max(e.longest, (e.cost + options_.threads - 1) / options_.threads);
  }

  // Stacks as many sequences as there are, unless smaller groups let the threads finish earlier. With nothing
  // shared there is one way, and it is plain paged attention.
  void choose() {
    int32_t largest = 1, run = 1;
    for (const Slice& slice : slices_) {
      run = slice.shared_with_next > 0 ? run + 1 : 1;
      largest = std::max(largest, run);
    }
    Candidate best = divide(options_.two_phase ? largest : 1);
    std::vector<WorkPlan::Estimate> others;
    if (options_.two_phase && largest > 1) {
      for (int32_t most = (largest + 1) / 2;; most = (most + 1) / 2) {
        // Between the whole and none, only threads that would idle make a smaller group worth a look.
        const int64_t fair = (best.estimate.cost + options_.threads - 1) / options_.threads;
        if (most > 1 && best.estimate.makespan * 8 <= fair * 9) most = 1;
        Candidate other = divide(most);
        if (other.estimate.makespan < best.estimate.makespan) std::swap(best, other);
        others.push_back(other.estimate);
        if (most == 1) break;
      }
    }
    plan_.estimates_.push_back(best.estimate);
    plan_.estimates_.insert(plan_.estimates_.end(), others.begin(), others.end());
    plan_.planned_ = {static_cast<uint64_t>(best.estimate.reads),
                      static_cast<uint64_t>(best.estimate.shared_reads)};
    plan_.steps_ = std::move(best.steps);
    plan_.items_ = std::move(best.items);
    plan_.split_tokens_ = std::move(best.split_tokens);
    plan_.partial_rows_ = std::move(best.partial_rows);
    plan_.partials_ = best.partials;
    // Dearest first, so that what is left at the end is small.
    std::stable_sort(plan_.items_.begin(), plan_.items_.end(),
                     [](const WorkPlan::Item& a, const WorkPlan::Item& b) { return a.cost > b.cost; });
    if (options_.dense && options_.threads > 1) deal();
  }

  // Causal items differ, and each worker owns a part of the list: dealt like cards, so that each part is a
  // fair share that begins with the dearest, and what is stolen at the end is small.
  void deal() {
    std::vector<WorkPlan::Item> dealt;
    dealt.reserve(plan_.items_.size());
    for (size_t hand = 0; hand < static_cast<size_t>(options_.threads); ++hand) {
      for (size_t i = hand; i < plan_.items_.size(); i += static_cast<size_t>(options_.threads)) {
        dealt.push_back(plan_.items_[i]);
      }
    }
    plan_.items_ = std::move(dealt);
  }

  WorkPlan& plan_;
  const WorkPlanOptions& options_;
  const int32_t group_;
  int32_t slice_rows_ = kItemRows;
  int32_t most_partials_ = INT32_MAX;  // of one kv head
  std::vector<Slice> slices_;
};

WorkPlan::WorkPlan(std::span<const PagedSequence> sequences, const AttentionProblem& problem,
                   const WorkPlanOptions& options)
    : heads_(problem.heads),
      kv_heads_(problem.kv_heads),
      head_dim_(problem.head_dim),
      dtype_(problem.dtype),
      mask_(problem.mask) {
  TESSERA_CHECK(options.threads >= 1);
  bool one_row_each = true;
  for (const PagedSequence& sequence : sequences) one_row_each &= sequence.rows <= 1;
  PlanBuilder(*this, options).build(sequences);
  const Kind kind = options.dense                     ? Kind::dense
                    : planned_.shared_block_reads > 0 ? Kind::tree
                    : one_row_each                    ? Kind::decode
                                                      : Kind::prefill;
  const Result<const TileKernel*> kernel = find(problem, kind);
  TESSERA_CHECK_MSG(kernel.ok(), kernel.status().message());
  kernel_ = *kernel;
}

int64_t WorkPlan::bytes() const {
  const auto of = [](const auto& values) { return static_cast<int64_t>(values.size() * sizeof values[0]); };
  return of(batch_row_) + of(position_) + of(first_key_) + of(end_key_) + of(steps_) + of(items_) +
         of(split_tokens_) + of(partial_rows_);
}

std::string WorkPlan::explain() const {
  std::string text =
      format("{}: {} items of {} rows for each of {} kv heads, {} split at segment edges\n", kernel_->name,
             items_.size(), batch_row_.size(), kv_heads_,
             std::count_if(items_.begin(), items_.end(), [](const Item& i) { return i.partial >= 0; }));
  for (size_t i = 0; i < estimates_.size(); ++i) {
    const Estimate& e = estimates_[i];
    text += format("{} {}: {} block reads ({} shared), cost {}, longest item {}, makespan {}\n",
                   i == 0 ? ">" : " ",
                   e.most_sequences == 1 ? std::string("sequence by sequence")
                                         : format("up to {} sequences stacked", e.most_sequences),
                   e.reads, e.shared_reads, e.cost, e.longest, e.makespan);
  }
  return text;
}

}  // namespace tessera::attention
