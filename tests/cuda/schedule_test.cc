// The order of tiles and the blocks of keys of the Hopper forward, on the host: every tile exactly once,
// every key that a row sees, whatever the shape. Needs CUDA's headers but no device.
#include "attention/cuda/sm90/prefill/schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "attention/cuda/sm90/prefill/packing.h"

namespace tessera::attention::cuda::sm90 {
namespace {

TEST(Division, IsExactBelowTwoToThe31) {
  std::mt19937 random(1);
  std::vector<uint32_t> divisors = {
      1, 2, 3, 5, 7, 63, 64, 65, 132, 65535, 65536, 65537, (1u << 30) + 1, (1u << 31) - 1};
  for (int i = 0; i < 2000; ++i)
    divisors.push_back(1 +
                       static_cast<uint32_t>(random() % (uint64_t{1} << (1 + i % 31)) % ((1u << 31) - 1)));
  for (const uint32_t divisor : divisors) {
    const Division by(divisor);
    std::vector<uint32_t> numerators = {0, 1, divisor - 1, divisor, (1u << 31) - 1, (1u << 31) - 2};
    for (int i = 0; i < 50; ++i) {
      numerators.push_back(static_cast<uint32_t>(random() >> 1));
      numerators.push_back(static_cast<uint32_t>(random() >> 1) / divisor * divisor);
    }
    for (const uint32_t n : numerators) ASSERT_EQ(by.quotient(n), n / divisor) << n << " / " << divisor;
  }
}

struct TileShape {
  uint32_t batch, heads, group, m_blocks, section;
};

PrefillParams params_of(const TileShape& s) {
  PrefillParams p{};
  p.total_heads = static_cast<int32_t>(s.batch * s.heads);
  p.tiles = static_cast<int32_t>(s.batch * s.heads * s.m_blocks);
  p.m_blocks = Division(s.m_blocks);
  p.heads = Division(s.heads);
  p.group = Division(s.group);
  p.section_heads = Division(s.section);
  p.section_tiles = Division(s.section * s.m_blocks);
  return p;
}

template <bool kLongestFirst>
void check_every_tile_once(const TileShape& s) {
  const PrefillParams p = params_of(s);
  std::set<std::tuple<int, int, int>> seen;
  int previous = INT32_MAX;
  for (int tile = 0; tile < p.tiles; ++tile) {
    const TileIndex at = tile_index<kLongestFirst>(p, tile);
    ASSERT_TRUE(at.batch >= 0 && at.batch < static_cast<int>(s.batch))
        << "tile " << tile << " batch " << at.batch;
    ASSERT_TRUE(at.head >= 0 && at.head < static_cast<int>(s.heads))
        << "tile " << tile << " head " << at.head;
    ASSERT_TRUE(at.m >= 0 && at.m < static_cast<int>(s.m_blocks)) << "tile " << tile << " m " << at.m;
    ASSERT_EQ(at.kv_head, at.head / static_cast<int>(s.group)) << "tile " << tile;
    ASSERT_TRUE(seen.emplace(at.batch, at.head, at.m).second)
        << "tile " << tile << " is batch " << at.batch << " head " << at.head << " m " << at.m << " again";
    if constexpr (kLongestFirst) {
      // Inside a section the last rows come first.
      const bool begins = tile % static_cast<int>(s.section * s.m_blocks) == 0;
      ASSERT_TRUE(begins || at.m <= previous) << "tile " << tile << " m " << at.m << " after " << previous;
      const int head = at.batch * static_cast<int>(s.heads) + at.head;
      ASSERT_EQ(head / static_cast<int>(s.section), tile / static_cast<int>(s.section * s.m_blocks))
          << "tile " << tile;
      previous = at.m;
    }
  }
  ASSERT_EQ(static_cast<int>(seen.size()), p.tiles);
}

TEST(PrefillSchedule, EveryTileIsWorkedOnOnce) {
  std::mt19937 random(2);
  const auto up_to = [&](uint32_t most) { return 1 + static_cast<uint32_t>(random()) % most; };
  for (int trial = 0; trial < 400; ++trial) {
    TileShape s{};
    s.batch = up_to(5);
    s.group = up_to(6);
    s.heads = s.group * up_to(6);
    s.m_blocks = up_to(20);
    s.section = std::min(s.batch * s.heads, s.group * up_to(7));
    SCOPED_TRACE("batch " + std::to_string(s.batch) + " heads " + std::to_string(s.heads) + " group " +
                 std::to_string(s.group) + " blocks " + std::to_string(s.m_blocks) + " section " +
                 std::to_string(s.section));
    check_every_tile_once<false>(s);
    check_every_tile_once<true>(s);
    if (HasFailure()) return;
  }
}

// Whether a row sees a key, from the definition.
struct Rule {
  Sight sight;
  int left, right, leftpad, keys, rows;
  bool sees(int row, int key) const {
    if (key < leftpad || key >= keys) return false;
    const int position = row + keys - rows;
    if (sight == Sight::causal) return key <= position;
    if (sight == Sight::window) return key >= position - left && key <= position + right;
    return true;
  }
};

template <int kBlock, Sight kSight, Form kForm>
void check_key_blocks(std::mt19937& random, int seqlen_q, int seqlen_k) {
  PrefillParams p{};
  p.window_left = random() % 3 == 0 ? kNoWindow : static_cast<int>(random() % 200);
  p.window_right = random() % 3 == 0 ? kNoWindow : static_cast<int>(random() % 50);
  Sequence s{0, 0, seqlen_q, 0, 0, seqlen_k, 0};
  if (kForm != Form::dense && random() % 2 == 0)
    s.leftpad = static_cast<int>(random() % static_cast<uint32_t>(seqlen_k + 1));
  const Rule rule{kSight, p.window_left, p.window_right, s.leftpad, s.keys, s.rows};
  const int blocks = std::max((s.keys + kBlock - 1) / kBlock, 1);
  for (const int height : {64, 128, 192}) {
    for (int first = 0; first < s.rows; first += height) {
      // A warpgroup's rows may run past the sequence's.
      for (const int last : {std::min(first + height, s.rows) - 1, first + height - 1}) {
        const KeyBlocks got = key_blocks<kBlock, kSight, kForm>(p, s, first, last);
        SCOPED_TRACE("rows " + std::to_string(first) + " to " + std::to_string(last) + " of " +
                     std::to_string(s.rows) + ", " + std::to_string(s.keys) + " keys, window " +
                     std::to_string(p.window_left) + ", " + std::to_string(p.window_right) + ", leftpad " +
                     std::to_string(s.leftpad) + ", block " + std::to_string(kBlock) + ", sight " +
                     std::to_string(static_cast<int>(kSight)) + ", form " +
                     std::to_string(static_cast<int>(kForm)));
        ASSERT_TRUE(got.low >= 0 && got.low < got.high && got.high <= blocks)
            << got.low << " to " << got.high;
        int low = INT32_MAX, high = 0;
        for (int block = 0; block < blocks; ++block) {
          bool some = false, all = true;
          for (int row = first; row <= std::min(last, s.rows - 1); ++row) {
            for (int key = block * kBlock; key < (block + 1) * kBlock; ++key) {
              const bool sees = rule.sees(row, key);
              some |= sees;
              all &= sees;
            }
          }
          if (some) low = std::min(low, block), high = block + 1;
          const bool clear = block >= got.clear_low && block < got.clear_high;
          if (clear) {
            ASSERT_TRUE(all) << "block " << block << " is taken for wholly seen";
          }
          // Every row there is: the mask is left out wherever it may be.
          if (last < s.rows && all) {
            ASSERT_TRUE(clear) << "block " << block << " is masked though every row sees it whole";
          }
        }
        if (high == 0) continue;
        ASSERT_LE(got.low, low);
        ASSERT_GE(got.high, high);
        if (last < s.rows) {
          ASSERT_EQ(got.low, low);
          ASSERT_EQ(got.high, high);
        }
      }
    }
  }
}

template <int kBlock>
void check_every_sight(std::mt19937& random, int seqlen_q, int seqlen_k) {
  check_key_blocks<kBlock, Sight::full, Form::dense>(random, seqlen_q, seqlen_k);
  check_key_blocks<kBlock, Sight::causal, Form::dense>(random, seqlen_q, seqlen_k);
  check_key_blocks<kBlock, Sight::window, Form::dense>(random, seqlen_q, seqlen_k);
  check_key_blocks<kBlock, Sight::full, Form::ragged>(random, seqlen_q, seqlen_k);
  check_key_blocks<kBlock, Sight::causal, Form::ragged>(random, seqlen_q, seqlen_k);
  check_key_blocks<kBlock, Sight::window, Form::ragged>(random, seqlen_q, seqlen_k);
}

TEST(PrefillSchedule, BlocksOfKeysAreThoseThatRowsSee) {
  std::mt19937 random(3);
  std::vector<std::pair<int, int>> lengths = {{1, 1},    {64, 64}, {128, 256}, {200, 37},
                                              {37, 200}, {1, 300}, {130, 128}};
  for (int i = 0; i < 12; ++i)
    lengths.push_back({1 + static_cast<int>(random() % 300), 1 + static_cast<int>(random() % 300)});
  for (const auto& [seqlen_q, seqlen_k] : lengths) {
    check_every_sight<64>(random, seqlen_q, seqlen_k);
    check_every_sight<80>(random, seqlen_q, seqlen_k);
    check_every_sight<128>(random, seqlen_q, seqlen_k);
    if (HasFailure()) return;
  }
}

// With the heads of a group in one tile: every row of every head in one warpgroup's row that is not idle, and
// the warpgroup walks every block that the row sees and masks every block that it sees in part.
template <int kBlock, Sight kSight>
void check_grouped(std::mt19937& random, int tile_rows) {
  const auto below = [&](int limit) { return static_cast<int>(random() % static_cast<uint32_t>(limit)); };
  PrefillParams p{};
  const int group = below(8) == 0 ? 33 + below(32) : 2 + below(15), kv_heads = 1 + below(3);
  const int batch = 1 + below(4);
  p.seqlen_q = 1 + below(300), p.seqlen_k = 1 + below(900);
  std::vector<int32_t> cu = {0}, used;
  int longest = 1;
  for (int b = 0; b < batch; ++b) {
    const int rows = below(300);
    longest = std::max(longest, rows);
    cu.push_back(cu.back() + rows);
    used.push_back(below(p.seqlen_k + 1));
  }
  if (below(2) == 0) {
    p.cu_seqlens_q = cu.data(), p.total_q = cu.back(), p.seqlen_q = longest;
    p.seqused_k = used.data(), p.added = below(50);
  }
  p.window_left = kSight == Sight::window ? below(200) : kNoWindow;
  p.window_right = kSight == Sight::window ? below(50) : kSight == Sight::causal ? 0 : kNoWindow;
  const auto m_blocks = static_cast<uint32_t>((packed_rows(p.seqlen_q, group) + tile_rows - 1) / tile_rows);
  p.m_blocks = Division(m_blocks);
  p.heads = Division(static_cast<uint32_t>(kv_heads));
  p.group = Division(static_cast<uint32_t>(group));
  p.positions = Division(static_cast<uint32_t>(64 / group));
  p.position_of = (65536 + group - 1) / group;
  p.total_heads = batch * kv_heads;
  p.tiles = p.total_heads * static_cast<int>(m_blocks);
  const auto section = static_cast<uint32_t>(1 + below(p.total_heads));
  p.section_heads = Division(section);
  p.section_tiles = Division(section * m_blocks);
  SCOPED_TRACE("group " + std::to_string(group) + " kv heads " + std::to_string(kv_heads) + " batch " +
               std::to_string(batch) + " rows " + std::to_string(p.seqlen_q) + " keys " +
               std::to_string(p.seqlen_k) + " tile " + std::to_string(tile_rows) + " block " +
               std::to_string(kBlock) + " sight " + std::to_string(static_cast<int>(kSight)));
  constexpr Form kForm = Form::grouped;
  std::set<std::tuple<int, int, int>> seen;
  for (int tile = 0; tile < p.tiles; ++tile) {
    const TileIndex index = tile_index<true, true>(p, tile);
    const Sequence s = sequence<kForm>(p, index.batch);
    const int first = index.m * tile_rows, count = row_count<kForm>(p, s);
    if (first >= count) continue;
    const auto blocks = [&](int from, int to) {
      return key_blocks<kBlock, kSight, kForm>(p, s, row_at<kForm>(p, from), row_at<kForm>(p, to));
    };
    const KeyBlocks all = blocks(first, std::min(first + tile_rows, count) - 1);
    for (int warpgroup = first; warpgroup < std::min(first + tile_rows, count); warpgroup += 64) {
      const KeyBlocks mine = blocks(warpgroup, warpgroup + 63);
      const int low = at_least(mine.low, all.low);
      const int high = at_least(at_most(mine.high, all.high), low + 1);
      ASSERT_TRUE(low < all.high && high <= all.high) << low << " to " << high << " of " << all.high;
      for (int x = warpgroup; x < std::min(warpgroup + 64, count); ++x) {
        if (is_idle<kForm>(p, x)) continue;
        const int row = row_at<kForm>(p, x), head = index.head + head_at<kForm>(p, x);
        ASSERT_TRUE(row < s.rows && head < kv_heads * group && head / group == index.kv_head)
            << "row " << row << " head " << head;
        ASSERT_TRUE(seen.emplace(index.batch, head, row).second) << "row " << row << " head " << head;
        const int position = row + s.first_position();
        const int begin = std::max(0, position - p.window_left);
        const int last = std::min(s.keys - 1, kSight == Sight::full ? s.keys - 1 : position + p.window_right);
        if (last < begin) continue;
        ASSERT_TRUE(begin / kBlock >= low && last / kBlock < high)
            << "row " << row << " sees keys " << begin << " to " << last << ", blocks " << low << " to "
            << high;
        const int clear_low = std::max(low, mine.clear_low), clear_high = std::min(high, mine.clear_high);
        if (clear_low < clear_high) {
          ASSERT_TRUE(begin <= clear_low * kBlock && last >= clear_high * kBlock - 1)
              << "row " << row << " sees keys " << begin << " to " << last << ", unmasked blocks "
              << clear_low << " to " << clear_high;
        }
      }
    }
  }
  size_t rows = 0;
  for (int b = 0; b < batch; ++b) rows += static_cast<size_t>(sequence<kForm>(p, b).rows);
  ASSERT_EQ(seen.size(), rows * static_cast<size_t>(kv_heads * group));
}

TEST(PrefillSchedule, GroupedTilesHoldEveryRowOfEveryHeadOnce) {
  std::mt19937 random(5);
  for (int trial = 0; trial < 150; ++trial) {
    check_grouped<128, Sight::full>(random, 128);
    check_grouped<128, Sight::causal>(random, 192);
    check_grouped<80, Sight::window>(random, 128);
    check_grouped<64, Sight::causal>(random, 256);
    if (HasFailure()) return;
  }
}

TEST(PrefillPacking, PaysWhereFewRowsLeaveTilesEmptyAndTimeIsSaved) {
  // 64 sequences of 17 rows, 32 heads over 8: 2,048 tiles of 17 rows, or 512 of 68.
  EXPECT_TRUE(packing_pays(64, 17, 32, 8, 128, 132));
  // Full tiles.
  EXPECT_FALSE(packing_pays(64, 128, 32, 8, 128, 132));
  EXPECT_FALSE(packing_pays(64, 4096, 32, 8, 128, 132));
  // 130 rows: two tiles of a head, 8 of four; or 5.
  EXPECT_TRUE(packing_pays(64, 130, 32, 8, 128, 132));
  // 64 rows of two heads: two warpgroups beside each other hide more of each other than one alone.
  EXPECT_TRUE(packing_pays(64, 64, 16, 8, 128, 132));
  // 192 rows: a full tile and one of a lone warpgroup for each head, or 6 full tiles for four (0.76 of the
  // time).
  EXPECT_TRUE(packing_pays(64, 192, 32, 8, 128, 132));
  EXPECT_FALSE(packing_pays(64, 256, 32, 8, 128, 132));
  // One sequence: 32 tiles at once, or 8 that take longer.
  EXPECT_FALSE(packing_pays(1, 17, 32, 8, 128, 132));
  EXPECT_FALSE(packing_pays(64, 17, 32, 32, 128, 132));
  EXPECT_TRUE(packing_pays(64, 17, 28, 4, 128, 132)) << "groups of 7: 9 positions in 63 of 64 rows";
  EXPECT_FALSE(packing_pays(64, 17, 130, 2, 128, 132)) << "groups of 65";
  EXPECT_FALSE(packing_pays(64, 17, 32, 0, 128, 132));
}

TEST(PrefillSchedule, LengthsOutOfRangeStayInsideTheTensors) {
  std::mt19937 random(4);
  const auto any = [&] { return static_cast<int32_t>(random() % 2001) - 700; };
  for (int trial = 0; trial < 2000; ++trial) {
    std::vector<int32_t> cu_q(5), cu_k(5), used(4), pad(4);
    for (std::vector<int32_t>* values : {&cu_q, &cu_k, &used, &pad})
      for (int32_t& value : *values) {
        const int32_t far = std::array{-(1 << 30), INT32_MIN, INT32_MIN + 1, INT32_MAX}[random() % 4];
        value = trial % 7 == 0 && random() % 4 == 0 ? far : any();
      }
    PrefillParams p{};
    p.seqlen_q = 300, p.seqlen_k = 400;
    p.total_q = 700, p.total_k = 900;
    if (random() % 2 == 0) p.cu_seqlens_q = cu_q.data(), p.cu_seqlens_k = cu_k.data();
    if (random() % 2 == 0) p.seqused_k = used.data(), p.added = static_cast<int32_t>(random() % 300);
    if (random() % 2 == 0) p.leftpad_k = pad.data();
    for (int batch = 0; batch < 4; ++batch) {
      const Sequence s = sequence<Form::ragged>(p, batch);
      const bool packed = p.cu_seqlens_q != nullptr;
      ASSERT_TRUE(s.rows >= 0 && s.rows <= p.seqlen_q) << s.rows;
      ASSERT_TRUE(s.keys >= 0 && s.keys <= p.seqlen_k) << s.keys;
      ASSERT_TRUE(s.leftpad >= 0 && s.leftpad <= s.keys) << s.leftpad;
      ASSERT_TRUE(s.q_first >= 0 && s.q_first + s.rows <= (packed ? p.total_q : p.seqlen_q)) << s.q_first;
      ASSERT_TRUE(s.k_first >= 0 && s.k_first + s.keys <= (packed ? p.total_k : p.seqlen_k)) << s.k_first;
      ASSERT_EQ(s.q_batch, packed ? 0 : batch);
      ASSERT_EQ(s.k_batch, packed ? 0 : batch);
    }
  }
}

}  // namespace
}  // namespace tessera::attention::cuda::sm90
