// The gradients of attention in double precision, written from the formulas: the oracle of backward.
#pragma once

#include "attention/reference/reference.h"

namespace tessera::attention::reference {

// With a row's probabilities p, dropout factors c and g = gradient of o:
//   dv[j] = sum p[j] c[j] g        t[j] = c[j] (g . v[j])      delta = sum p[j] t[j]
//   ds[j] = p[j] (t[j] - delta) * d score[j] / d (q . k[j])
//   dq = sum ds[j] k[j]            dk[j] = sum ds[j] q
// summed over rows and over the query heads of a group. LSE is computed anew and o is not asked for.
// dout [batch][seqlen_q][heads][v_head_dim] by its strides; dq, dk, dv contiguous in the shapes of q, k, v
// (with cu_seqlens without the batch axis). What no row sees is not read, and gets 0. REQUIRES:
// validate(problem) is ok.
void backward(const AttentionProblem& problem, const Operand& q, const Operand& k, const Operand& v,
              const Operand& dout, double* dq, double* dk, double* dv);

}  // namespace tessera::attention::reference
