#include "tessera/alibi.h"

#include <cmath>

#include "core/format.h"

namespace tessera::attention {

Result<std::vector<float>> alibi_slopes(int heads) {
  if (heads < 1 || heads > 65536)
    return invalid_argument(format("alibi: heads={} must be from 1 to 65536", heads), "heads");
  int whole = 1;
  while (whole * 2 <= heads) whole *= 2;
  std::vector<float> slopes;
  for (int h = 1; h <= whole; ++h) slopes.push_back(static_cast<float>(std::exp2(-8.0 * h / whole)));
  for (int h = 1; static_cast<int>(slopes.size()) < heads; h += 2)
    slopes.push_back(static_cast<float>(std::exp2(-4.0 * h / whole)));
  return slopes;
}

}  // namespace tessera::attention
