// Exact attention, forward and backward, over tensors of the caller's: the whole contract of a problem.
//
//   o = softmax(mask(alibi(softcap(scale * q k^T)))) v        one row at a time, for every batch and head
//
// by tiles of keys with an online softmax (Milakov and Gimelshein 2018; Dao et al. 2022, 2023): the seqlen_q
// x seqlen_k matrix is never stored, forward keeps o and one number (LSE) a row, backward recomputes the
// rest.
//
// Rules that hold in every kernel:
//  1. Query head h reads kv head h / (heads / kv_heads). K and V are never copied per query head.
//  2. Keys of batch b are positions [0, keys), keys = seqused_k[b] or the batch's length. Query row r of
//     `rows` stands at position r + keys - rows (bottom-right aligned). It sees key j iff all of these hold:
//       j >= leftpad_k[b];  !causal || j <= i;  window_left < 0 || j >= i - window_left;
//       window_right < 0 || j <= i + window_right;  the boolean mask is nonzero there;  the ancestor mask
//       allows it.
//  3. score = scale * q.k, then softcap (cap * tanh(score / cap)), then ALiBi (minus slope * |i - j|), then
//     the additive mask. An additive -inf hides the key, and so does anything below -5e29 (the lowest
//     number of a dtype is meant to hide).
//  4. A row that sees nothing gives o = 0 and LSE = -inf; its gradients are 0. LSE is the natural logarithm.
//  5. Dropout scales a kept probability by 1 / (its own rate of keeping) and drops the others; LSE is of the
//     undropped row. The mask is a function of (seed, offset, batch, head, row, column) alone; see Dropout.
//  6. Accumulation is f32 for every dtype. A result is rounded once to the tensors' dtype.
//  7. The bits do not depend on the number of threads; with dropout off, nor on the batch that a sequence is
//  in.
//  8. What no row may see is not read into a result: NaN there changes nothing.
#pragma once

#include <cstdint>
#include <string>

#include "tessera/context.h"
#include "tessera/dtype.h"
#include "tessera/status.h"

namespace tessera::attention {

// Element [batch, row, head, d] at data + batch * batch_stride + row * row_stride + head * head_stride + d,
// strides in elements of the problem's dtype; d is contiguous. With cu_seqlens there is no batch axis: row
// counts through all sequences and batch_stride is not read.
template <typename Pointer>
struct Strided {
  Pointer data = nullptr;
  int64_t batch_stride = 0, row_stride = 0, head_stride = 0;
};

// Strides of a contiguous [batch, rows, heads, dim].
template <typename Pointer>
Strided<Pointer> contiguous(Pointer data, int64_t rows, int64_t heads, int64_t dim) {
  return {data, rows * heads * dim, heads * dim, dim};
}

// ---- Behaviour
// -----------------------------------------------------------------------------------------------

enum class MaskKind : uint8_t {
  none,
  boolean,   // uint8: 0 hides the key
  additive,  // f32, f16 or bf16: added to the score
};

// Element [batch, head, row, key] at data + the sum of index * stride; a stride of 0 broadcasts. With
// cu_seqlens row and key count inside their sequence.
struct MaskTensor {
  MaskKind kind = MaskKind::none;
  DType dtype = DType::f32;  // of an additive mask
  const void* data = nullptr;
  int64_t batch_stride = 0, head_stride = 0, row_stride = 0, key_stride = 0;
};

// Speculative trees, forward only: the last tree_keys keys of every batch are nodes of a tree, of which the
// query rows are the last ones. Row r sees tree key t iff bit t % 64 of bits[batch][r][t / 64] is set, and
// every key before the tree by the other rules. A node's position is the tree's first position plus its depth
// (siblings share one); causal and windows then act on positions outside the tree only.
struct Ancestors {
  int64_t tree_keys = 0;           // 0: off; at most 4096
  const uint64_t* bits = nullptr;  // [batch][seqlen_q][(tree_keys + 63) / 64]
  const int32_t* depth = nullptr;  // [batch][tree_keys], or null: a chain (depth t)
};

struct Mask {
  bool causal = true;
  int64_t window_left = -1;   // keys before the query that stay visible; -1: all
  int64_t window_right = -1;  // keys after it; -1: all (causal narrows it)
  MaskTensor tensor;
  Ancestors ancestors;
};

// Philox4x32-10 (Salmon et al. 2011). Column c of row r of head h of batch b is kept iff byte c % 16 (little
// endian over the four words) of philox(counter = {c / 16, r, h, b}, key) is at most threshold(); key is the
// first two words of philox({offset's low word, its high word, 0x64726f70, 0}, {seed's low word, its high
// word}). Rows and columns count inside their sequence. The origin is added to the counters, so that a shard
// of a larger problem (a micro-batch, a tensor-parallel rank, a context-parallel block) draws what the whole
// would.
struct Dropout {
  float p = 0.0f;  // in [0, 1); 0: off
  uint64_t seed = 0, offset = 0;
  int64_t batch0 = 0, head0 = 0, row0 = 0, col0 = 0;  // col0: a multiple of 16

  // round((1 - p) * 256) - 1, from 0 to 255.
  int threshold() const {
    const int kept = static_cast<int>((1.0f - p) * 256.0f + 0.5f);
    return kept < 1 ? 0 : kept > 256 ? 255 : kept - 1;
  }
  // What a kept probability is multiplied by: 256 / (threshold() + 1).
  float scale() const { return 256.0f / static_cast<float>(threshold() + 1); }
};

struct AttentionProblem {
  uint32_t struct_size = sizeof(AttentionProblem);
  int64_t batch = 1;
  int64_t seqlen_q = 0;  // with cu_seqlens_q: the longest sequence's
  int64_t seqlen_k = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;    // a multiple of 8, 8 to 256
  int v_head_dim = 0;  // the same; may differ
  DType dtype =
      DType::f32;      // f32, f16 or bf16, of every tensor of a call (of K and V as stored, over a cache)
  float scale = 0.0f;  // finite; callers pass 1 / sqrt(head_dim) themselves
  Mask mask;
  float softcap = 0.0f;                   // 0: off
  const float* alibi_slopes = nullptr;    // [heads], or [batch][heads] with alibi_batch_stride, or null
  int64_t alibi_batch_stride = 0;         // elements; 0: the same slopes in every batch
  const int32_t* cu_seqlens_q = nullptr;  // [batch + 1] rising from 0: varlen; both or neither
  const int32_t* cu_seqlens_k = nullptr;
  const int32_t* seqused_k = nullptr;  // [batch] keys in use, at most the batch's length; null: all
  const int32_t* leftpad_k = nullptr;  // [batch] keys at the front that nothing sees; null: none
  Dropout dropout;
  const void* sinks = nullptr;  // room for attention sinks; must be null today
  const void* bias = nullptr;   // room for a learned bias with a gradient; must be null today
  // With cu_seqlens: rows and keys of all sequences, their last entries. On a device, where the host does not
  // read those, they must be given; on the CPU they may be left 0.
  int64_t total_q = 0, total_k = 0;
};

// Checks everything that can be checked without the tensors: the Status names the field, its value and the
// limit.
Status validate(const AttentionProblem& problem);

struct ForwardTensors {
  Strided<const void*> q;  // [batch, seqlen_q, heads, head_dim]
  Strided<const void*> k;  // [batch, seqlen_k, kv_heads, head_dim]
  Strided<const void*> v;  // [batch, seqlen_k, kv_heads, v_head_dim]
  Strided<void*> o;        // [batch, seqlen_q, heads, v_head_dim]
  // [batch][heads][seqlen_q], or [heads][rows of all sequences] with cu_seqlens; null: not wanted.
  float* lse = nullptr;
};

struct BackwardTensors {
  Strided<const void*> q, k, v;  // as in forward
  Strided<const void*> o;        // what forward gave
  Strided<const void*> dout;     // gradient of o
  const float* lse = nullptr;    // what forward gave
  Strided<void*> dq, dk, dv;     // written, not added to; every element of them, invisible keys' too (0)
};

// ---- Performance: none of these changes what is computed; schedule changes the order of additions
// ---------------

enum class Schedule : uint8_t {
  fa2,  // queries outside, keys inside: a row's state stays where it is until its last key
  fa1,  // FlashAttention-1: keys outside; o, m and l are rewritten for every key block. To compare, not to
        // use.
};

struct Tuning {
  Schedule schedule = Schedule::fa2;
};

// o (and lse) of `problem`. Errors: what validate() refuses; a null tensor that has elements; a kernel that
// this build or machine lacks (unsupported; explain() says why). Workspace: K and V once more, in tiles;
// linear in seqlen_k.
Status forward(Context& context, const AttentionProblem& problem, const ForwardTensors& tensors,
               const Tuning& tuning = {});

// dq, dk and dv by recomputing scores from q, k and lse (Dao et al. 2023, algorithm 2: five products).
// Deterministic: dq is summed over fixed segments of 512 keys in rising order, whatever the threads do.
// Errors as forward(), and unsupported for ancestor masks. Workspace linear in seqlen_q + seqlen_k.
Status backward(Context& context, const AttentionProblem& problem, const BackwardTensors& tensors);

enum class Pass : uint8_t { forward, backward };
// Which kernel the problem gets on this machine and why each other one was not taken; one line each, the
// taken one begins with "> ".
std::string explain(const AttentionProblem& problem, Pass pass);
// The same for the machine or device of a context.
std::string explain(Context& context, const AttentionProblem& problem, Pass pass);

}  // namespace tessera::attention
