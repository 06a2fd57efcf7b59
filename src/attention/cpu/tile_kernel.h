// What the host code hands to a kernel and gets back: plain data between TUs of different ISA flags.
#pragma once

#include <cstdint>

#include "attention/cpu/dropout_key.h"
#include "attention/cpu/rows_ahead.h"
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

// What the elements of a mask row are.
enum class MaskForm : uint8_t { none, boolean, f32, f16, bf16 };

// Features that change scores or probabilities one by one, for rows of one sequence. Each is off when its
// first field says so.
struct RowFeatures {
  // mask[row]: element of key 0; key j is mask_stride elements further. Nothing at or behind `keys` is read.
  MaskForm mask_form;
  const void* const* mask;
  int64_t mask_stride;
  int64_t keys;
  // ancestors[row]: bits of the keys from tree_first on, tree_keys of them; depth [tree_keys] or null.
  int64_t tree_keys;
  int64_t tree_first;
  const uint64_t* const* ancestors;
  const int32_t* depth;
  // dropout[row]; null: off. Probabilities are dropped, not scaled: who finishes the row scales it.
  const DropoutRow* dropout;
  DropoutKey dropout_key;
};

// The stacked query rows of an item for one kv head.
struct ItemRows {
  int head_dim, v_width;
  const void* q;             // [rows][head_dim], packed by pack_query
  const int32_t* first_key;  // [rows] the row sees keys [first_key, end_key)
  const int32_t* end_key;
  const int32_t* position;      // [rows]
  const float* slope;           // [rows] ALiBi in log2 units, or null
  float softcap;                // in log2 units; 0: off
  const RowFeatures* features;  // read by walk_featured only
  StateRows segment;            // l with kSumLanes sums a row
  void* scratch;                // scratch_bytes(head_dim, v_width)
};

struct TilePair {
  const char* data;   // K tile, then V tile
  const char* next;   // the pair that comes after it, for prefetching, or null
  int64_t first_key;  // position of its key 0
  int valid;          // no row sees a key >= first_key + valid; V beyond it is not read
};

// kKeyTile rows of K and V as they lie in a caller's cache, for some kv heads. All of them may be read.
struct TileRows {
  bool halves;  // elements are f16, not the kernel's dtype
  const char* k;
  int64_t k_row_bytes, k_head_bytes;
  const char* v;
  int64_t v_row_bytes, v_head_bytes;
  int64_t first_key;
};

// What comes near meanwhile: far ahead in the order of memory and, where that is more than the first-level
// cache holds (near.run is not null), once more just ahead in the order of reading.
struct RowsAhead {
  RowsCursor far, near;
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
  // The same with rows.features, which may not be null.
  void (*walk_featured)(const ItemRows& rows, int first_row, int count, const TilePair& tile);
  // Folds the segment state of `rows` rows (l: kSumLanes sums) into `total` (l: one sum) and sets it to the
  // identity. A total with l = 0 is the identity, whatever its o holds. When total.o is segment.o, the
  // segment is the whole: o stays where it is, and the segment is left as it is.
  void (*fold)(const StateRows& total, const StateRows& segment, int rows, int v_width);
  // Folds `part` (l: one sum) into `total`, for one row.
  void (*fold_part)(const StateRows& total, const StateRows& part, int v_width);
  // out [v_head_dim] = o / l, or 0 when l is 0; o is not read then.
  void (*finish)(const StateRows& total, int v_head_dim, float* out);
  // Takes one tile of several heads into the segment states of `count` rows of each, to the bits of walk,
  // from rows where they lie: K is transposed in registers, V multiplied as it is. Null where there is no
  // such form. heads[i].scratch: each its own; v_width is v_head_dim here. Elements: the kernel's dtype, or
  // f16 for f32. `ahead` is meant for tile.pieces and stays so.
  void (*walk_rows)(const ItemRows* heads, int head_count, int count, const TileRows& tile,
                    RowsAhead& ahead) = nullptr;
  // Before a thread's first walk and after its last one (KernelScope); null: nothing to do.
  void (*enter)() = nullptr;
  void (*leave)() = nullptr;
};

}  // namespace tessera::attention
