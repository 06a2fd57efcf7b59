// Attention over contiguous or strided tensors: the forward of training, of encoders and of callers without a
// cache.
//
// FlashAttention (Dao et al. 2022, 2023) on the tile kernels of the engine's path: K and V are packed once
// into the kernels' tiles, then the same work plan runs, so the same arithmetic holds (paged.h, law 1).
#pragma once

#include "attention/problem.h"
#include "core/context.h"
#include "tessera/status.h"

namespace tessera::attention {

// Element [batch, row, head, d] at data + batch * batch_stride + row * row_stride + head * head_stride + d;
// strides in elements of problem.dtype, any sign of contiguity but d's. k and v may alias nothing of o.
template <typename Pointer>
struct Strided {
  Pointer data = nullptr;
  int64_t batch_stride = 0, row_stride = 0, head_stride = 0;
};

struct ForwardTensors {
  Strided<const void*> q;  // [batch, seqlen_q, heads, head_dim]
  Strided<const void*> k;  // [batch, seqlen_k, kv_heads, head_dim]
  Strided<const void*> v;  // [batch, seqlen_k, kv_heads, v_head_dim]
  Strided<void*> o;        // [batch, seqlen_q, heads, v_head_dim]
  float* lse = nullptr;    // [batch][heads][seqlen_q], natural logarithm, or null
};

// All four tensors hold problem.dtype (f32 or bf16). Every field of the problem is applied. A row that sees
// nothing gives 0 and LSE -inf. Errors: what validate() refuses; a null tensor that has elements. Not
// thread-safe per Context. Uses workspace slots 1, 2 and 3 of worker 0 (slot 1: K and V once more, in tiles)
// and slot 3 of the others. Moves K and V once for packing and then once for every 192 stacked query rows,
// from cache.
Status attention_forward(Context& context, const AttentionProblem& problem, const ForwardTensors& tensors);

// Strides of a contiguous [batch, rows, heads, dim].
template <typename Pointer>
Strided<Pointer> contiguous(Pointer data, int64_t rows, int64_t heads, int64_t dim) {
  return {data, rows * heads * dim, heads * dim, dim};
}

}  // namespace tessera::attention
