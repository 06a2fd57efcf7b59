// The engine's histograms: vLLM's metrics and bucket bounds, so that dashboards carry over.
#pragma once

#include "engine/service.h"

namespace tessera::engine {

// Gives every histogram of the snapshot its bounds. `max_model_len` ends those that count tokens.
void set_bounds(MetricsSnapshot* metrics, int max_model_len);
void observe(MetricsSnapshot::Histogram* histogram, double value);

}  // namespace tessera::engine
