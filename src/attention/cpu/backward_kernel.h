// What the host code of backward hands to a kernel and gets back: plain data between TUs of different ISA
// flags.
//
// One step of the work is a block of query rows against a tile of 64 keys:
//   p = 2^(score - LSE)     dp = dout v^T     ds = p * (dp - delta), delta = rowsum(dout * o)
//   dv += p^T dout          dk += ds^T q      dq += ds k
// (Dao et al. 2023, algorithm 2). The scale of q.k is applied once, when dq and dk are written.
#pragma once

#include <cstdint>

#include "attention/cpu/dropout_key.h"
#include "attention/problem.h"
#include "simd/isa.h"
#include "tessera/dtype.h"

namespace tessera::attention {

// The LSE of a row that sees nothing and of a row of padding: every probability becomes 0.
inline constexpr float kBlindLse = 1e30f;

// What all steps of a call share.
struct BackwardShape {
  int head_dim, v_head_dim;
  int k_width, v_width;  // the same rounded up to a multiple of 16: floats of a packed row
  DType dtype;           // of every tensor
  float scale;           // of q.k
  bool plain;            // none of what follows is on
  bool alibi;
  float softcap;  // 0: off
  MaskKind mask;
  DType mask_dtype;
  int64_t mask_key_stride;    // elements
  const DropoutKey* dropout;  // null: off
  float dropout_scale;
};

// The stacked query rows of a block. Arrays have block_rows entries; a row sees keys [first_key, end_key),
// both of which never fall from one row to the next. What stands behind the first `rows` is padding, which
// sees nothing.
struct BackwardRows {
  int rows;
  const int32_t* first_key;
  const int32_t* end_key;
  const float* lse;    // in units of log2, or kBlindLse
  const float* delta;  // 0 of a blind row
  // Read unless the shape is plain:
  const int32_t* position;
  const float* slope;           // ALiBi
  const void* const* mask_row;  // mask element of key 0
  const DropoutRow* dropout;
  void* memory;  // block_bytes
};

struct BackwardTile {
  int index;          // of the segment's tiles
  int64_t first_key;  // position of its key 0
  void* segment;      // segment_bytes
};

struct BackwardKernel {
  const char* name;  // "backward_f32_avx512"
  simd::Isa isa;
  uint32_t dtypes;  // bit 1 << dtype: tensors it reads and writes
  int block_rows;   // of one block, at most
  // Memory of a segment's keys, packed, with dk and dv in f32; of a block of rows.
  int64_t (*segment_bytes)(const BackwardShape& shape);
  int64_t (*block_bytes)(const BackwardShape& shape);
  // Sum of o * dout over v_head_dim elements of the shape's dtype.
  float (*row_delta)(const BackwardShape& shape, const void* o, const void* dout);
  // k, v [kKeyTile]: the rows of a tile, null where no row sees the key. Sets dk and dv to zero.
  void (*pack_tile)(const BackwardShape& shape, const BackwardTile& tile, const void* const* k,
                    const void* const* v);
  // q, dout [rows]: null for a blind row. dq [rows][k_width] is what the block's dq starts from; null: zero.
  void (*pack_rows)(const BackwardShape& shape, const BackwardRows& rows, const void* const* q,
                    const void* const* dout, const float* dq);
  // The five products.
  void (*walk)(const BackwardShape& shape, const BackwardRows& rows, const BackwardTile& tile);
  // sum [rows][k_width] = or += dq of the block.
  void (*sum_dq)(const BackwardShape& shape, const BackwardRows& rows, bool first, float* sum);
  // out [rows]: scale * sum, in the shape's dtype.
  void (*write_dq)(const BackwardShape& shape, int rows, const float* sum, void* const* out);
  // out [rows], f32: = or += scale * dq of the block. Null where dtypes lacks f32.
  void (*add_dq)(const BackwardShape& shape, const BackwardRows& rows, bool first, void* const* out);
  // scale * dk, and dv, in the shape's dtype; dk, dv [kKeyTile], null where a row is not wanted.
  void (*write_tile)(const BackwardShape& shape, const BackwardTile& tile, void* const* dk, void* const* dv);
  // Whether it takes only plain shapes.
  bool plain_only = false;
  // Before a thread's first walk and after its last one (KernelScope); null: nothing to do.
  void (*enter)() = nullptr;
  void (*leave)() = nullptr;
};

}  // namespace tessera::attention
