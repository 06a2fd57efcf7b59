#include <cmath>

#include "ops/reference.h"

namespace tessera::ops::reference {

void rms_norm(const RmsNorm& norm, const float* x, double* out) {
  double squares = 0;
  for (int64_t i = 0; i < norm.n; ++i) squares += double{x[i]} * x[i];
  const double root = std::sqrt(squares / static_cast<double>(norm.n) + norm.epsilon);
  for (int64_t i = 0; i < norm.n; ++i) out[i] = x[i] / root * norm.weight[i];
}

}  // namespace tessera::ops::reference
