// tessera bench decode --device cuda: attend_cache of one query a sequence, and a kernel that only reads as
// much.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>

#include "attention/reference/reference.h"
#include "bench.h"
#include "bench/cuda/device_bench.h"
#include "core/context.h"
#include "core/format.h"
#include "cuda/bench_device.h"
#include "tessera/cuda.h"
#include "tessera/paged.h"

namespace tessera::cli {
namespace {

using attention::AttentionProblem;
using cuda::DeviceBuffer;

constexpr double kWarmUp = 1.0;
// Together the sets are so many bytes that none finds its blocks in L2.
constexpr int64_t kLeastBytes = int64_t{400} << 20;

struct Cell {
  int batch, heads, kv_heads, dim, page;  // page 0: contiguous
  int64_t length;
  DType dtype;
  int slots() const { return page > 0 ? page : static_cast<int>(length); }
  int64_t pages() const { return (length + slots() - 1) / slots(); }  // of a sequence
  int64_t cache_elements() const { return batch * pages() * slots() * kv_heads * dim; }
  // q, o, and K and V of every sequence once.
  double bytes() const {
    return 2.0 * dim * (2.0 * batch * heads + 2.0 * batch * static_cast<double>(length) * kv_heads);
  }
};

class Step {
 public:
  static Result<Step> create(const Cell& c, uint32_t seed, const cuda::Stream& stream) {
    Step s(c);
    const auto tensor = [&](DeviceBuffer& to, int64_t count, uint32_t stream_seed) -> Status {
      TESSERA_ASSIGN_OR_RETURN(to, DeviceBuffer::create(static_cast<size_t>(2 * count), "the benchmark"));
      return bench::fill_normal(to.data(), count, c.dtype, 8 * seed + stream_seed, stream);
    };
    TESSERA_RETURN_IF_ERROR(tensor(s.q_, int64_t{c.batch} * c.heads * c.dim, 0));
    TESSERA_RETURN_IF_ERROR(tensor(s.k_, c.cache_elements(), 1));
    TESSERA_RETURN_IF_ERROR(tensor(s.v_, c.cache_elements(), 2));
    TESSERA_RETURN_IF_ERROR(tensor(s.o_, int64_t{c.batch} * c.heads * c.dim, 3));
    s.table_host_.resize(static_cast<size_t>(c.batch * c.pages()));
    std::iota(s.table_host_.begin(), s.table_host_.end(), 0);
    if (c.page > 0) std::shuffle(s.table_host_.begin(), s.table_host_.end(), std::mt19937(seed + 1));
    const auto ints = [&](DeviceBuffer& to, const std::vector<int32_t>& from) -> Status {
      TESSERA_ASSIGN_OR_RETURN(to, DeviceBuffer::create(from.size() * 4, "the benchmark"));
      TESSERA_RETURN_IF_ERROR(cuda::copy(to.data(), from.data(), from.size() * 4, stream));
      return stream.synchronize();
    };
    TESSERA_RETURN_IF_ERROR(ints(s.table_, s.table_host_));
    TESSERA_RETURN_IF_ERROR(
        ints(s.lengths_, std::vector<int32_t>(static_cast<size_t>(c.batch), static_cast<int32_t>(c.length))));
    return s;
  }

  AttentionProblem problem() const {
    AttentionProblem p;
    p.batch = cell_.batch;
    p.seqlen_q = 1;
    p.heads = cell_.heads;
    p.kv_heads = cell_.kv_heads;
    p.head_dim = p.v_head_dim = cell_.dim;
    p.dtype = cell_.dtype;
    p.scale = 1.0f / std::sqrt(static_cast<float>(cell_.dim));
    return p;
  }

  Status run(Context& context) const {
    attention::CacheView view;
    view.k = attention::contiguous<void*>(k_.data(), cell_.slots(), cell_.kv_heads, cell_.dim);
    view.v = attention::contiguous<void*>(v_.data(), cell_.slots(), cell_.kv_heads, cell_.dim);
    view.num_blocks = cell_.batch * cell_.pages();
    view.block_size = cell_.slots();
    view.seqlens = lengths_.as<int32_t>();
    if (cell_.page > 0) {
      view.block_table = table_.as<int32_t>();
      view.max_blocks = cell_.pages();
    }
    attention::CacheTensors t;
    t.q = attention::contiguous<const void*>(q_.data(), 1, cell_.heads, cell_.dim);
    t.o = attention::contiguous<void*>(o_.data(), 1, cell_.heads, cell_.dim);
    return attention::attend_cache(context, problem(), view, {}, t);
  }

  // Of the last sequence's first and last head, as a part of the largest value.
  Result<double> error(const cuda::Stream& stream) const {
    const Cell& c = cell_;
    const int64_t rows = c.pages() * c.slots(), width = int64_t{c.kv_heads} * c.dim;
    std::vector<uint16_t> q(static_cast<size_t>(c.heads) * c.dim), o(q.size()),
        block(static_cast<size_t>(c.slots() * width));
    std::vector<float> k(static_cast<size_t>(rows * width)), v(k.size());
    const int64_t row_bytes = static_cast<int64_t>(q.size()) * 2;
    const auto fetch = [&](std::vector<uint16_t>& to, const DeviceBuffer& from, int64_t offset) -> Status {
      TESSERA_RETURN_IF_ERROR(cuda::copy(to.data(), from.as<char>() + offset, to.size() * 2, stream));
      return stream.synchronize();
    };
    TESSERA_RETURN_IF_ERROR(fetch(q, q_, (c.batch - 1) * row_bytes));
    TESSERA_RETURN_IF_ERROR(fetch(o, o_, (c.batch - 1) * row_bytes));
    for (int64_t page = 0; page < c.pages(); ++page) {
      const int64_t id = table_host_[static_cast<size_t>((c.batch - 1) * c.pages() + page)];
      for (const auto& [from, to] : {std::pair{&k_, &k}, {&v_, &v}}) {
        TESSERA_RETURN_IF_ERROR(fetch(block, *from, id * static_cast<int64_t>(block.size()) * 2));
        for (size_t i = 0; i < block.size(); ++i)
          (*to)[static_cast<size_t>(page * c.slots() * width) + i] = wide(block[i]);
      }
    }
    double worst = 0, largest = 0;
    for (const int head : {0, c.heads - 1}) {
      AttentionProblem one = problem();
      one.batch = one.heads = one.kv_heads = 1;
      one.seqlen_k = c.length;
      one.dtype = DType::f32;
      std::vector<float> row(static_cast<size_t>(c.dim));
      std::vector<double> want(row.size());
      for (int d = 0; d < c.dim; ++d)
        row[static_cast<size_t>(d)] = wide(q[static_cast<size_t>(head * c.dim + d)]);
      const int64_t at = head / (c.heads / c.kv_heads) * c.dim;
      attention::reference::attention(one, {row.data(), 0, c.dim, c.dim}, {k.data() + at, 0, width, c.dim},
                                      {v.data() + at, 0, width, c.dim}, want.data(), nullptr);
      for (int d = 0; d < c.dim; ++d) {
        const double off =
            std::abs(wide(o[static_cast<size_t>(head * c.dim + d)]) - want[static_cast<size_t>(d)]);
        if (!(off <= worst)) worst = off;
        largest = std::max(largest, std::abs(want[static_cast<size_t>(d)]));
      }
    }
    return worst / largest;
  }

  // As many bytes as K and V of the step, in whole pieces of the reader; K and V are read one behind the
  // other.
  Status read_only(const cuda::DeviceProperties& device, const cuda::Stream& stream) const {
    const int64_t bytes = cell_.cache_elements() * 2 / 16384 * 16384;
    TESSERA_RETURN_IF_ERROR(bench::read_all(k_.data(), bytes, device, stream));
    return bench::read_all(v_.data(), bytes, device, stream);
  }

 private:
  explicit Step(const Cell& cell) : cell_(cell) {}
  float wide(uint16_t bits) const { return cell_.dtype == DType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits); }

  Cell cell_;
  DeviceBuffer q_, k_, v_, o_, table_, lengths_;
  std::vector<int32_t> table_host_;
};

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
        const Cell cell{options.batch,
                        options.heads,
                        kv,
                        options.dim,
                        page,
                        length,
                        parse_dtype(options.dtype.c_str()).value()};
        const int64_t set_bytes = cell.cache_elements() * 4;
        const int sets =
            static_cast<int>(std::clamp<int64_t>((kLeastBytes + set_bytes - 1) / set_bytes, 2, 64));
        std::vector<Step> steps;
        for (int i = 0; i < sets; ++i) {
          TESSERA_ASSIGN_OR_RETURN(Step step, Step::create(cell, static_cast<uint32_t>(i), stream));
          steps.push_back(std::move(step));
          TESSERA_RETURN_IF_ERROR(steps.back().run(context));
        }
        TESSERA_ASSIGN_OR_RETURN(const double error, steps.back().error(stream));
        const auto of = [&](int i) -> const Step& { return steps[static_cast<size_t>(i % sets)]; };
        bench::TurnsOptions turns;
        turns.rounds = options.rounds;
        turns.sets = sets;
        TESSERA_RETURN_IF_ERROR(
            bench::keep_busy(warm ? 0.0 : kWarmUp, stream, [&] { return of(0).run(context); }));
        warm = true;
        TESSERA_ASSIGN_OR_RETURN(
            const std::vector<bench::WayTimes> times,
            bench::take_turns({{"tessera", [&](int i) { return of(i).run(context); }},
                               {"reader", [&](int i) { return of(i).read_only(device, stream); }}},
                              turns, stream, clock));
        const double ours = median(times[0].seconds), reader = median(times[1].seconds);
        const double read = static_cast<double>(cell.cache_elements() * 4);
        const double share = cell.bytes() / ours / (read / reader);
        const double spread = percentile(times[0].seconds, 0.75) - percentile(times[0].seconds, 0.25);
        std::printf("%5d %3d/%-3d %6lld %5d %4d | %9.2f %5.1f%% %7.3f | %9.2f %7.3f %7.1f%% | %8.1e\n",
                    cell.batch, cell.heads, kv, static_cast<long long>(length), page, cell.dim, ours * 1e6,
                    100 * spread / ours, cell.bytes() / ours * 1e-12, reader * 1e6, read / reader * 1e-12,
                    100 * share, error);
        std::fflush(stdout);
        wrong |= !(error <= 2e-2);
        lines.write({{"bench", "decode"},
                     {"batch", cell.batch},
                     {"heads", cell.heads},
                     {"kv_heads", kv},
                     {"length", length},
                     {"page", page},
                     {"dim", cell.dim},
                     {"dtype", options.dtype},
                     {"seconds", boost::json::value_from(times[0].seconds)},
                     {"reader_seconds", boost::json::value_from(times[1].seconds)},
                     {"bytes", cell.bytes()},
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
