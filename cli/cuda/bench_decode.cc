// tessera bench decode: attend_cache of one query a sequence, and a kernel that only reads as much.
#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>

#include "bench.h"
#include "bench/cuda/figures.h"
#include "cuda/about.h"
#include "cuda/bench_device.h"
#include "cuda/caches.h"
#include "tessera/cuda.h"

namespace tessera::cli {
namespace {

constexpr double kWarmUp = 1.0;
// Together the sets are so many bytes that none finds its blocks in L2.
constexpr double kLeastBytes = 400 * 1048576.0;
constexpr int kMostSets = 512;

struct Cell {
  int batch, kv_heads;
  int64_t length;
  int page;  // 0: contiguous
};

std::vector<Cell> cells_of(const DeviceDecodeOptions& options) {
  std::vector<Cell> cells;
  for (const int kv : options.kv_heads) {
    for (const int64_t length : options.lengths) {
      for (const int page : options.pages) cells.push_back({options.batch, kv, length, page});
    }
  }
  if (!options.small_steps) return cells;
  for (const int kv : options.kv_heads) {
    for (const int64_t length : {64, 256, 1024}) cells.push_back({1, kv, length, 64});
  }
  return cells;
}

// Blocks dealt at random, so that neighbours in a table are not neighbours in memory; page 0: contiguous.
CacheShape shape_of(const DeviceDecodeOptions& options, const Cell& cell) {
  CacheShape shape;
  shape.heads = options.heads;
  shape.kv_heads = cell.kv_heads;
  shape.dim = options.dim;
  shape.dtype = parse_dtype(options.dtype.c_str()).value();
  shape.paged = cell.page > 0;
  shape.slots = cell.page > 0 ? cell.page : cell.length;
  const int64_t each = (cell.length + shape.slots - 1) / shape.slots;
  shape.blocks = cell.batch * each;
  shape.lengths.assign(static_cast<size_t>(cell.batch), cell.length);
  std::vector<int32_t> ids(static_cast<size_t>(shape.blocks));
  std::iota(ids.begin(), ids.end(), 0);
  if (shape.paged) std::shuffle(ids.begin(), ids.end(), std::mt19937(1));
  for (int b = 0; b < cell.batch; ++b)
    shape.tables.emplace_back(ids.begin() + b * each, ids.begin() + (b + 1) * each);
  return shape;
}

}  // namespace

Status bench_decode_on_device(const DeviceDecodeOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(JsonLines lines, JsonLines::open(options.json));
  TESSERA_ASSIGN_OR_RETURN(const CudaContext context, CudaContext::create({.device = options.device}));
  TESSERA_RETURN_IF_ERROR(cuda::set_device(options.device));
  TESSERA_ASSIGN_OR_RETURN(const cuda::DeviceProperties device, cuda::device_properties(options.device));
  const cuda::Stream stream = cuda::Stream::of(context.stream());
  const bench::SmClock clock(options.device);
  std::printf(
      "%s; median of %d samples of at least 10 ms, each one CUDA graph over rotated caches, in turns with "
      "the reader of as many bytes; of that: median of the rounds' own shares of its rate\n",
      device.name.c_str(), options.rounds);
  std::printf("%5s %7s %6s %5s %4s | %9s %6s %7s %6s | %9s %7s %8s | %8s\n", "batch", "heads", "n", "page",
              "D", "us", "IQR", "TB/s", "MHz", "reader us", "TB/s", "of that", "error");
  lines.write(about("decode", device));
  bool wrong = false, warm = false;
  for (const Cell& cell : cells_of(options)) {
    const CacheShape shape = shape_of(options, cell);
    const int sets = bench::rotated_sets(4.0 * static_cast<double>(shape.elements()), kLeastBytes, kMostSets);
    std::vector<DeviceCaches> caches;
    const auto attend = [&](int i) {
      const DeviceCaches& c = caches[static_cast<size_t>(i % sets)];
      return attention::attend_cache(context, c.problem(), c.view(), {}, c.tensors());
    };
    for (int i = 0; i < sets; ++i) {
      TESSERA_ASSIGN_OR_RETURN(DeviceCaches made,
                               DeviceCaches::create(shape, static_cast<uint32_t>(i), stream));
      caches.push_back(std::move(made));
      TESSERA_RETURN_IF_ERROR(attend(i));
    }
    TESSERA_ASSIGN_OR_RETURN(const double error, caches.back().error(stream));
    TESSERA_RETURN_IF_ERROR(bench::keep_busy(warm ? 0.0 : kWarmUp, stream, [&] { return attend(0); }));
    warm = true;
    // q, o, and K and V of every sequence once.
    const double bytes =
        4.0 * options.dim * cell.batch * (options.heads + static_cast<double>(cell.length) * cell.kv_heads);
    TESSERA_ASSIGN_OR_RETURN(const DeviceReader reader, DeviceReader::create(bytes, stream));
    const auto read = [&](int i) { return reader.read(i, device, stream); };
    bench::TurnsOptions turns;
    turns.rounds = options.rounds;
    turns.sets = sets;
    TESSERA_ASSIGN_OR_RETURN(
        const std::vector<bench::WayTimes> times,
        bench::take_turns({{"tessera", attend}, {"reader", read}}, turns, stream, clock));
    const double ours = median(times[0].seconds), reading = median(times[1].seconds);
    const double share = bench::paired_ratio(times[1].seconds, times[0].seconds) * bytes / reader.bytes();
    const double spread = percentile(times[0].seconds, 0.75) - percentile(times[0].seconds, 0.25);
    const double megahertz = median({times[0].megahertz.begin(), times[0].megahertz.end()});
    std::printf("%5d %3d/%-3d %6lld %5d %4d | %9.2f %5.1f%% %7.3f %6.0f | %9.2f %7.3f %7.1f%% | %8.1e\n",
                cell.batch, options.heads, cell.kv_heads, static_cast<long long>(cell.length), cell.page,
                options.dim, ours * 1e6, 100 * spread / ours, bytes / ours * 1e-12, megahertz, reading * 1e6,
                reader.bytes() / reading * 1e-12, 100 * share, error);
    std::fflush(stdout);
    wrong |= !(error <= 2e-2);
    lines.write({{"bench", "decode"},
                 {"batch", cell.batch},
                 {"heads", options.heads},
                 {"kv_heads", cell.kv_heads},
                 {"length", cell.length},
                 {"page", cell.page},
                 {"dim", options.dim},
                 {"dtype", options.dtype},
                 {"seconds", boost::json::value_from(times[0].seconds)},
                 {"megahertz", boost::json::value_from(times[0].megahertz)},
                 {"reader_seconds", boost::json::value_from(times[1].seconds)},
                 {"reader_bytes", reader.bytes()},
                 {"bytes", bytes},
                 {"of_reader", share},
                 {"error", error}});
  }
  if (wrong)
    return Status(StatusCode::internal, "a result is further from the reference than its dtype allows");
  return {};
}

}  // namespace tessera::cli
