// What the benchmarks of attention share: arguments, times, rounds in turns.
#pragma once

#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <vector>

#include "bench/ceilings.h"
#include "tessera/dtype.h"

namespace tessera::bench {

struct Settings {
  int threads = 1;
  int rounds = 7;
  DType dtype = DType::bf16;

  // [threads [rounds [dtype]]]
  static Settings of(int argc, char** argv) {
    Settings settings;
    if (argc > 1) settings.threads = std::atoi(argv[1]);
    if (argc > 2) settings.rounds = std::atoi(argv[2]);
    if (argc > 3) settings.dtype = parse_dtype(argv[3]).value();
    return settings;
  }
};

// Keeps the caller on the first CPU that it may use, as a pool that pins keeps its other workers on theirs;
// free, it may come to share one of them. After the pool is made, which counts the CPUs.
inline void pin_caller() {
  cpu_set_t allowed, one;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
    return;
  }
}

struct Times {
  std::vector<double> seconds;
  double best() const { return *std::min_element(seconds.begin(), seconds.end()); }
  double median() const {
    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
};

inline double time_of(const Settings& settings, const std::function<void()>& work) {
  const double start = now(settings.threads);
  work();
  return now(settings.threads) - start;
}

// Runs the ways in turns, once each before the clock.
inline std::vector<Times> alternate(const Settings& settings,
                                    const std::vector<std::function<void()>>& ways) {
  std::vector<Times> times(ways.size());
  for (const auto& way : ways) way();
  for (int round = 0; round < settings.rounds; ++round) {
    for (size_t i = 0; i < ways.size(); ++i) times[i].seconds.push_back(time_of(settings, ways[i]));
  }
  return times;
}

}  // namespace tessera::bench
