// Attention with linear biases (Press, Smith and Lewis, "Train short, test long", 2022).
#pragma once

#include <cstdint>
#include <vector>

#include "tessera/status.h"

namespace tessera::attention {

// The paper's slopes [heads], for AttentionProblem::alibi_slopes. For a power of two n: 2^(-8 (h + 1) / n).
// Any other count takes those of the largest power of two below it and then every second one of twice that
// power, as the paper's own code and BLOOM do. Errors: invalid_argument unless 1 <= heads <= 65536.
Result<std::vector<float>> alibi_slopes(int heads);

// What rule 3 of tessera/attention.h adds to the score of a query and a key at these positions.
inline float alibi_bias(float slope, int64_t query, int64_t key) {
  const int64_t distance = query < key ? key - query : query - key;
  return -slope * static_cast<float>(distance);
}

}  // namespace tessera::attention
