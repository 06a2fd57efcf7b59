// The dropout mask of tessera/attention.h on vector lanes: one Philox4x32-10 counter a lane. Compiled per ISA
// (include it in *_ISA.cc files only); equal to attention/dropout.h, which the tests compare it with.
#pragma once

#include "attention/cpu/dropout_key.h"
#include "attention/problem.h"
#include "simd/vec.h"

namespace tessera::attention {
inline namespace TESSERA_SIMD_NAMESPACE {

// Blocks of 16 columns in a tile of keys.
inline constexpr int kTileBlocks = kKeyTile / 16;

// Bytes of the tile of keys that begins at key `first_key` (a multiple of kKeyTile) for `count` rows, at most
// `most`: bytes [row][kKeyTile]. Costs about as much as 20 vector instructions a row on AVX-512.
template <int most>
TESSERA_VEC void dropout_tile(const DropoutKey& key, const DropoutRow* rows, int count, int64_t first_key,
                              uint8_t* bytes) {
  using namespace simd;
  constexpr int kCounters = (most * kTileBlocks + kLanes - 1) / kLanes * kLanes;
  uint32_t column[kCounters], row[kCounters], head[kCounters], batch[kCounters];
  const int counters = (count * kTileBlocks + kLanes - 1) / kLanes * kLanes;
  for (int i = 0; i < counters; ++i) {
    // Lanes beyond the last row draw it once more.
    const DropoutRow& from = rows[i / kTileBlocks < count ? i / kTileBlocks : count - 1];
    column[i] = key.block0 + static_cast<uint32_t>(first_key / 16) + static_cast<uint32_t>(i % kTileBlocks);
    row[i] = key.row0 + from.row;
    head[i] = key.head0 + from.head;
    batch[i] = key.batch0 + from.batch;
  }
  const I32 multiplier0 = set1_i32(static_cast<int32_t>(0xD2511F53u));
  const I32 multiplier1 = set1_i32(static_cast<int32_t>(0xCD9E8D57u));
  uint32_t words[4][kLanes];
  for (int i = 0; i < counters; i += kLanes) {
    I32 c0 = load_i32(column + i), c1 = load_i32(row + i), c2 = load_i32(head + i), c3 = load_i32(batch + i);
    uint32_t key0 = key.key0, key1 = key.key1;
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const I32 high0 = mul_high_u32(c0, multiplier0), low0 = c0 * multiplier0;
      const I32 high1 = mul_high_u32(c2, multiplier1), low1 = c2 * multiplier1;
      c0 = xor_(xor_(high1, c1), set1_i32(static_cast<int32_t>(key0)));
      c2 = xor_(xor_(high0, c3), set1_i32(static_cast<int32_t>(key1)));
      c1 = low1;
      c3 = low0;
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    store_i32(words[0], c0);
    store_i32(words[1], c1);
    store_i32(words[2], c2);
    store_i32(words[3], c3);
    for (int lane = 0; lane < kLanes && i + lane < count * kTileBlocks; ++lane) {
      for (int word = 0; word < 4; ++word) {
        __builtin_memcpy(bytes + (i + lane) * 16 + word * 4, &words[word][lane], 4);
      }
    }
  }
}

}  // namespace TESSERA_SIMD_NAMESPACE
}  // namespace tessera::attention
