#include <cmath>

#include "ops/reference.h"

namespace tessera::ops::reference {

void rope(const RopeConfig& config, int64_t position, const double* head, double* out) {
  const int half = config.dims / 2;
  const double stretch = config.scaling == RopeScaling::linear ? config.factor : 1.0;
  for (int i = 0; i < half; ++i) {
    const double angle =
        static_cast<double>(position) / stretch * std::pow(config.base, -2.0 * i / config.dims);
    const int a = config.style == RopeStyle::half ? i : 2 * i;
    const int b = config.style == RopeStyle::half ? i + half : 2 * i + 1;
    const double x = head[a], y = head[b];
    out[a] = x * std::cos(angle) - y * std::sin(angle);
    out[b] = x * std::sin(angle) + y * std::cos(angle);
  }
}

}  // namespace tessera::ops::reference
