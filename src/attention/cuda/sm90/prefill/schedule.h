// Which tiles of queries a block works on, and which blocks of keys a tile needs. Host and device.
#pragma once

#include <cstdint>

#include "attention/cuda/sm90/prefill/params.h"

namespace tessera::attention::cuda::sm90 {

// What rows see: all keys; those up to their own position; a window.
enum class Sight { full, causal, window };

// Rows [m * rows, (m + 1) * rows) of head `head` of batch `batch`.
struct TileIndex {
  int m, head, batch, kv_head;
};

template <bool kLongestFirst>
TESSERA_HOST_DEVICE TileIndex tile_index(const PrefillParams& p, int tile) {
  uint32_t m, head;
  const auto t = static_cast<uint32_t>(tile);
  if constexpr (kLongestFirst) {
    const uint32_t section = p.section_tiles.quotient(t);
    const uint32_t first = section * p.section_heads.divisor;
    const uint32_t inside = t - section * p.section_tiles.divisor;
    const uint32_t left = static_cast<uint32_t>(p.total_heads) - first;
    // The last section may be short.
    const bool whole = left >= p.section_heads.divisor;
    const uint32_t row = whole ? p.section_heads.quotient(inside) : inside / left;
    head = first + inside - row * (whole ? p.section_heads.divisor : left);
    m = p.m_blocks.divisor - 1 - row;
  } else {
    head = p.m_blocks.quotient(t);
    m = t - head * p.m_blocks.divisor;
  }
  const uint32_t batch = p.heads.quotient(head);
  const uint32_t inside = head - batch * p.heads.divisor;
  return {static_cast<int>(m), static_cast<int>(inside), static_cast<int>(batch),
          static_cast<int>(p.group.quotient(inside))};
}

// Blocks [low, high) of `block` keys that rows [first, last] see at all, at least one; and of those, the
// blocks [clear_low, clear_high) that every one of the rows sees whole.
struct KeyBlocks {
  int low, high, clear_low, clear_high;
};

TESSERA_HOST_DEVICE int at_least(int a, int b) {
  return a > b ? a : b;
}
TESSERA_HOST_DEVICE int at_most(int a, int b) {
  return a < b ? a : b;
}

template <int kBlock, Sight kSight>
TESSERA_HOST_DEVICE KeyBlocks key_blocks(const PrefillParams& p, int first, int last) {
  const int keys = p.seqlen_k;
  const int blocks = (keys + kBlock - 1) / kBlock;
  KeyBlocks range{0, blocks, 0, keys / kBlock};
  if constexpr (kSight != Sight::full) {
    const int right = kSight == Sight::causal ? 0 : p.window_right;
    const int right_of_last = last + p.first_position + right;
    range.high = right_of_last < 0 ? 0 : at_most(blocks, right_of_last / kBlock + 1);
    range.clear_high = at_most(at_least(first + p.first_position + right + 1, 0) / kBlock, range.clear_high);
  }
  if constexpr (kSight == Sight::window) {
    range.low = at_most(at_least(first + p.first_position - p.window_left, 0) / kBlock, blocks - 1);
    range.clear_low = (at_least(last + p.first_position - p.window_left, 0) + kBlock - 1) / kBlock;
  }
  range.high = at_least(range.high, range.low + 1);
  return range;
}

}  // namespace tessera::attention::cuda::sm90
