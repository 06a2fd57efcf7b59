// What the host code hands to a kernel and gets back: plain data between TUs of different ISA flags.
#pragma once

#include <cstdint>

#include "simd/isa.h"
#include "tessera/dtype.h"

namespace tessera::attention {

// Floats of a row's running sum inside a segment: one for each lane of the widest ISA.
inline constexpr int kSumLanes = 16;
// A maximum below every score that is taken seriously, and finite, so that differences of maxima are numbers.
// Scores below it count as not visible.
inline constexpr float kNoMaximum = -1e30f;

// State of rows (see softmax_state.h): m [rows] in units of log2, l [rows][lanes], o [rows][v_width].
struct StateRows {
  float* m;
  float* l;
  float* o;
};

// The stacked query rows of an item for one kv head.
struct ItemRows {
  int head_dim, v_width;
  const void* q;             // [rows][head_dim], packed by pack_query
  const int32_t* first_key;  // [rows] the row sees keys [first_key, end_key)
  const int32_t* end_key;
  const int32_t* position;  // [rows]
  const float* slope;       // [rows] ALiBi in log2 units, or null
  float softcap;            // in log2 units; 0: off
  StateRows segment;        // l with kSumLanes sums a row
  void* scratch;            // scratch_bytes(head_dim, v_width)
};

struct TilePair {
  const char* data;   // K tile, then V tile
  const char* next;   // the pair that comes after it, for prefetching, or null
  int64_t first_key;  // position of its key 0
  int valid;          // no row sees a key >= first_key + valid; V beyond it is not read
};

struct TileKernel {
  const char* name;  // "flash_bf16_avx512bf16"
  simd::Isa isa;
  DType dtype;  // of K and V as stored
  // Bytes of one packed query row; of scratch.
  int64_t (*query_bytes)(int head_dim);
  int64_t (*scratch_bytes)(int head_dim, int v_width);
  // q [head_dim] times `scale`, in the kernel's precision.
  void (*pack_query)(const float* q, int head_dim, float scale, void* packed);
  // Takes one tile into the segment state of rows [first_row, first_row + count).
  void (*walk)(const ItemRows& rows, int first_row, int count, const TilePair& tile);
  // Folds the segment state of `rows` rows (l: kSumLanes sums) into `total` (l: one sum) and sets it to the
  // identity.
  void (*fold)(const StateRows& total, const StateRows& segment, int rows, int v_width);
  // Folds `part` (l: one sum) into `total`, for one row.
  void (*fold_part)(const StateRows& total, const StateRows& part, int v_width);
  // out [v_head_dim] = o / l, or 0 when l is 0.
  void (*finish)(const StateRows& total, int v_head_dim, float* out);
};

}  // namespace tessera::attention
