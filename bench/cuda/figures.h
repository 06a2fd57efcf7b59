// What the benchmarks of a device compute from their samples; no device is needed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace tessera::bench {

// The median (of an even number, the upper of the two in the middle) of of[r] / over[r]: what was sampled in
// the same round is compared, so that a clock that changes from round to round changes both.
inline double paired_ratio(const std::vector<double>& of, const std::vector<double>& over) {
  std::vector<double> ratios;
  for (size_t r = 0; r < std::min(of.size(), over.size()); ++r) ratios.push_back(of[r] / over[r]);
  if (ratios.empty()) return 0;
  const auto middle = ratios.begin() + static_cast<std::ptrdiff_t>(ratios.size() / 2);
  std::nth_element(ratios.begin(), middle, ratios.end());
  return *middle;
}

// A step over a prefix tree may take so many times as long as the reader takes for its unique bytes, and a
// short one so long, which is latency: launches, one pass over a few tiles, the merge.
constexpr double kOverReader = 1.3, kShortStep = 18e-6;
inline double tree_limit(double reader_seconds) {
  return std::max(kOverReader * reader_seconds, kShortStep);
}

// Copies of a working set of `bytes` that together hold `least_bytes`; from two to `most`.
inline int rotated_sets(double bytes, double least_bytes, int most) {
  return static_cast<int>(std::clamp(least_bytes / bytes + 1, 2.0, static_cast<double>(most)));
}

}  // namespace tessera::bench
