#include "bench.h"

#include <unistd.h>

#include "core/philox.h"

namespace tessera::cli {

int64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

std::vector<int32_t> random_tokens(int count, uint32_t stream, int vocab) {
  const int first = vocab > 1024 ? 200 : 0, last = vocab > 1024 ? vocab - 256 : vocab;
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (size_t i = 0; i < ids.size(); ++i) {
    const auto words = philox4x32({static_cast<uint32_t>(i), stream, 0, 0}, {1, 0x70726678u});
    ids[i] = first + static_cast<int32_t>(words[0] % static_cast<uint32_t>(last - first));
  }
  return ids;
}

void add_bench(CLI::App& app, int* code) {
  CLI::App* bench = app.add_subcommand("bench", "measure this machine, with a model or attention alone");
  bench->require_subcommand(1);
  add_bench_attention(*bench, code);
  add_bench_decode(*bench, code);
  add_bench_model(*bench, code);
  add_bench_prefix(*bench, code);
  add_bench_serving(*bench, code);
  add_bench_perplexity(*bench, code);
  add_bench_tree(*bench, code);
}

}  // namespace tessera::cli
