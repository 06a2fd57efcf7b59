// Philox4x32-10 on the device, and the dropout bits of an accumulator fragment. The draw is the function of
// (batch, head, row, column) in tessera/attention.h, so the bits equal the CPU's whatever the tile.
//
// Fragments: with g = lane / 4 and t = lane % 4, element e of a slab of 16 rows stands in row
// g + 8 * (e / 2 % 2) and column 8 * (e / 4) + 2 * t + e % 2: the accumulators of mma.m16n8 and of wgmma.
#pragma once

#include <cstdint>

#include "attention/cpu/dropout_key.h"

namespace tessera::attention::cuda {

struct PhiloxWords {
  uint32_t word[4];
};

__device__ __forceinline__ PhiloxWords philox4x32_device(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                                                         uint32_t key0, uint32_t key1) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint32_t high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ key0;
    c1 = low1;
    c2 = high0 ^ c3 ^ key1;
    c3 = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Bytes of columns [16 * block, 16 * block + 16) of a row, counted inside the problem.
__device__ __forceinline__ PhiloxWords dropout_words(const DropoutKey& key, uint32_t batch, uint32_t head,
                                                     uint32_t row, uint32_t block) {
  return philox4x32_device(key.block0 + block, key.row0 + row, key.head0 + head, key.batch0 + batch, key.key0,
                           key.key1);
}

// Whether column `column` of the row stays: for code that is not about fragments.
__device__ __forceinline__ bool dropout_keeps(const DropoutKey& key, uint32_t batch, uint32_t head,
                                              uint32_t row, uint32_t column) {
  const PhiloxWords words = dropout_words(key, batch, head, row, column / 16);
  uint32_t word = words.word[0];
#pragma unroll
  for (int i = 1; i < 4; ++i) word = column % 16 / 4 == i ? words.word[i] : word;
  return (word >> (8 * (column % 4)) & 255) <= key.threshold;
}

// Bits e = 0..15 of the fragment's elements in columns [32 * pair, 32 * pair + 32): 1 stays. row: the lane's
// own, of the fragment's first element. The four lanes of a quad need the same four blocks (two rows, two
// blocks of columns), so each draws one and the quad exchanges words: a quarter of the calls.
// REQUIRES: the whole warp takes part.
__device__ __forceinline__ uint32_t dropout_bits32(const DropoutKey& key, uint32_t batch, uint32_t head,
                                                   uint32_t row, uint32_t pair) {
  const int lane = threadIdx.x & 31, t = lane & 3, quad = lane & ~3;
  // Lane t draws row g + 8 * (t % 2), block 2 * pair + t / 2.
  const PhiloxWords mine = dropout_words(key, batch, head, row + 8 * (t & 1), 2 * pair + (t >> 1));
  uint32_t bits = 0;
#pragma unroll
  for (int source = 0; source < 4; ++source) {
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) word[i] = __shfl_sync(0xffffffffu, mine.word[i], quad + source);
    // Columns 2t, 2t + 1 lie in word t / 2, columns 8 + 2t, 9 + 2t in word 2 + t / 2.
    const uint32_t low = (t < 2 ? word[0] : word[1]) >> (16 * (t & 1));
    const uint32_t high = (t < 2 ? word[2] : word[3]) >> (16 * (t & 1));
    const int half = source & 1, block = source >> 1;
    const int first = 8 * block + 2 * half;  // element of column 2t of this block and row
    bits |= ((low & 255) <= key.threshold ? 1u : 0u) << first;
    bits |= ((low >> 8 & 255) <= key.threshold ? 1u : 0u) << (first + 1);
    bits |= ((high & 255) <= key.threshold ? 1u : 0u) << (first + 4);
    bits |= ((high >> 8 & 255) <= key.threshold ? 1u : 0u) << (first + 5);
  }
  return bits;
}

}  // namespace tessera::attention::cuda
