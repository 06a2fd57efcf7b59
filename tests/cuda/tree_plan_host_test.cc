// Plans of a prefix tree, walked on the host as the kernels walk them on a device: every row gets its own
// units in the order that it would walk them in alone, whatever is shared, cut, hidden by a window or grown
// since.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "attention/cuda/steps/plan.h"

namespace tessera::attention::cuda::steps {
using std::max;
using std::min;
}  // namespace tessera::attention::cuda::steps
#include "attention/cuda/steps/unit.cuh"  // device code: here its arithmetic is the host's

namespace tessera::attention::cuda::steps {
namespace {

constexpr uint32_t kSeed = 7;

struct Case {
  int kv_heads = 2, group = 1;
  int64_t block_size = 64;
  int64_t window_left = -1;
  std::vector<std::vector<int32_t>> tables;
  std::vector<int64_t> keys;
  TreePlanOptions options;

  int64_t first(int64_t keys_now) const {
    return window_left < 0 ? 0 : std::max<int64_t>(0, keys_now - 1 - window_left);
  }
  std::vector<TreeSequence> sequences() const {
    std::vector<TreeSequence> all;
    for (size_t b = 0; b < keys.size(); ++b) all.push_back({tables[b].data(), keys[b], first(keys[b])});
    return all;
  }
};

// Sequence b begins with the first common(b) blocks of an earlier one.
Case random_case(std::mt19937& random, int count, int64_t longest, int group) {
  Case c;
  c.group = group;
  c.kv_heads = 1 + int(random() % 3);
  c.block_size = std::vector<int64_t>{16, 64, 256}[random() % 3];
  int32_t next = 0;
  for (int b = 0; b < count; ++b) {
    c.keys.push_back(int64_t(random() % uint32_t(longest + 1)));
    // With room for growth.
    const auto blocks = size_t((c.keys.back() + 2048) / c.block_size + 1);
    std::vector<int32_t> table(blocks);
    for (int32_t& id : table) id = next++;
    if (b > 0) {
      const auto parent = size_t(random() % uint32_t(b));
      const int64_t most = std::min(c.keys[parent], c.keys.back()) / c.block_size;
      const int64_t common = int64_t(random() % uint32_t(most + 1));
      std::copy(c.tables[parent].begin(), c.tables[parent].begin() + common, table.begin());
    }
    c.tables.push_back(std::move(table));
  }
  c.options.sharing = TreeSharing::always;
  c.options.most_rows = std::vector<int>{8, 32, 128}[random() % 3];
  if (c.options.most_rows < group) c.options.most_rows = 32;
  c.options.shared_units = std::vector<int>{0, 1, 2, 4, 8}[random() % 5];
  c.options.blocks = std::vector<int>{1, 7, 132}[random() % 3];
  return c;
}

using Segments = std::vector<std::vector<int>>;  // units

// How rows fold their units when the lengths are `now`: [token][kv head][head of the group].
class Walk {
 public:
  Walk(const Case& c, const TreeWork& work, const std::vector<int64_t>& now) : c_(c), work_(work), now_(now) {
    rows_.resize(c.keys.size() * size_t(c.kv_heads * c.group));
    for (size_t i = 0; i + 1 < work.piece_first.size(); ++i)
      for (int32_t at = work.piece_first[i]; at < work.piece_first[i + 1]; ++at)
        piece(work.pieces[size_t(at)], int(i));
    for (size_t token = 0; token < c.keys.size(); ++token)
      for (int head = 0; head < c.kv_heads; ++head) combine(token, head);
  }
  const Segments& row(size_t token, int kv_head, int in_group) const {
    return rows_[(token * size_t(c_.kv_heads) + size_t(kv_head)) * size_t(c_.group) + size_t(in_group)];
  }

 private:
  Segments& row(size_t token, int kv_head, int in_group) {
    return rows_[(token * size_t(c_.kv_heads) + size_t(kv_head)) * size_t(c_.group) + size_t(in_group)];
  }
  void piece(Piece p, int block) {
    if (p.end_key < 0) {  // as ListedPieces
      const int64_t keys = now_[size_t(p.sequence)];
      p.end_key = int32_t(keys);
      if (p.partial < 0) {
        const auto first = int32_t(std::max<int64_t>(0, std::min(c_.first(keys), keys - 1)) / kUnit);
        p.first_unit = first;
        p.end_unit = first + std::max(1, int32_t((keys + kUnit - 1) / kUnit) - first);
      } else {
        p.end_unit = std::min(p.end_unit, int32_t((keys + kUnit - 1) / kUnit));
      }
    }
    ASSERT_EQ(p.rows % c_.group, 0);
    ASSERT_LE(p.rows, c_.options.most_rows);
    if ((p.flags & kPieceHalves) != 0) {
      ASSERT_GE(p.end_unit - p.first_unit, 2);
      ASSERT_LE(p.end_unit, (p.first_unit / kSegmentUnits + 1) * kSegmentUnits);
    }
    Segments whole;
    std::vector<int> segment;
    for (int32_t unit = p.first_unit; unit < p.end_unit; ++unit) {
      const UnitEntry e = unit_entry(p, unit, 1);
      if ((e.flags & kUnitStartsSegment) != 0) segment.clear();
      segment.push_back(unit);
      if ((e.flags & kUnitEndsSegment) == 0) continue;
      if ((e.flags & kUnitApart) != 0) {
        for (int r = 0; r < p.rows; ++r) {
          ASSERT_LT(e.partial + r, work_.partial_rows);
          ASSERT_TRUE(handed_.emplace(e.partial + r, std::pair{segment, block}).second)
              << "two hand over row " << e.partial + r;
        }
        continue;
      }
      if ((e.flags & kUnitStartsRow) != 0) whole.clear();
      whole.push_back(segment);
      if ((e.flags & kUnitEndsRow) == 0) continue;
      for (int r = 0; r < p.rows; ++r) {
        Segments& to =
            row(size_t(work_.tokens[size_t(p.first_token + r / c_.group)]), p.kv_head, r % c_.group);
        ASSERT_TRUE(to.empty()) << "written twice";
        to = whole;
      }
    }
  }
  void combine(size_t token, int kv_head) {
    const TokenPartials& mine = work_.partials[token * size_t(c_.kv_heads) + size_t(kv_head)];
    for (int in_group = 0; in_group < c_.group && mine.count > 0; ++in_group) {
      Segments& to = row(token, kv_head, in_group);
      ASSERT_TRUE(to.empty()) << "written and folded";
      for (int32_t i = mine.first; i < mine.first + mine.count; ++i) {
        const PartialEntry& entry = work_.entries[size_t(i)];
        if (entry.first_key >= now_[token]) break;
        const auto found = handed_.find((entry.row & 0x7fffffff) + in_group);
        ASSERT_NE(found, handed_.end()) << "nobody hands over row " << (entry.row & 0x7fffffff) + in_group;
        const auto& [units, block] = found->second;
        ASSERT_EQ(units.front() * kUnit, entry.first_key);
        ASSERT_EQ(block, entry.block);
        if (entry.row >= 0) {
          to.push_back(units);
          continue;
        }
        ASSERT_FALSE(to.empty());
        ASSERT_EQ(units.size(), 1u) << "a fold of a fold";
        to.back().push_back(units.front());
      }
    }
  }

  const Case& c_;
  const TreeWork& work_;
  const std::vector<int64_t>& now_;
  std::map<int32_t, std::pair<std::vector<int>, int>> handed_;  // units, block of the grid
  std::vector<Segments> rows_;
};

// Units that hold keys which are seen, by segments: what a row on its own folds. Units that it does not see
// are the identity, so they may be there and count for nothing.
Segments seen(const Segments& all, int64_t first_unit) {
  Segments left;
  for (const auto& segment : all) {
    std::vector<int> units;
    for (const int unit : segment)
      if (unit >= first_unit) units.push_back(unit);
    if (!units.empty()) left.push_back(units);
  }
  return left;
}
Segments alone(const Case& c, int64_t keys) {
  Segments all;
  for (int64_t unit = 0; unit * kUnit < keys; ++unit) {
    if (unit % kSegmentUnits == 0) all.emplace_back();
    all.back().push_back(int(unit));
  }
  return seen(all, c.first(keys) / kUnit);
}

// Whether anything was shared.
bool expect_rows_of(const Case& c, const std::vector<int64_t>& now, const std::string& name) {
  const std::vector<TreeSequence> sequences = c.sequences();
  const TreeWork work = plan_tree(sequences, c.kv_heads, c.group, c.block_size, c.options);
  if (!work.shares) return false;
  for (size_t b = 0; b < now.size(); ++b) {
    EXPECT_LE(work.limits[b].least, c.keys[b]) << name;
    EXPECT_GE(work.limits[b].most, std::min(c.keys[b] + c.options.reserve, c.options.capacity)) << name;
  }
  const Walk walk(c, work, now);
  if (::testing::Test::HasFatalFailure()) return true;
  for (size_t b = 0; b < now.size(); ++b) {
    if (now[b] < work.limits[b].least || now[b] > work.limits[b].most) continue;
    for (int head = 0; head < c.kv_heads; ++head) {
      for (int g = 0; g < c.group; ++g)
        EXPECT_EQ(seen(walk.row(b, head, g), c.first(now[b]) / kUnit), alone(c, now[b]))
            << name << ": sequence " << b << " of " << now[b] << " keys (planned " << c.keys[b]
            << "), kv head " << head << ", row " << g << "\n"
            << work.explanation;
    }
  }
  return true;
}

TEST(TreePlan, EveryRowFoldsItsOwnUnitsInOrder) {
  std::mt19937 random(kSeed);
  int shared = 0;
  for (int i = 0; i < 300; ++i) {
    const Case c = random_case(random, 1 + int(random() % 24), 5000, 1 + int(random() % 8));
    shared += expect_rows_of(c, c.keys, "case " + std::to_string(i)) ? 1 : 0;
    if (HasFailure()) return;
  }
  EXPECT_GE(shared, 100);
}

TEST(TreePlan, WindowsLeaveUnitsOut) {
  std::mt19937 random(kSeed + 1);
  int shared = 0;
  for (int i = 0; i < 300; ++i) {
    Case c = random_case(random, 1 + int(random() % 24), 5000, 1 + int(random() % 4));
    c.window_left = int64_t(random() % 3000);
    shared += expect_rows_of(c, c.keys, "case " + std::to_string(i)) ? 1 : 0;
    if (HasFailure()) return;
  }
  EXPECT_GE(shared, 100);
}

TEST(TreePlan, HoldsWhileSequencesGrowInsideTheReserve) {
  std::mt19937 random(kSeed + 2);
  int shared = 0;
  for (int i = 0; i < 300; ++i) {
    Case c = random_case(random, 1 + int(random() % 24), 4000, 1 + int(random() % 4));
    if (i % 2 == 1) c.window_left = int64_t(random() % 3000);
    c.options.reserve = int64_t(random() % 2000);
    std::vector<int64_t> now = c.keys;
    for (int64_t& keys : now) keys += int64_t(random() % uint32_t(c.options.reserve + 1));
    shared += expect_rows_of(c, now, "case " + std::to_string(i)) ? 1 : 0;
    if (HasFailure()) return;
  }
  EXPECT_GE(shared, 100);
}

TEST(TreePlan, HoldsForAnyLengthBetweenItsLimits) {
  std::mt19937 random(kSeed + 3);
  int shared = 0;
  for (int i = 0; i < 300; ++i) {
    Case c = random_case(random, 2 + int(random() % 8), 3000, 1);
    if (i % 3 == 2) c.window_left = int64_t(random() % 1000);
    std::vector<int64_t> now = c.keys;
    for (int64_t& keys : now) keys = int64_t(random() % 4000);
    shared += expect_rows_of(c, now, "case " + std::to_string(i)) ? 1 : 0;
    if (HasFailure()) return;
  }
  EXPECT_GE(shared, 100);
}

// Two sequences of 1,000 keys, 512 of them common.
Case pair_of_sequences() {
  Case c;
  c.keys = {1000, 1000};
  c.tables = {std::vector<int32_t>(16), std::vector<int32_t>(16)};
  for (int32_t i = 0; i < 16; ++i) {
    c.tables[0][size_t(i)] = i;
    c.tables[1][size_t(i)] = i < 8 ? i : 100 + i;
  }
  c.options.sharing = TreeSharing::always;
  c.options.most_rows = 8;
  return c;
}

TEST(TreePlan, CutRowsHoldFromTheSharedKeysToTheLastUnitOfTheReserve) {
  Case c = pair_of_sequences();
  const auto limits = [&] {
    const auto sequences = c.sequences();
    const TreeWork work = plan_tree(sequences, c.kv_heads, c.group, c.block_size, c.options);
    EXPECT_TRUE(work.shares);
    return std::pair{work.limits[0].least, work.limits[0].most};
  };
  EXPECT_EQ(limits(), std::pair(512, 1024));
  c.options.reserve = 24;
  EXPECT_EQ(limits(), std::pair(512, 1024));
  c.options.reserve = 25;
  EXPECT_EQ(limits(), std::pair(512, 1280));
  c.options.capacity = 1024;
  EXPECT_EQ(limits(), std::pair(512, 1024));
  c.window_left = 600;  // unit 0 is not seen, unit 1 is shared still: a shorter sequence would see more
  EXPECT_EQ(limits(), std::pair(1000, 1024));
}

TEST(TreePlan, WholeRowsHoldForAnyLength) {
  Case c = pair_of_sequences();
  c.keys.push_back(300);
  c.tables.push_back(std::vector<int32_t>(5, 999));
  c.options.blocks = 1;
  const auto sequences = c.sequences();
  const TreeWork work = plan_tree(sequences, c.kv_heads, c.group, c.block_size, c.options);
  ASSERT_TRUE(work.shares);
  EXPECT_EQ(work.limits[2].least, 0);
  EXPECT_EQ(work.limits[2].most, INT32_MAX);
}

TEST(TreePlan, RunsThatNoWindowReachesAreNotRead) {
  Case c = pair_of_sequences();
  c.window_left = 300;  // keys from 699 on: unit 2
  auto sequences = c.sequences();
  TreeWork work = plan_tree(sequences, c.kv_heads, c.group, c.block_size, c.options);
  EXPECT_FALSE(work.shares) << "only the first two units are common";
  EXPECT_EQ(work.reads.unshared, 2 * (16 - 8));
  c.window_left = 500;  // from 499 on: unit 1
  sequences = c.sequences();
  work = plan_tree(sequences, c.kv_heads, c.group, c.block_size, c.options);
  EXPECT_TRUE(work.shares);
  EXPECT_EQ(work.reads.tiles, 4 + 2 * 8);
  EXPECT_EQ(work.reads.shared, 4);
}

}  // namespace
}  // namespace tessera::attention::cuda::steps
