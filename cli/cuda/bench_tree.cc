// tessera bench tree: a decode step over prefixes that sequences share, read once for all of them, beside the
// paged kernel on the same block tables and the fastest reader of the unique bytes.
#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>

#include "attention/cuda/sm90/decode/decode.h"
#include "attention/cuda/tree/tree.h"
#include "bench.h"
#include "bench/cuda/figures.h"
#include "core/format.h"
#include "cuda/about.h"
#include "cuda/bench_device.h"
#include "cuda/caches.h"
#include "tessera/cuda.h"

namespace tessera::cli {
namespace {

namespace sm90 = attention::cuda::sm90;

constexpr double kWarmUp = 1.0;
// Rotated by the blocks that are shared: those of a set could otherwise stay in L2 until it comes again.
constexpr double kLeastSharedBytes = 250 * 1048576.0;
constexpr int kMostSets = 64;

// Levels of a tree: `nodes` runs of `tokens` tokens each, over equal parts of the batch.
struct Level {
  int nodes;
  int64_t tokens;
};
enum class Kind { nothing_shared, partly_shared, all_shared };
struct Row {
  std::string name;
  Kind kind;
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
      const Kind kind = shared == 0        ? Kind::nothing_shared
                        : shared == prompt ? Kind::all_shared
                                           : Kind::partly_shared;
      Row row{format("np {} ns {}", prompt, shared), kind, {}};
      if (shared > 0) row.levels.push_back({1, shared});
      if (prompt > shared) row.levels.push_back({options.batch, prompt - shared});
      rows.push_back(row);
    }
  }
  if (options.batch % 4 == 0)
    rows.push_back({"1024x1 512x4 256xb", Kind::partly_shared, {{1, 1024}, {4, 512}, {options.batch, 256}}});
  return rows;
}

// What the rows of a kind say together, a line each.
class Summary {
 public:
  void add(const Row& row, int kv_heads, double speed_up, bool met) {
    const std::string name = format("{} of {} kv heads", row.name, kv_heads);
    ++rows_;
    if (!met) missed_ += (missed_.empty() ? "" : "; ") + name;
    if (row.kind == Kind::partly_shared) return;
    std::string& line = row.kind == Kind::nothing_shared ? nothing_ : all_;
    char text[32];
    std::snprintf(text, sizeof text, " %.2fx", speed_up);
    line += format("{}{} ({})", line.empty() ? "" : ",", text, name);
  }
  void print() const {
    std::printf("nothing shared, the paged kernel's time / ours:%s\n", nothing_.c_str());
    std::printf("all shared, the paged kernel's time / ours:%s\n", all_.c_str());
    std::printf(
        "limit max(%.1f x reader, %.0f us): %s\n", bench::kOverReader, bench::kShortStep * 1e6,
        missed_.empty() ? format("met in all of {} rows", rows_).c_str() : ("missed by " + missed_).c_str());
  }

 private:
  int rows_ = 0;
  std::string nothing_, all_, missed_;
};

}  // namespace

Status bench_tree_on_device(const DeviceTreeOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(JsonLines lines, JsonLines::open(options.json));
  if (options.page < 8 || options.page % 8 != 0)
    return invalid_argument(format("--page={} must be a multiple of 8", options.page), "page");
  TESSERA_ASSIGN_OR_RETURN(cuda::Launch launch, cuda::Launch::create(options.device));
  const cuda::DeviceProperties& device = launch.device;
  const bench::SmClock clock(options.device);
  std::printf(
      "%s; median of %d samples of at least 10 ms, each one CUDA graph over rotated caches, in turns with "
      "the "
      "paged kernel on the same tables and the reader of the unique bytes\n",
      device.name.c_str(), options.rounds);
  std::printf("%-23s %7s | %9s %6s %6s | %9s %9s %6s %6s | %9s %4s | %9s %8s | %8s\n",
              format("b {} D {}", options.batch, options.dim).c_str(), "heads", "tree us", "IQR", "MHz",
              "unique MB", "reader us", "TB/s", "x", "limit us", "met", "paged us", "speed-up", "error");
  lines.write(about("tree", device));
  Summary summary;
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
      const int sets = bench::rotated_sets(shared > 0 ? shared : unique, kLeastSharedBytes, kMostSets);
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
      TESSERA_ASSIGN_OR_RETURN(const DeviceReader reader, DeviceReader::create(unique, launch.stream));
      const auto read = [&](int i) { return reader.read(i, device, launch.stream); };
      bench::TurnsOptions turns;
      turns.rounds = options.rounds;
      turns.sets = sets;
      TESSERA_ASSIGN_OR_RETURN(const std::vector<bench::WayTimes> times,
                               bench::take_turns({{"tree", tree}, {"paged", paged}, {"reader", read}}, turns,
                                                 launch.stream, clock));
      const double ours = median(times[0].seconds), other = median(times[1].seconds);
      const double reading = median(times[2].seconds), limit = bench::tree_limit(reading);
      const double speed_up = bench::paired_ratio(times[1].seconds, times[0].seconds);
      const double of_reader = bench::paired_ratio(times[0].seconds, times[2].seconds);
      const double spread = percentile(times[0].seconds, 0.75) - percentile(times[0].seconds, 0.25);
      const double megahertz = median({times[0].megahertz.begin(), times[0].megahertz.end()});
      std::printf(
          "%-23s %3d/%-3d | %9.2f %5.1f%% %6.0f | %9.1f %9.2f %6.3f %6.2f | %9.2f %4s | %9.2f %7.2fx | "
          "%8.1e\n",
          row.name.c_str(), options.heads, kv, ours * 1e6, 100 * spread / ours, megahertz, unique * 1e-6,
          reading * 1e6, reader.bytes() / reading * 1e-12, of_reader, limit * 1e6,
          ours <= limit ? "yes" : "NO", other * 1e6, speed_up, error);
      std::fflush(stdout);
      summary.add(row, kv, speed_up, ours <= limit);
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
                   {"megahertz", boost::json::value_from(times[0].megahertz)},
                   {"paged_seconds", boost::json::value_from(times[1].seconds)},
                   {"reader_seconds", boost::json::value_from(times[2].seconds)},
                   {"of_reader", of_reader},
                   {"limit", limit},
                   {"met", ours <= limit},
                   {"speed_up", speed_up},
                   {"error", error}});
    }
  }
  summary.print();
  if (wrong)
    return Status(StatusCode::internal, "a result is further from the reference than its dtype allows");
  return {};
}

}  // namespace tessera::cli
