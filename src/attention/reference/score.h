// One element of attention in double precision, as tessera/attention.h defines it: what the forward and the
// backward reference are made of. Nothing here is shared with the kernels, its Philox neither.
#pragma once

#include "attention/problem.h"

namespace tessera::attention::reference {

// Where one batch's rows and keys lie.
struct Extent {
  int64_t first_row = 0;  // of its rows in q and o, when they have no batch axis (cu_seqlens); else 0
  int64_t first_key = 0;  // the same in k and v
  int64_t rows = 0;
  int64_t length = 0;  // keys that are stored
  int64_t keys = 0;    // of those, in use
};
Extent extent(const AttentionProblem& problem, int64_t batch);

// Of query row `row`, and of key `key`: different inside a speculative tree only.
int64_t query_position(const AttentionProblem& problem, int64_t batch, int64_t row);
int64_t key_position(const AttentionProblem& problem, int64_t batch, int64_t key);

// Rule 2, and that the additive mask does not hide the key. Every index counts inside its batch.
bool visible(const AttentionProblem& problem, int64_t batch, int64_t head, int64_t row, int64_t key);

// Rule 3 for a visible key: what softmax takes, and its derivative by q.k.
struct Score {
  double value = 0, slope = 0;
};
Score score(const AttentionProblem& problem, int64_t batch, int64_t head, int64_t row, int64_t key,
            double dot);

// Rule 5: what the probability is multiplied by, 0 or 1 / the rate of keeping; 1 without dropout.
double keep(const AttentionProblem& problem, int64_t batch, int64_t head, int64_t row, int64_t key);

}  // namespace tessera::attention::reference
