// Which tiles of queries a block works on, and which blocks of keys a tile needs. Host and device.
#pragma once

#include <cstdint>

#include "attention/cuda/sm90/prefill/params.h"

namespace tessera::attention::cuda::sm90 {

// What rows see: all keys; those up to their own position; a window.
enum class Sight { full, causal, window };
// Batches of one length in tensors of their own; sequences of any length, in packed tensors, in pages, with
// unused keys; those with scores that are more than products: softcap, ALiBi, masks, ancestors, dropout; and
// ragged's sequences, or dense's, with the query heads of a kv head's group in one tile (packing.h).
enum class Form { dense, ragged, general, grouped };

// Where one batch's rows and keys lie, and which there are.
struct Sequence {
  int q_first, q_batch, rows;  // rows [q_first, q_first + rows) of tensor batch q_batch
  int k_first, k_batch, keys;  // keys likewise; of the batch's pages where there is a table
  int leftpad;                 // keys at the front that nothing sees
  TESSERA_HOST_DEVICE int first_position() const { return keys - rows; }
};

TESSERA_HOST_DEVICE int at_least(int a, int b) {
  return a > b ? a : b;
}
TESSERA_HOST_DEVICE int at_most(int a, int b) {
  return a < b ? a : b;
}

// Device contents are not checked by the host: lengths are clamped to what the tensors hold.
template <Form kForm>
TESSERA_HOST_DEVICE Sequence sequence(const PrefillParams& p, int batch) {
  Sequence s{0, batch, p.seqlen_q, 0, batch, p.seqlen_k, 0};
  if constexpr (kForm != Form::dense) {
    if (p.cu_seqlens_q != nullptr) {
      s.q_first = at_most(at_least(p.cu_seqlens_q[batch], 0), p.total_q);
      s.rows =
          at_most(at_most(at_least(p.cu_seqlens_q[batch + 1], s.q_first), p.total_q) - s.q_first, p.seqlen_q);
      s.q_batch = 0;
    }
    if (p.cu_seqlens_k != nullptr) {
      s.k_first = at_most(at_least(p.cu_seqlens_k[batch], 0), p.total_k);
      s.keys =
          at_most(at_most(at_least(p.cu_seqlens_k[batch + 1], s.k_first), p.total_k) - s.k_first, p.seqlen_k);
      s.k_batch = 0;
    }
    if (p.seqused_k != nullptr)
      s.keys = at_most(at_least(at_most(p.seqused_k[batch], s.keys) + p.added, 0), s.keys);
    if (p.leftpad_k != nullptr) s.leftpad = at_most(at_least(p.leftpad_k[batch], 0), s.keys);
  }
  return s;
}

// Rows [m * rows, (m + 1) * rows) of head `head` of batch `batch`; grouped, of the group that begins there.
struct TileIndex {
  int m, head, batch, kv_head;
};

// Where a tile's head has its rows in a sequence: row `row` is the sequence's row row_at(), of the head that
// is head_at() behind the tile's. Grouped, the heads of a group lie inside of the sequence's rows, and a
// warpgroup's last rows may be idle: row_at() is then the row behind its last.
template <Form kForm>
TESSERA_HOST_DEVICE int row_at(const PrefillParams& p, int row) {
  if constexpr (kForm != Form::grouped) return row;
  return (row >> 6) * static_cast<int>(p.positions.divisor) + ((row & 63) * p.position_of >> 16);
}
template <Form kForm>
TESSERA_HOST_DEVICE int head_at(const PrefillParams& p, int row) {
  if constexpr (kForm != Form::grouped) return 0;
  return (row & 63) - ((row & 63) * p.position_of >> 16) * static_cast<int>(p.group.divisor);
}
template <Form kForm>
TESSERA_HOST_DEVICE bool is_idle(const PrefillParams& p, int row) {
  if constexpr (kForm != Form::grouped) return false;
  return (row & 63) >= static_cast<int>(p.positions.divisor * p.group.divisor);
}
// Rows up to the last that is not idle.
template <Form kForm>
TESSERA_HOST_DEVICE int row_count(const PrefillParams& p, const Sequence& s) {
  if constexpr (kForm != Form::grouped) return s.rows;
  const auto full = static_cast<int>(p.positions.quotient(static_cast<uint32_t>(s.rows)));
  return 64 * full +
         (s.rows - full * static_cast<int>(p.positions.divisor)) * static_cast<int>(p.group.divisor);
}

template <bool kLongestFirst, bool kGrouped = false>
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
  if constexpr (kGrouped) {
    return {static_cast<int>(m), static_cast<int>(inside * p.group.divisor), static_cast<int>(batch),
            static_cast<int>(inside)};
  }
  return {static_cast<int>(m), static_cast<int>(inside), static_cast<int>(batch),
          static_cast<int>(p.group.quotient(inside))};
}

// Blocks [low, high) of `block` keys that rows [first, last] see at all, at least one; and of those, the
// blocks [clear_low, clear_high) that every one of the rows sees whole.
struct KeyBlocks {
  int low, high, clear_low, clear_high;
};

template <int kBlock, Sight kSight, Form kForm>
TESSERA_HOST_DEVICE KeyBlocks key_blocks(const PrefillParams& p, const Sequence& s, int first, int last) {
  const int blocks = at_least((s.keys + kBlock - 1) / kBlock, 1);
  KeyBlocks range{0, blocks, 0, s.keys / kBlock};
  if constexpr (kSight != Sight::full) {
    const int right = kSight == Sight::causal ? 0 : p.window_right;
    const int right_of_last = last + s.first_position() + right;
    range.high = right_of_last < 0 ? 0 : at_most(blocks, right_of_last / kBlock + 1);
    range.clear_high =
        at_most(at_least(first + s.first_position() + right + 1, 0) / kBlock, range.clear_high);
  }
  if constexpr (kSight == Sight::window || kForm != Form::dense) {
    const int left = kSight == Sight::window ? p.window_left : kNoWindow;
    range.low = at_most(at_least(first + s.first_position() - left, s.leftpad) / kBlock, blocks - 1);
    range.clear_low = (at_least(last + s.first_position() - left, s.leftpad) + kBlock - 1) / kBlock;
  }
  range.high = at_least(range.high, range.low + 1);
  return range;
}

}  // namespace tessera::attention::cuda::sm90
