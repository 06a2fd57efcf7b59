// The sequences of a problem, one way for fixed lengths and cu_seqlens; and checks of the tensors of a call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "attention/problem.h"

namespace tessera::attention {

// Rows and keys of one batch. first_row and first_key count through all sequences with cu_seqlens; without
// it they are 0 and the tensors' batch axis separates batches (batch_axis).
struct SequenceView {
  int64_t batch_axis = 0;
  int64_t first_row = 0, rows = 0;
  int64_t first_key = 0;
  int64_t length = 0;   // keys stored
  int64_t keys = 0;     // of those, in use
  int64_t leftpad = 0;  // of those, hidden at the front
};

inline SequenceView sequence_of(const AttentionProblem& p, int64_t batch) {
  SequenceView s;
  if (p.cu_seqlens_q != nullptr) {
    s.first_row = p.cu_seqlens_q[batch];
    s.rows = p.cu_seqlens_q[batch + 1] - s.first_row;
    s.first_key = p.cu_seqlens_k[batch];
    s.length = p.cu_seqlens_k[batch + 1] - s.first_key;
  } else {
    s.batch_axis = batch;
    s.rows = p.seqlen_q;
    s.length = p.seqlen_k;
  }
  s.keys = p.seqused_k != nullptr ? p.seqused_k[batch] : s.length;
  s.leftpad = p.leftpad_k != nullptr ? std::min<int64_t>(p.leftpad_k[batch], s.keys) : 0;
  return s;
}

// Axes of the tensors: [batches][rows] (and keys alike).
struct TensorAxes {
  int64_t batches, rows, keys;
};
inline TensorAxes tensor_axes(const AttentionProblem& p) {
  if (p.cu_seqlens_q == nullptr) return {p.batch, p.seqlen_q, p.seqlen_k};
  return {1, p.cu_seqlens_q[p.batch], p.cu_seqlens_k[p.batch]};
}

// The same with arrays that the host does not read: total_q and total_k count rows and keys.
inline TensorAxes device_tensor_axes(const AttentionProblem& p) {
  if (p.cu_seqlens_q == nullptr) return {p.batch, p.seqlen_q, p.seqlen_k};
  return {1, p.total_q, p.total_k};
}

// Checks a tensor [batches][rows][heads][dim] of `dtype`: not null when it has elements, aligned to them,
// strides not negative and without overflow; a written one without strides of 0 along axes longer than 1.
// The Status names `field`.
Status check_tensor(const char* field, const void* data, int64_t batch_stride, int64_t row_stride,
                    int64_t head_stride, int64_t batches, int64_t rows, int64_t heads, int64_t dim,
                    DType dtype, bool written);

template <typename Pointer>
Status check_tensor(const char* field, const Strided<Pointer>& tensor, int64_t batches, int64_t rows,
                    int64_t heads, int64_t dim, DType dtype) {
  return check_tensor(field, tensor.data, tensor.batch_stride, tensor.row_stride, tensor.head_stride, batches,
                      rows, heads, dim, dtype, std::is_same_v<Pointer, void*>);
}

}  // namespace tessera::attention
