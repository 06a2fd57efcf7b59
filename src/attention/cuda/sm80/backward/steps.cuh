// Which rows a CTA of the sm_80 backward walks, in which order, and when it may add to their dq.
#pragma once

#include "attention/cuda/common/mask.cuh"
#include "attention/cuda/common/mma_tiles.cuh"
#include "attention/cuda/sm80/backward/config.h"

namespace tessera::attention::cuda::sm80 {

// A CTA's tile of keys, by its ticket. Tickets of a set of heads begin with the tiles of the first keys,
// under a causal mask those with most rows, so that the last to begin are short.
struct Place {
  int tile, kv_head, batch;
};
__device__ __forceinline__ Place place_of(const BackwardParams& p, int ticket) {
  const int of_set = p.set_heads * p.key_tiles, set = ticket / of_set, at = ticket - set * of_set;
  const int heads = min(p.set_heads, p.batch * p.kv_heads - set * p.set_heads);
  const int tile = at / heads, head = set * p.set_heads + at - tile * heads;
  const int batch = head / p.kv_heads;
  return {tile, head - batch * p.kv_heads, batch};
}

// What a step needs to know.
struct Step {
  const char *q, *dout;  // of the first row
  int tile;              // of all tiles of rows of the problem
  int head;
  int row;         // first
  int begin, end;  // those of the tile's rows that exist and may see something
  uint32_t place;  // key tiles that add to dq before this one
  bool masked;     // not all rows see all keys
};

// Steps and what they follow from, in shared memory: one thread works out the step after the next, for all.
// Every thread for itself would pay with registers and with a wait for the divisions in each step.
template <int kRows, int kKeys>
struct Steps {
  Step step[4];
  const char *q, *dout;  // of row 0 of the group's first head
  uint32_t ticket;
  int first_tile, first_head;  // the group's first head, and its first tile of rows
  int tile;                    // of keys
  bool round;                  // every row sees every key: walks go round, each from a place of its own
  int first_row;               // that may see something
  int begin, count, start;
  // Of the next step: number in its head, head of the group.
  int turn, of;
  // Of a walk round, of the next step: key tiles of the CTA's group (`adders`) that add before it; they are
  // the quotient of a division that each step moves on by a quotient and a remainder.
  int groups_before, adders, ahead, remainder, quotient_step, remainder_step;

  __device__ __forceinline__ static int count_of(const Interval& rows) {
    return rows.end <= rows.begin ? 0 : (rows.end + kRows - 1) / kRows - rows.begin / kRows;
  }
  // Row tiles that see a key tile.
  __device__ __forceinline__ static int count_steps(const Features& f, const Sequence& s, int key_tile) {
    return count_of(rows_of_keys(f, s, key_tile * kKeys, kKeys));
  }

  // REQUIRES: count_steps() > 0.
  __device__ __forceinline__ void begin_walk(const Features& f, const Sequence& s, int key_tile, int together,
                                             int first_seeing_row) {
    const Interval rows = rows_of_keys(f, s, key_tile * kKeys, kKeys);
    tile = key_tile;
    round = f.left == kNoWindow && f.right == kNoWindow;
    first_row = first_seeing_row;
    begin = rows.begin / kRows;
    count = count_of(rows);
    turn = of = start = 0;
    if (!round) return;
    // A group's walks begin at rows that rise with the tile. At a row tile the last CTA whose walk begins at
    // or before it comes first, then falling round to the one behind it.
    const int first = s.leftpad / kKeys, group = tile / together * together;
    const int first_adder = max(first, group);
    adders = min((s.keys + kKeys - 1) / kKeys, group + together) - first_adder;
    groups_before = first_adder - first;
    start = static_cast<int>(int64_t{tile - first_adder} * count / adders);
    const int64_t last = int64_t{start + 1} * adders - 1;
    ahead = static_cast<int>(last / count) - (tile - first_adder);
    remainder = static_cast<int>(last % count);
    quotient_step = adders / count;
    remainder_step = adders % count;
  }

  // Works out step `number`, after all before it.
  template <DType kType>
  __device__ __forceinline__ void next(const BackwardParams& p, const Sequence& s, int number) {
    const Features& f = p.features;
    Step& to = step[number % 4];
    int row_tile = begin + count - 1 - turn;
    if (round) {
      row_tile = begin + (start + turn >= count ? start + turn - count : start + turn);
      to.place = groups_before + ahead;
      remainder += remainder_step;
      ahead += quotient_step;
      if (remainder >= count) remainder -= count, ++ahead;
      if (ahead >= adders) ahead -= adders;
    } else {
      to.place = tile - keys_of_rows(f, s, row_tile * kRows, kRows).begin / kKeys;
    }
    const int row = row_tile * kRows;
    const Interval clear = keys_of_all_rows(f, s, row, kRows);
    to.q = q + (of * p.q_head + row * p.q_row) * kBytes<kType>;
    to.dout = dout + (of * p.dout_head + row * p.dout_row) * kBytes<kType>;
    to.tile = first_tile + of * p.row_tiles + row_tile;
    to.head = first_head + of;
    to.row = row;
    to.begin = first_row - row;
    to.end = s.rows - row;
    to.masked = tile * kKeys < clear.begin || (tile + 1) * kKeys > clear.end;
    if (++turn == count) turn = 0, ++of;
  }
};

}  // namespace tessera::attention::cuda::sm80
