// What the benchmarks share: percentiles, JSON lines, request driving.
#pragma once

#include <algorithm>
#include <boost/json.hpp>
#include <fstream>
#include <string>
#include <vector>

#include "args.h"

namespace tessera::cli {

// The value below which `share` of the samples lie (nearest rank); 0 for none.
inline double percentile(std::vector<double> samples, double share) {
  if (samples.empty()) return 0.0;
  std::sort(samples.begin(), samples.end());
  const double rank = share * static_cast<double>(samples.size() - 1);
  return samples[static_cast<size_t>(rank + 0.5)];
}
inline double median(const std::vector<double>& samples) {
  return percentile(samples, 0.5);
}

// Writes one JSON object a line to a file, or nothing when the path is empty.
class JsonLines {
 public:
  // The Status names the path when it cannot be written.
  static Result<JsonLines> open(const std::string& path) {
    JsonLines lines;
    if (path.empty()) return lines;
    lines.out_ = std::make_unique<std::ofstream>(path);
    if (!*lines.out_) return invalid_argument("--json: " + path + " cannot be written");
    return lines;
  }
  void write(const boost::json::object& object) {
    if (out_) *out_ << boost::json::serialize(object) << "\n" << std::flush;
  }

 private:
  std::unique_ptr<std::ofstream> out_;
};

// Token ids as a function of (stream, position); away from both ends, where special tokens live, unless the
// vocabulary is tiny.
std::vector<int32_t> random_tokens(int count, uint32_t stream, int vocab);

struct LongPromptOptions {
  int prompt = 4000;  // tokens
  int streams = 8;
  int rounds = 3;
  int chunk = 0;  // rows of a step, from the service's options
};
// What a long prompt does to the gaps between the tokens of streams that run already.
Status bench_long_prompt(const engine::ServiceOptions& service_options, LongPromptOptions options,
                         JsonLines& lines);

// Resident bytes of this process, from /proc/self/statm.
int64_t resident_bytes();

void add_bench_attention(CLI::App& bench, int* code);
void add_bench_decode(CLI::App& bench, int* code);
void add_bench_model(CLI::App& bench, int* code);
void add_bench_perplexity(CLI::App& bench, int* code);
void add_bench_prefix(CLI::App& bench, int* code);
void add_bench_tree(CLI::App& bench, int* code);
void add_bench_serving(CLI::App& bench, int* code);

}  // namespace tessera::cli
