// Attention in double precision, written from the definition: the oracle of every fast path.
#pragma once

#include "attention/problem.h"

namespace tessera::attention::reference {

// Element [batch, row, head, d] at data + batch * batch_stride + row * row_stride + head * head_stride + d,
// in f32 or f64. With cu_seqlens, row counts through all sequences.
struct Operand {
  Operand(const float* data, int64_t batch_in, int64_t row_in, int64_t head_in)
      : narrow(data), batch_stride(batch_in), row_stride(row_in), head_stride(head_in) {}
  Operand(const double* data, int64_t batch_in, int64_t row_in, int64_t head_in)
      : wide(data), batch_stride(batch_in), row_stride(row_in), head_stride(head_in) {}

  double at(int64_t batch, int64_t row, int64_t head, int64_t d) const {
    const int64_t at = batch * batch_stride + row * row_stride + head * head_stride + d;
    return wide != nullptr ? wide[at] : double{narrow[at]};
  }

  // The elements of one row.
  struct Row {
    const float* narrow;
    const double* wide;
    double operator[](int64_t d) const { return wide != nullptr ? wide[d] : double{narrow[d]}; }
  };
  Row row(int64_t batch, int64_t row, int64_t head) const {
    const int64_t at = batch * batch_stride + row * row_stride + head * head_stride;
    return {wide != nullptr ? nullptr : narrow + at, wide != nullptr ? wide + at : nullptr};
  }

  const float* narrow = nullptr;
  const double* wide = nullptr;
  int64_t batch_stride = 0, row_stride = 0, head_stride = 0;
};

// o [batch][seqlen_q][heads][v_head_dim], or [rows of all sequences][heads][v_head_dim] with cu_seqlens.
// lse [batch][heads][seqlen_q], or [heads][rows of all sequences]; null: not wanted. problem.dtype is not
// used: what the operands hold is what is multiplied. What no row sees is not read. REQUIRES:
// validate(problem) is ok.
void attention(const AttentionProblem& problem, const Operand& q, const Operand& k, const Operand& v,
               double* o, double* lse);

}  // namespace tessera::attention::reference
