// Joining attention over disjoint sets of keys: split caches, shared prefixes, ring and context parallelism.
//
// A part is what forward() gave over some of the keys: o, normalised, and LSE (natural logarithm). In terms
// of the softmax state it is (m = LSE, l = 1, o), so with weights w = exp(LSE - max of the LSEs)
//   o = sum(w o) / sum(w)      LSE = max + ln(sum(w))
// which is what attention over all the keys gives (Milakov and Gimelshein 2018; FlashAttention-2, section
// 3.1). Exact arithmetic makes it associative and commutative; floating point does so within rounding.
#pragma once

#include <cstdint>
#include <span>

#include "tessera/attention.h"
#include "tessera/context.h"
#include "tessera/dtype.h"
#include "tessera/status.h"

namespace tessera::attention {

struct MergeProblem {
  uint32_t struct_size = sizeof(MergeProblem);
  int64_t batch = 1;
  int64_t seqlen = 0;  // query rows
  int heads = 0;
  int head_dim = 0;              // of o, at least 1
  DType dtype = DType::f32;      // of the parts' o: f32, f16 or bf16
  DType out_dtype = DType::f32;  // of the result's
};

struct AttentionPart {
  Strided<const void*> o;     // [batch, seqlen, heads, head_dim]
  Strided<const float*> lse;  // [batch, seqlen, heads]: element at batch, row and head strides
};

// An LSE as forward() writes it: [batch][heads][seqlen], contiguous.
template <typename Pointer>
Strided<Pointer> contiguous_lse(Pointer data, int64_t seqlen, int64_t heads) {
  return {data, heads * seqlen, 1, seqlen};
}

// o (and lse, when lse.data is not null) of all parts together. A row of a part whose LSE is -inf (ours) or
// +inf (flash-attn's mark of a row that saw nothing) has weight 0 and its o is not read; a row that is empty
// in every part, and any row of no parts, gives o = 0 and LSE = -inf. An LSE of NaN gives NaN. Weights are
// computed in double, sums in f32 in the order of `parts`, and rounded once; one part alone comes back
// unchanged. o and lse may be those of a part with the same strides. Moves each part once. Errors:
// invalid_argument or unsupported naming the field.
Status merge_states(Context& context, const MergeProblem& problem, std::span<const AttentionPart> parts,
                    const Strided<void*>& o, const Strided<float*>& lse);

// The same for two parts.
Status merge_states(Context& context, const MergeProblem& problem, const AttentionPart& a,
                    const AttentionPart& b, const Strided<void*>& o, const Strided<float*>& lse);

}  // namespace tessera::attention
