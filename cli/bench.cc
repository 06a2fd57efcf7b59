#include "bench.h"

#include <unistd.h>

namespace tessera::cli {

int64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

void add_bench(CLI::App& app, int* code) {
  CLI::App* bench = app.add_subcommand("bench", "measure this machine, with a model or attention alone");
  bench->require_subcommand(1);
  add_bench_attention(*bench, code);
  add_bench_model(*bench, code);
  add_bench_prefix(*bench, code);
  add_bench_serving(*bench, code);
  add_bench_perplexity(*bench, code);
}

}  // namespace tessera::cli
