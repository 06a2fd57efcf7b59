#include "engine/engine_metrics.h"

#include <algorithm>

namespace tessera::engine {
namespace {

void set(MetricsSnapshot::Histogram* histogram, std::vector<double> bounds) {
  histogram->counts.assign(bounds.size() + 1, 0);
  histogram->bounds = std::move(bounds);
}

// 1, 2, 5, 10, 20, 50 ... up to the limit.
std::vector<double> one_two_five(int limit) {
  std::vector<double> bounds;
  for (double decade = 1; decade <= limit; decade *= 10) {
    for (const double digit : {1.0, 2.0, 5.0}) {
      if (digit * decade <= limit) bounds.push_back(digit * decade);
    }
  }
  return bounds;
}

}  // namespace

void set_bounds(MetricsSnapshot* metrics, int max_model_len) {
  set(&metrics->time_to_first_token,
      {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,  0.25,  0.5,   0.75,
       1.0,   2.5,   5.0,  7.5,  10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0});
  set(&metrics->inter_token_latency, {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
                                      5.0, 7.5, 10.0, 20.0, 40.0, 80.0});
  for (MetricsSnapshot::Histogram* histogram :
       {&metrics->e2e_latency, &metrics->queue_time, &metrics->prefill_time, &metrics->decode_time}) {
    set(histogram, {0.3,  0.5,  0.8,  1.0,  1.5,   2.0,   2.5,   5.0,   10.0,   15.0,  20.0,
                    30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0});
  }
  set(&metrics->iteration_tokens, {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384});
  set(&metrics->request_params_n, {1, 2, 5, 10, 20});
  for (MetricsSnapshot::Histogram* histogram :
       {&metrics->request_prompt_tokens, &metrics->request_generation_tokens,
        &metrics->request_params_max_tokens}) {
    set(histogram, one_two_five(max_model_len));
  }
}

void observe(MetricsSnapshot::Histogram* histogram, double value) {
  const auto bucket = std::lower_bound(histogram->bounds.begin(), histogram->bounds.end(), value);
  ++histogram->counts[static_cast<size_t>(bucket - histogram->bounds.begin())];
  histogram->sum += value;
  ++histogram->count;
}

}  // namespace tessera::engine
