// Attention in double precision, written from the definition: the oracle of every fast path.
#pragma once

#include "attention/problem.h"

namespace tessera::attention::reference {

// Element [batch, row, head, d] at data + batch * batch_stride + row * row_stride + head * head_stride + d
// (in floats).
struct Operand {
  const float* data = nullptr;
  int64_t batch_stride = 0, row_stride = 0, head_stride = 0;
};

// o [batch][seqlen_q][heads][v_head_dim]; lse [batch][heads][seqlen_q] or null. problem.dtype is not used:
// what the operands hold is what is multiplied. REQUIRES: validate(problem) is ok.
void attention(const AttentionProblem& problem, const Operand& q, const Operand& k, const Operand& v,
               double* o, double* lse);

}  // namespace tessera::attention::reference
