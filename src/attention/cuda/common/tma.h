// Tensor maps: how the copy engine (TMA, sm_90) sees a strided tensor.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "tessera/attention.h"
#include "tessera/status.h"

namespace tessera::attention::cuda {

// L2 promotion decides which bytes a miss brings in. 256B helps tiles that many blocks read (prefill); it
// loses 7 % of the read rate where each byte is read once (decode), which takes none.
enum class Promotion { none, bytes_256 };

// unsupported naming `what` when no map can be made of the tensor: its address is not a multiple of 16 bytes,
// or a stride not of 8 elements, or negative or too large for the format.
Status check_mappable(const char* what, const Strided<const void*>& tensor);

// Writes the map of a tensor [batch, row, head, d] of 16-bit elements in boxes of `box_rows` rows: dimensions
// {64, rows, ceil(dim / 64), heads, batches}, the innermost 64 elements under the 128-byte swizzle, outside
// the tensor zeros. One load with coordinates {0, row, 0, head, batch} and box_panels = ceil(dim / 64) brings
// box_rows rows as panels [64 elements] of box_rows x 128 bytes. The strides are the caller's, in elements.
// Errors: check_mappable's; unsupported when dim is neither below 64 nor a multiple of 64.
Status tensor_map(CUtensorMap* map, const char* what, DType dtype, const Strided<const void*>& tensor,
                  int64_t batches, int64_t rows, int64_t heads, int64_t dim, int box_rows, int box_panels,
                  Promotion promotion);

// The same tensor as dimensions {dim, rows, heads, batches} in boxes of 64 elements by `box_rows` rows: one
// load a panel, with coordinates {64 * panel, row, head, batch}. What lies past `dim` is zeros, so any dim
// that is a multiple of 8 goes.
Status row_map(CUtensorMap* map, const char* what, DType dtype, const Strided<const void*>& tensor,
               int64_t batches, int64_t rows, int64_t heads, int64_t dim, int box_rows, Promotion promotion);

// The same tensor as dimensions {dim, heads, rows, batches} in boxes of 64 elements by `box_heads` heads by
// `box_rows` rows: coordinates {64 * panel, head, row, batch}, heads inside of rows in shared memory.
Status group_map(CUtensorMap* map, const char* what, DType dtype, const Strided<const void*>& tensor,
                 int64_t batches, int64_t rows, int64_t heads, int64_t dim, int box_heads, int box_rows,
                 Promotion promotion);

}  // namespace tessera::attention::cuda
