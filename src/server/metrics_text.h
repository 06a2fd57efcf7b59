// /metrics: the Prometheus text format 0.0.4. vLLM's names under the prefix "tessera:"; counters end in
// _total.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "engine/service.h"

namespace tessera::server {

// The server's own counts. Written and read on the io thread.
struct HttpCounters {
  std::map<int, uint64_t> responses;  // by status; 0: cut before an answer
  uint64_t connections_total = 0;
  int connections = 0;
  int generations = 0;  // requests for text, from their body's end to their answer's
};

std::string metrics_text(const engine::MetricsSnapshot& engine, const HttpCounters& http,
                         const engine::ModelCard& card, const std::string& served_name);

}  // namespace tessera::server
