#include "attention/cuda/steps/plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/format.h"

namespace tessera::attention::cuda::steps {
namespace {

// In tiles; measured on an H200 (see plan.h for what they mean).
constexpr double kPieceCost = 2.0;
constexpr double kPrivatePieceCost = 0.4;
constexpr double kPartialCost = 0.01;
// A tile that comes from L2, because other sequences have read it: without sharing all reads are at least as
// long as if they all did, or as what is unique from memory, and a little of the shorter adds to the longer.
constexpr double kRereadCost = 0.45;
constexpr double kShorterAdds = 0.25;
// With sharing there is a second kernel; more rows than a warpgroup's make private work wait for both. Cut
// into a warpgroup's, the rest reads the same tiles once more, from L2.
constexpr double kSecondKernelCost = 1.0;
constexpr double kBothWarpgroupsCost = 0.35;
constexpr double kSecondReadCost = 0.3;
// Longer pieces have to be better by so much: what they last longer at the end is not in the model.
constexpr double kClearlyBetter = 1.0;

constexpr int32_t kWarpgroupRows = 64;

struct Run {  // sequences [first, end) in table order over units [from, to)
  int32_t first, end;
  int32_t from, to;
  int32_t start;  // where the rows of these sequences begin: here, or in a run before
  bool tail;      // of one sequence, up to its last key
};

class Planner {
 public:
  Planner(std::span<const TreeSequence> sequences, int kv_heads, int group, int64_t block_size,
          const TreePlanOptions& options)
      : sequences_(sequences),
        kv_heads_(kv_heads),
        group_(group),
        block_size_(block_size),
        options_(options) {}

  TreeWork plan() {
    order();
    limits_.resize(sequences_.size());
    if (!order_.empty()) divide(0, static_cast<int32_t>(order_.size()), 0, -1);
    count_reads();
    work_.explanation =
        format("{} sequences, {} runs: {} tiles a kv head ({} shared) instead of {}\n", sequences_.size(),
               runs_.size(), work_.reads.tiles, work_.reads.shared, work_.reads.unshared);
    if (options_.sharing == TreeSharing::never || work_.reads.shared == 0) return apart();
    int32_t rows = options_.most_rows;
    make_parts(rows);
    Candidate best = choose();
    if (std::any_of(parts_.begin(), parts_.end(), [](const Part& p) { return p.rows > kWarpgroupRows; })) {
      best.cost += kBothWarpgroupsCost;
      make_parts(kWarpgroupRows);
      Candidate halves = choose();
      if (halves.cost < best.cost) {
        best = std::move(halves);
        rows = kWarpgroupRows;
      }
      make_parts(rows);
    }
    work_.explanation += format("> {} units, at most {} rows\n", best.units, rows);
    const double shared = best.cost + kSecondKernelCost;
    const double unique = double(work_.reads.tiles) * kv_heads_ / options_.blocks;
    const double reread = double(work_.reads.unshared) * kv_heads_ / options_.blocks * kRereadCost;
    const double unshared = std::max(unique, reread) + kShorterAdds * std::min(unique, reread);
    const bool pays = shared < unshared;
    work_.explanation += format("a block of the grid: {:.1f} tiles shared, {:.1f} sequence by sequence: {}\n",
                                shared, unshared,
                                pays                                      ? "shared"
                                : options_.sharing == TreeSharing::always ? "shared, because it is asked for"
                                                                          : "sequence by sequence");
    if (!pays && options_.sharing == TreeSharing::when_it_pays) return apart();
    work_.shares = true;
    work_.has_tails = std::any_of(parts_.begin(), parts_.end(), [](const Part& part) { return part.tail; });
    take(std::move(best));
    return std::move(work_);
  }

 private:
  int32_t units_of(int64_t keys) const { return static_cast<int32_t>((keys + kUnit - 1) / kUnit); }
  static int32_t first_unit(const TreeSequence& s) { return static_cast<int32_t>(s.first / kUnit); }
  const TreeSequence& at(int32_t i) const { return sequences_[size_t(order_[size_t(i)])]; }

  void order() {
    order_.resize(sequences_.size());
    std::iota(order_.begin(), order_.end(), 0);
    const auto blocks = [&](int32_t s) {
      return (sequences_[size_t(s)].keys + block_size_ - 1) / block_size_;
    };
    std::stable_sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) {
      const int32_t* x = sequences_[size_t(a)].blocks;
      const int32_t* y = sequences_[size_t(b)].blocks;
      return std::lexicographical_compare(x, x + blocks(a), y, y + blocks(b));
    });
    // Whole units in equal blocks, of neighbours.
    common_.assign(order_.size(), 0);
    for (size_t i = 0; i + 1 < order_.size(); ++i) {
      const int64_t keys = std::min(at(int32_t(i)).keys, at(int32_t(i + 1)).keys);
      const int32_t* x = at(int32_t(i)).blocks;
      const int32_t* y = at(int32_t(i + 1)).blocks;
      const int64_t most = (keys + block_size_ - 1) / block_size_;
      const int64_t equal = std::mismatch(x, x + most, y).first - x;
      common_[i] = static_cast<int32_t>(std::min(equal * block_size_, keys) / kUnit);
    }
  }

  // Sequences [first, end) have units [0, from) in common, and those are dealt with; their rows begin at unit
  // `start` (-1: they have not begun).
  void divide(int32_t first, int32_t end, int32_t from, int32_t start) {
    while (first < end) {
      // The next stretch of sequences that share at least one unit more.
      int32_t next = first + 1;
      int32_t common = INT32_MAX;
      while (next < end && common_[size_t(next - 1)] > from) {
        common = std::min(common, common_[size_t(next - 1)]);
        ++next;
      }
      if (next == first + 1) {
        // A sequence that ends where its shared run ends has nothing of its own; one without keys still has
        // an o to write.
        const TreeSequence& s = at(first);
        const int32_t begin = std::max(from, first_unit(s));
        const int32_t to = units_of(std::min(s.keys + options_.reserve, std::max(s.keys, options_.capacity)));
        if (to > begin || start < 0)
          runs_.push_back({first, next, begin, std::max(to, begin + 1), start < 0 ? begin : start, true});
        // A window that hides units now would show them to a shorter sequence.
        const int64_t least = first_unit(s) > 0 ? s.keys : start < 0 ? 0 : int64_t{from} * kUnit;
        const int64_t most = std::min<int64_t>(INT32_MAX, int64_t{std::max(to, from)} * kUnit);
        limits_[size_t(order_[size_t(first)])] = {static_cast<int32_t>(least), static_cast<int32_t>(most)};
      } else {
        int32_t begin = common;  // the first unit that one of them sees
        for (int32_t i = first; i < next; ++i) begin = std::min(begin, std::max(from, first_unit(at(i))));
        const int32_t run_start = start < 0 && begin < common ? begin : start;
        if (begin < common) runs_.push_back({first, next, begin, common, run_start, false});
        divide(first, next, common, run_start);
      }
      first = next;
    }
  }

  int64_t tiles_of(const Run& run) const {
    if (!run.tail) return int64_t{run.to - run.from} * kUnitTiles;
    return std::max<int64_t>(0, (at(run.first).keys + kTile - 1) / kTile - int64_t{run.from} * kUnitTiles);
  }

  void count_reads() {
    for (const Run& run : runs_) {
      work_.reads.tiles += tiles_of(run);
      if (!run.tail) work_.reads.shared += tiles_of(run);
    }
    for (const TreeSequence& s : sequences_)
      work_.reads.unshared += (s.keys + kTile - 1) / kTile - int64_t{first_unit(s)} * kUnitTiles;
  }

  // A part of a run for some of its sequences, the same for every kv head.
  struct Part {
    int32_t token;  // first of its tokens in work_.tokens
    int32_t sequence, rows;
    int32_t from, to, start;
    int32_t partial;
    bool tail;
    double cost;  // of a kv head
  };

  // Of as many rows: a warp's or a warpgroup's, both warpgroups'.
  static double tile_cost(int32_t rows) { return rows <= kWarpgroupRows ? 1.0 : 1.3; }

  // The runs as parts of at most `rows` rows; shared runs further cut into `units` each by lay_out().
  void make_parts(int32_t rows) {
    const int32_t most = std::max(1, rows / group_);
    int64_t partial = 0;
    parts_.clear();
    work_.tokens.clear();
    for (const Run& run : runs_) {
      for (int32_t i = run.first; i < run.end; i += most) {
        const int32_t end = std::min(run.end, i + most);
        Part part{};
        part.token = static_cast<int32_t>(work_.tokens.size());
        for (int32_t s = i; s < end; ++s) work_.tokens.push_back(order_[size_t(s)]);
        part.sequence = order_[size_t(i)];
        part.rows = (end - i) * group_;
        part.from = run.from;
        part.to = run.to;
        part.start = run.start;
        part.tail = run.tail;
        part.partial = static_cast<int32_t>(partial);
        partial += int64_t{run.to - run.from} * part.rows;
        part.cost = double(tiles_of(run)) * tile_cost(part.rows);
        parts_.push_back(part);
      }
    }
    head_partials_ = partial;
    work_.partial_rows = partial * kv_heads_;
  }

  struct Candidate {
    int32_t units = 0;  // of a shared piece
    double makespan = 0;
    double cost = 0;  // and what is not a block's
    std::vector<std::vector<Piece>> of_block;
  };

  TreeWork apart() {
    TreeWork work;
    work.reads = work_.reads;
    work.reads.tiles = work_.reads.unshared;
    work.reads.shared = 0;
    work.explanation = std::move(work_.explanation);
    return work;
  }

  Candidate choose() {
    double total = 0, again = 0;
    int32_t rows = 0;
    for (const Part& part : parts_) {
      total += part.cost * kv_heads_;
      rows = std::max(rows, part.rows);
      if (!part.tail) again += part.cost * kv_heads_;
    }
    again = std::max(0.0, again / options_.blocks - double(work_.reads.shared) * kv_heads_ / options_.blocks);
    const double fair = total / options_.blocks;
    Candidate best;
    for (const int32_t units : {1, 2, 4, 8}) {
      if (options_.shared_units > 0 && units != options_.shared_units) continue;
      Candidate c = lay_out(units);
      work_.explanation +=
          format("shared pieces of {} units, {} rows: longest block {:.1f} tiles, fair share {:.1f}\n", units,
                 rows, c.makespan, fair);
      if (best.units == 0 || c.makespan < best.makespan - kClearlyBetter) best = std::move(c);
    }
    best.cost = best.makespan + (rows <= kWarpgroupRows ? kSecondReadCost * again : 0.0);
    return best;
  }

  void take(Candidate best) {
    work_.piece_first.push_back(0);
    for (const auto& pieces : best.of_block) {
      work_.pieces.insert(work_.pieces.end(), pieces.begin(), pieces.end());
      work_.piece_first.push_back(static_cast<int32_t>(work_.pieces.size()));
    }
    list_partials();
  }

  Piece piece_of(const Part& part, int kv_head, int32_t from, int32_t to) const {
    Piece piece{};
    piece.sequence = part.sequence;
    piece.kv_head = kv_head;
    piece.first_unit = from;
    piece.end_unit = to;
    piece.end_key = part.tail ? -1 : to * kUnit;
    piece.first_token = part.token;
    piece.first_row = 0;
    piece.rows = part.rows;
    const bool whole = from == part.start && part.tail && to == part.to;
    piece.partial = whole ? -1
                          : static_cast<int32_t>(kv_head * head_partials_ + part.partial +
                                                 int64_t{from - part.from} * part.rows);
    piece.partial_stride = part.rows;
    // A run that begins inside a segment finds that segment begun by another piece, too.
    piece.flags = (from > part.start ? kPieceCutBefore : 0) | (part.tail ? 0 : kPieceShared);
    // Rows of one warpgroup in one segment: the other can take half of it, and folds both where the segment
    // begins here.
    if (!part.tail && part.rows > 8 && part.rows <= kWarpgroupRows &&
        to <= (from / kSegmentUnits + 1) * kSegmentUnits) {
      const bool begins = from == part.start || from % kSegmentUnits == 0;
      if (!begins) piece.flags |= kPieceApart;
      if (begins && to - from > 1) piece.flags |= kPieceHalves;
    }
    return piece;
  }

  double piece_cost(const Part& part, int32_t from, int32_t to) const {
    const int32_t last_unit = part.tail ? units_of(sequences_[size_t(part.sequence)].keys) : part.to;
    double tiles = double(std::max(0, std::min(to, last_unit) - from)) * kUnitTiles;
    if (part.tail && to >= last_unit && from < last_unit) {
      tiles -= double(int64_t{last_unit} * kUnitTiles -
                      (sequences_[size_t(part.sequence)].keys + kTile - 1) / kTile);
    }
    const double segments = std::ceil(double(to - from) / kSegmentUnits);
    return tiles * tile_cost(part.rows) + (part.tail ? kPrivatePieceCost : kPieceCost) +
           kPartialCost * segments * part.rows;
  }

  // Shared pieces on an evenly strided subset of the blocks, then private work in table order up to an equal
  // cost for each; private rows are cut at segments, or at units when there is little.
  Candidate lay_out(int32_t units) const {
    Candidate c;
    c.units = units;
    c.of_block.resize(size_t(options_.blocks));
    std::vector<double> load(size_t(options_.blocks), 0.0);
    struct Shared {
      const Part* part;
      int kv_head;
      int32_t from, to;
    };
    std::vector<Shared> shared;
    double total = 0;
    int64_t private_units = 0;
    for (int h = 0; h < kv_heads_; ++h) {
      for (const Part& part : parts_) {
        if (part.tail) {
          total += piece_cost(part, part.from, part.to);
          private_units += part.to - part.from;
          continue;
        }
        for (int32_t from = part.from; from < part.to;) {
          const int32_t to = std::min(part.to, (from / units + 1) * units);
          shared.push_back({&part, h, from, to});
          total += piece_cost(part, from, to);
          from = to;
        }
      }
    }
    const auto blocks = static_cast<int64_t>(options_.blocks);
    for (size_t i = 0; i < shared.size(); ++i) {
      const auto block =
          static_cast<size_t>(int64_t(i) * blocks / int64_t(std::max(shared.size(), size_t{1})));
      const Shared& s = shared[i];
      c.of_block[block].push_back(piece_of(*s.part, s.kv_head, s.from, s.to));
      load[block] += piece_cost(*s.part, s.from, s.to);
    }
    // Private work in one line of units, of which each block takes as many as fit below a level: the lowest
    // at which all do. Cuts are moved to the nearest grain; what one block gets too much, the next gets less.
    const std::vector<double> load_before = load;
    const double private_cost = total - std::accumulate(load.begin(), load.end(), 0.0);
    const double unit_cost = private_units > 0 ? private_cost / double(private_units) : 1.0;
    const auto fitting = [&](double level, double block_load) {
      return static_cast<int64_t>(std::floor(std::max(0.0, level - block_load) / unit_cost + 1e-9));
    };
    double low = 0, level = total + unit_cost;
    for (int round = 0; round < 40; ++round) {
      const double middle = (low + level) / 2;
      int64_t fit = 0;
      for (const double l : load) fit += fitting(middle, l);
      (fit >= private_units ? level : low) = middle;
    }
    const int32_t grain = private_units >= 8 * kSegmentUnits * blocks ? kSegmentUnits : 1;
    size_t block = 0;
    int64_t at = 0, room_end = fitting(level, load[0]);
    for (const Part& part : parts_) {
      if (!part.tail) continue;
      for (int h = 0; h < kv_heads_; ++h) {
        for (int32_t from = part.from; from < part.to;) {
          int32_t to = part.to;
          if (block + 1 < load.size()) {
            const int64_t end = room_end - at + from + grain / 2;
            to = static_cast<int32_t>(std::clamp(end / grain * grain, int64_t{from}, int64_t{part.to}));
          }
          if (to > from) {
            c.of_block[block].push_back(piece_of(part, h, from, to));
            load[block] += piece_cost(part, from, to);
            at += to - from;
          }
          if (to < part.to) room_end += fitting(level, load_before[++block]);
          from = to;
        }
      }
    }
    c.makespan = *std::max_element(load.begin(), load.end());
    return c;
  }

  // What each (token, kv head) folds, read off the pieces in the order of their units.
  void list_partials() {
    struct Handed {
      int32_t unit, row, block;
    };
    std::vector<std::vector<Handed>> handed(sequences_.size() * size_t(kv_heads_));
    int32_t block = 0;
    for (size_t i = 0; i < work_.pieces.size(); ++i) {
      const Piece& piece = work_.pieces[i];
      while (int32_t(i) >= work_.piece_first[size_t(block) + 1]) ++block;
      if (piece.partial < 0) continue;
      const int32_t apart_end = (piece.flags & kPieceApart) != 0 ? piece.end_unit
                                : (piece.flags & kPieceCutBefore) != 0
                                    ? (piece.first_unit + kSegmentUnits - 1) / kSegmentUnits * kSegmentUnits
                                    : piece.first_unit;
      for (int32_t unit = piece.first_unit; unit < piece.end_unit; ++unit) {
        if (unit >= apart_end && unit % kSegmentUnits != 0 && unit != piece.first_unit) continue;
        for (int32_t t = 0; t < piece.rows / group_; ++t) {
          const int32_t token = work_.tokens[size_t(piece.first_token + t)];
          handed[size_t(token) * size_t(kv_heads_) + size_t(piece.kv_head)].push_back(
              {unit, piece.partial + (unit - piece.first_unit) * piece.partial_stride + t * group_, block});
        }
      }
    }
    work_.limits.resize(sequences_.size());  // whole rows follow any length
    size_t most = 0, all = 0;
    for (const std::vector<Handed>& list : handed) {
      most = std::max(most, list.size());
      all += list.size();
    }
    // A list for each where its number alone says, unless that takes far more room.
    const bool padded = handed.size() * most <= 4 * all + 4096;
    if (padded) work_.entry_stride = static_cast<int32_t>(most);
    for (size_t i = 0; i < handed.size(); ++i) {
      if (padded) work_.entries.resize(i * most, kNoPartial);
      std::vector<Handed>& list = handed[i];
      std::sort(list.begin(), list.end(), [](const Handed& a, const Handed& b) { return a.unit < b.unit; });
      const size_t token = i / size_t(kv_heads_);
      if (!list.empty()) work_.limits[token] = limits_[token];
      work_.partials.push_back({static_cast<int32_t>(work_.entries.size()), static_cast<int32_t>(list.size()),
                                limits_[token].least, limits_[token].most});
      int32_t segment = -1;
      for (const Handed& h : list) {
        const bool continues = h.unit / kSegmentUnits == segment;
        segment = h.unit / kSegmentUnits;
        work_.entries.push_back({continues ? static_cast<int32_t>(uint32_t(h.row) | 0x80000000u) : h.row,
                                 h.unit * kUnit, h.block, 0});
      }
    }
    if (padded) work_.entries.resize(handed.size() * most, kNoPartial);
  }

  std::span<const TreeSequence> sequences_;
  const int kv_heads_, group_;
  const int64_t block_size_;
  const TreePlanOptions& options_;
  std::vector<int32_t> order_;   // sequences by their tables
  std::vector<int32_t> common_;  // whole units that order_[i] and order_[i + 1] begin with
  std::vector<Run> runs_;
  std::vector<KeyLimits> limits_;  // [sequence], should its rows be cut
  std::vector<Part> parts_;
  int64_t head_partials_ = 0;
  TreeWork work_;
};

}  // namespace

TreeWork plan_tree(std::span<const TreeSequence> sequences, int kv_heads, int group, int64_t block_size,
                   const TreePlanOptions& options) {
  return Planner(sequences, kv_heads, group, block_size, options).plan();
}

}  // namespace tessera::attention::cuda::steps
