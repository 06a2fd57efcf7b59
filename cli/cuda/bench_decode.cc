// tessera bench decode: attend_cache of one query a sequence, and a kernel that only reads as much.
#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>

#include "bench.h"
#include "cuda/bench_device.h"
#include "cuda/caches.h"
#include "tessera/cuda.h"

namespace tessera::cli {
namespace {

constexpr double kWarmUp = 1.0;
// Together the sets are so many bytes that none finds its blocks in L2.
constexpr double kLeastBytes = 400 * 1048576.0;

// Blocks dealt at random, so that neighbours in a table are not neighbours in memory; page 0: contiguous.
CacheShape shape_of(const DeviceDecodeOptions& options, int kv_heads, int64_t length, int page) {
  CacheShape shape;
  shape.heads = options.heads;
  shape.kv_heads = kv_heads;
  shape.dim = options.dim;
  shape.dtype = parse_dtype(options.dtype.c_str()).value();
  shape.paged = page > 0;
  shape.slots = page > 0 ? page : length;
  const int64_t each = (length + shape.slots - 1) / shape.slots;
  shape.blocks = options.batch * each;
  shape.lengths.assign(static_cast<size_t>(options.batch), length);
  std::vector<int32_t> ids(static_cast<size_t>(shape.blocks));
  std::iota(ids.begin(), ids.end(), 0);
  if (shape.paged) std::shuffle(ids.begin(), ids.end(), std::mt19937(1));
  for (int b = 0; b < options.batch; ++b)
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
      "the reader\n",
      device.name.c_str(), options.rounds);
  std::printf("%5s %7s %6s %5s %4s | %9s %6s %7s | %9s %7s %8s | %8s\n", "batch", "heads", "n", "page", "D",
              "us", "IQR", "TB/s", "reader us", "TB/s", "of that", "error");
  lines.write({{"bench", "decode"}, {"device", device.name}});
  bool wrong = false, warm = false;
  for (const int kv : options.kv_heads) {
    for (const int64_t length : options.lengths) {
      for (const int page : options.pages) {
        const CacheShape shape = shape_of(options, kv, length, page);
        const double set_bytes = 4.0 * static_cast<double>(shape.elements());
        const int sets = std::clamp(static_cast<int>(kLeastBytes / set_bytes) + 1, 2, 64);
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
        const auto read = [&](int i) {
          return caches[static_cast<size_t>(i % sets)].read_only(device, stream);
        };
        bench::TurnsOptions turns;
        turns.rounds = options.rounds;
        turns.sets = sets;
        TESSERA_ASSIGN_OR_RETURN(
            const std::vector<bench::WayTimes> times,
            bench::take_turns({{"tessera", attend}, {"reader", read}}, turns, stream, clock));
        const double ours = median(times[0].seconds), reader = median(times[1].seconds);
        // q, o, and K and V of every sequence once.
        const double bytes =
            4.0 * options.dim * options.batch * (options.heads + static_cast<double>(length) * kv);
        const double share = bytes / ours / (set_bytes / reader);
        const double spread = percentile(times[0].seconds, 0.75) - percentile(times[0].seconds, 0.25);
        std::printf("%5d %3d/%-3d %6lld %5d %4d | %9.2f %5.1f%% %7.3f | %9.2f %7.3f %7.1f%% | %8.1e\n",
                    options.batch, options.heads, kv, static_cast<long long>(length), page, options.dim,
                    ours * 1e6, 100 * spread / ours, bytes / ours * 1e-12, reader * 1e6,
                    set_bytes / reader * 1e-12, 100 * share, error);
        std::fflush(stdout);
        wrong |= !(error <= 2e-2);
        lines.write({{"bench", "decode"},
                     {"batch", options.batch},
                     {"heads", options.heads},
                     {"kv_heads", kv},
                     {"length", length},
                     {"page", page},
                     {"dim", options.dim},
                     {"dtype", options.dtype},
                     {"seconds", boost::json::value_from(times[0].seconds)},
                     {"reader_seconds", boost::json::value_from(times[1].seconds)},
                     {"bytes", bytes},
                     {"of_reader", share},
                     {"error", error}});
      }
    }
  }
  if (wrong)
    return Status(StatusCode::internal, "a result is further from the reference than its dtype allows");
  return {};
}

}  // namespace tessera::cli
