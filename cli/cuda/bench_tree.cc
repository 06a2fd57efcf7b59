// tessera bench tree: a decode step over prefixes that sequences share, read once for all of them, beside the
// paged kernel on the same block tables and the time that the unique bytes would take at the reader's rate.
#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>

#include "attention/cuda/sm90/decode/decode.h"
#include "attention/cuda/tree/tree.h"
#include "bench.h"
#include "core/format.h"
#include "cuda/bench_device.h"
#include "cuda/caches.h"
#include "tessera/cuda.h"

namespace tessera::cli {
namespace {

namespace sm90 = attention::cuda::sm90;

constexpr double kWarmUp = 1.0;
// Rotated by the blocks that are shared: those of a set could otherwise stay in L2 until it comes again.
constexpr double kLeastSharedBytes = 250 * 1048576.0;
constexpr int kMostSets = 24;

// Levels of a tree: `nodes` runs of `tokens` tokens each, over equal parts of the batch.
struct Level {
  int nodes;
  int64_t tokens;
};
struct Row {
  std::string name;
  std::vector<Level> levels;
};

CacheShape shape_of(const DeviceTreeOptions& options, int kv_heads, const Row& row) {
  CacheShape shape;
  shape.heads = options.heads;
  shape.kv_heads = kv_heads;
  shape.dim = options.dim;
  shape.slots = options.page;
  shape.tables.resize(static_cast<size_t>(options.batch));
  int32_t next = 0;
  int64_t length = 0;
  for (const Level& level : row.levels) {
    const int64_t each = level.tokens / options.page;
    for (int b = 0; b < options.batch; ++b) {
      const int node = static_cast<int>(int64_t{b} * level.nodes / options.batch);
      for (int64_t i = 0; i < each; ++i)
        shape.tables[static_cast<size_t>(b)].push_back(next + static_cast<int32_t>(node * each + i));
    }
    next += static_cast<int32_t>(level.nodes * each);
    length += level.tokens;
  }
  shape.blocks = next;
  shape.lengths.assign(static_cast<size_t>(options.batch), length);
  std::vector<int32_t> ids(static_cast<size_t>(next));
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), std::mt19937(1));
  for (auto& table : shape.tables) {
    for (int32_t& id : table) id = ids[static_cast<size_t>(id)];
  }
  return shape;
}

// The rows of ChunkAttention's table 3 (Ye et al. 2024), and one tree of three levels.
std::vector<Row> rows_of(const DeviceTreeOptions& options) {
  std::vector<Row> rows;
  for (const int64_t prompt : options.prompts) {
    for (const int64_t shared : {int64_t{0}, prompt / 2, prompt * 3 / 4, prompt}) {
      Row row{format("np {} ns {}", prompt, shared), {}};
      if (shared > 0) row.levels.push_back({1, shared});
      if (prompt > shared) row.levels.push_back({options.batch, prompt - shared});
      rows.push_back(row);
    }
  }
  if (options.batch % 4 == 0)
    rows.push_back({"1024x1 512x4 256xb", {{1, 1024}, {4, 512}, {options.batch, 256}}});
  return rows;
}

// TB/s of reading 512 MB.
Result<double> ceiling(const cuda::DeviceProperties& device, const cuda::Stream& stream,
                       const bench::SmClock& clock) {
  constexpr int64_t kBytes = int64_t{512} << 20;
  TESSERA_ASSIGN_OR_RETURN(const cuda::DeviceBuffer memory, cuda::DeviceBuffer::create(kBytes, "the reader"));
  TESSERA_RETURN_IF_ERROR(bench::fill_normal(memory.data(), kBytes / 2, DType::bf16, 3, stream));
  bench::TurnsOptions turns;
  TESSERA_ASSIGN_OR_RETURN(
      const std::vector<bench::WayTimes> times,
      bench::take_turns(
          {{"reader", [&](int) { return bench::read_all(memory.data(), kBytes, device, stream); }}}, turns,
          stream, clock));
  return static_cast<double>(kBytes) / median(times[0].seconds);
}

}  // namespace

Status bench_tree_on_device(const DeviceTreeOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(JsonLines lines, JsonLines::open(options.json));
  if (options.page < 8 || options.page % 8 != 0)
    return invalid_argument(format("--page={} must be a multiple of 8", options.page), "page");
  TESSERA_ASSIGN_OR_RETURN(cuda::Launch launch, cuda::Launch::create(options.device));
  const cuda::DeviceProperties& device = launch.device;
  const bench::SmClock clock(options.device);
  TESSERA_ASSIGN_OR_RETURN(const double rate, ceiling(device, launch.stream, clock));
  std::printf(
      "%s; median of %d samples of at least 10 ms, each one CUDA graph over rotated caches, in turns; reader "
      "%.3f TB/s\n",
      device.name.c_str(), options.rounds, rate * 1e-12);
  std::printf("%-20s %7s | %9s %6s | %9s %9s %6s | %9s %8s | %8s\n", "b 32 unless told, D 128", "heads",
              "tree us", "IQR", "unique MB", "at best", "x", "paged us", "speed-up", "error");
  lines.write({{"bench", "tree"}, {"device", device.name}, {"reader", rate}});
  bool wrong = false, warm = false;
  for (const int kv : options.kv_heads) {
    for (const Row& row : rows_of(options)) {
      const CacheShape shape = shape_of(options, kv, row);
      const double block_bytes = 4.0 * options.page * kv * options.dim;
      double shared = 0;
      for (const Level& level : row.levels) {
        if (level.nodes < options.batch)
          shared += static_cast<double>(level.nodes * level.tokens / options.page) * block_bytes;
      }
      const double unique = block_bytes * static_cast<double>(shape.blocks);
      const int sets =
          std::clamp(static_cast<int>(kLeastSharedBytes / (shared > 0 ? shared : unique)) + 1, 2, kMostSets);
      std::vector<DeviceCaches> caches;
      for (int i = 0; i < sets; ++i) {
        TESSERA_ASSIGN_OR_RETURN(DeviceCaches made,
                                 DeviceCaches::create(shape, static_cast<uint32_t>(i), launch.stream));
        caches.push_back(std::move(made));
      }
      std::vector<sm90::TreeSequence> sequences;
      for (size_t b = 0; b < shape.tables.size(); ++b)
        sequences.push_back({shape.tables[b].data(), shape.lengths[b]});
      sm90::TreePlanOptions plan_options;
      plan_options.blocks = device.multiprocessors;
      TESSERA_ASSIGN_OR_RETURN(
          const sm90::TreePlan plan,
          sm90::TreePlan::create(launch, caches[0].problem(), sequences, options.page, plan_options));
      const auto of = [&](int i) -> const DeviceCaches& { return caches[static_cast<size_t>(i % sets)]; };
      const auto tree = [&](int i) { return plan.attend(launch, of(i).view(), {}, of(i).tensors()); };
      const auto paged = [&](int i) {
        return sm90::decode(launch, of(i).problem(), of(i).view(), {}, of(i).tensors());
      };
      TESSERA_RETURN_IF_ERROR(tree(sets - 1));
      TESSERA_ASSIGN_OR_RETURN(const double error, caches.back().error(launch.stream));
      TESSERA_RETURN_IF_ERROR(bench::keep_busy(warm ? 0.0 : kWarmUp, launch.stream, [&] { return tree(0); }));
      warm = true;
      bench::TurnsOptions turns;
      turns.rounds = options.rounds;
      turns.sets = sets;
      TESSERA_ASSIGN_OR_RETURN(
          const std::vector<bench::WayTimes> times,
          bench::take_turns({{"tree", tree}, {"paged", paged}}, turns, launch.stream, clock));
      const double ours = median(times[0].seconds), other = median(times[1].seconds);
      const double spread = percentile(times[0].seconds, 0.75) - percentile(times[0].seconds, 0.25);
      std::printf("%-23s %3d/%-3d | %9.2f %5.1f%% | %9.1f %9.2f %6.2f | %9.2f %7.2fx | %8.1e\n",
                  row.name.c_str(), options.heads, kv, ours * 1e6, 100 * spread / ours, unique * 1e-6,
                  unique / rate * 1e6, ours / (unique / rate), other * 1e6, other / ours, error);
      std::fflush(stdout);
      wrong |= !(error <= 2e-2);
      lines.write({{"bench", "tree"},
                   {"row", row.name},
                   {"batch", options.batch},
                   {"heads", options.heads},
                   {"kv_heads", kv},
                   {"dim", options.dim},
                   {"page", options.page},
                   {"unique_bytes", unique},
                   {"seconds", boost::json::value_from(times[0].seconds)},
                   {"paged_seconds", boost::json::value_from(times[1].seconds)},
                   {"of_best", ours / (unique / rate)},
                   {"error", error}});
    }
  }
  if (wrong)
    return Status(StatusCode::internal, "a result is further from the reference than its dtype allows");
  return {};
}

}  // namespace tessera::cli
