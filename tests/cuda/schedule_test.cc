// The order of tiles and the blocks of keys of the Hopper forward, on the host: every tile exactly once,
// every key that a row sees, whatever the shape. Needs CUDA's headers but no device.
#include "attention/cuda/sm90/prefill/schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

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

TEST(PrefillSchedule, LengthsOutOfRangeStayInsideTheTensors) {
  std::mt19937 random(4);
  const auto any = [&] { return static_cast<int32_t>(random() % 2001) - 700; };
  for (int trial = 0; trial < 2000; ++trial) {
    std::vector<int32_t> cu_q(5), cu_k(5), used(4), pad(4);
    for (std::vector<int32_t>* values : {&cu_q, &cu_k, &used, &pad})
      for (int32_t& value : *values) value = trial % 7 == 0 && random() % 4 == 0 ? -(1 << 30) : any();
    PrefillParams p{};
    p.seqlen_q = 300, p.seqlen_k = 400;
    p.total_q = 700, p.total_k = 900;
    if (random() % 2 == 0) p.cu_seqlens_q = cu_q.data(), p.cu_seqlens_k = cu_k.data();
    if (random() % 2 == 0) p.seqused_k = used.data();
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
