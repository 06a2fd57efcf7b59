#include <cmath>

#include "ops/reference.h"

namespace tessera::ops::reference {

double silu(double x) {
  return x / (1.0 + std::exp(-x));
}

}  // namespace tessera::ops::reference
