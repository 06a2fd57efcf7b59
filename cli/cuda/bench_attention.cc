// tessera bench attention --device cuda.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "attention/reference/reference.h"
#include "bench.h"
#include "bench/cuda/device_bench.h"
#include "bench/cuda/gradient_rows.h"
#include "core/context.h"
#include "core/format.h"
#include "cuda/about.h"
#include "cuda/bench_device.h"
#include "tessera/attention.h"
#include "tessera/cuda.h"

namespace tessera::cli {
namespace {

using attention::AttentionProblem;
using cuda::DeviceBuffer;

constexpr int64_t kTokens = 16384, kWidth = 2048;
constexpr double kWarmUp = 2.0;
// Errors as a part of the largest value, of outputs and of gradients.
constexpr double kErrorLimit = 2e-2, kGradientLimit = 5e-2;

struct Cell {
  int64_t batch, seqlen;
  int heads, kv_heads, dim;
  DType dtype;
  bool causal;
  int64_t element() const { return dtype == DType::f32 ? 4 : 2; }
  int64_t elements(int of_heads) const { return batch * seqlen * of_heads * dim; }
};

// As papers count: causal is half.
double flops_of(const Cell& c, bool backward) {
  const double pairs =
      static_cast<double>(c.batch) * static_cast<double>(c.seqlen * c.seqlen) * (c.causal ? 0.5 : 1.0);
  return (backward ? 10.0 : 4.0) * c.heads * c.dim * pairs;
}

AttentionProblem problem_of(const Cell& c) {
  AttentionProblem p;
  p.batch = c.batch;
  p.seqlen_q = p.seqlen_k = c.seqlen;
  p.heads = c.heads;
  p.kv_heads = c.kv_heads;
  p.head_dim = p.v_head_dim = c.dim;
  p.dtype = c.dtype;
  p.scale = 1.0f / std::sqrt(static_cast<float>(c.dim));
  p.mask.causal = c.causal;
  return p;
}

// The largest difference from the reference, NaN too, and the largest value of it.
struct Off {
  double worst = 0, largest = 0;
  void see(const float* got, const double* want, int64_t count) {
    for (int64_t d = 0; d < count; ++d) {
      if (const double off = std::abs(got[d] - want[d]); !(off <= worst)) worst = off;
      largest = std::max(largest, std::abs(want[d]));
    }
  }
};

// One set of tensors on the device.
class Tensors {
 public:
  static Result<Tensors> create(const Cell& c, bool backward, uint32_t seed, const cuda::Stream& stream) {
    Tensors t(c);
    for (int i = 0; i < (backward ? kCount : kLse + 1); ++i) {
      const int heads = i == kK || i == kV || i == kDk || i == kDv ? c.kv_heads : c.heads;
      const int64_t count = i == kLse ? c.batch * c.heads * c.seqlen : c.elements(heads);
      const int64_t bytes = count * (i == kLse ? 4 : c.element());
      TESSERA_ASSIGN_OR_RETURN(t.buffers_[i],
                               DeviceBuffer::create(static_cast<size_t>(bytes), "the benchmark"));
      if (i != kLse) {
        TESSERA_RETURN_IF_ERROR(bench::fill_normal(t.buffers_[i].data(), count, c.dtype,
                                                   seed * kCount + static_cast<uint32_t>(i), stream));
      }
    }
    return t;
  }

  Status forward(Context& context, const AttentionProblem& problem) const {
    attention::ForwardTensors t;
    t.q = at<const void*>(kQ, cell_.heads);
    t.k = at<const void*>(kK, cell_.kv_heads);
    t.v = at<const void*>(kV, cell_.kv_heads);
    t.o = at<void*>(kO, cell_.heads);
    t.lse = buffers_[kLse].as<float>();
    return attention::forward(context, problem, t);
  }
  Status backward(Context& context, const AttentionProblem& problem) const {
    attention::BackwardTensors t;
    t.q = at<const void*>(kQ, cell_.heads);
    t.k = at<const void*>(kK, cell_.kv_heads);
    t.v = at<const void*>(kV, cell_.kv_heads);
    t.o = at<const void*>(kO, cell_.heads);
    t.dout = at<const void*>(kDout, cell_.heads);
    t.lse = buffers_[kLse].as<float>();
    t.dq = at<void*>(kDq, cell_.heads);
    t.dk = at<void*>(kDk, cell_.kv_heads);
    t.dv = at<void*>(kDv, cell_.kv_heads);
    return attention::backward(context, problem, t);
  }

  // The largest error of some rows of dq, dk and dv, in two heads of the last sequence, each as a part of the
  // largest value of its kind there.
  Result<double> gradient_error(const AttentionProblem& problem, const cuda::Stream& stream) const {
    Off off[3];
    const int64_t dim = cell_.dim;
    const int share = cell_.heads / cell_.kv_heads;
    const int64_t rows[] = {0, cell_.seqlen / 3, cell_.seqlen / 2 + 1, cell_.seqlen - 1};
    for (const int kv_head : {0, cell_.kv_heads - 1}) {
      TESSERA_ASSIGN_OR_RETURN(const std::vector<float> k, host(kK, cell_.kv_heads, kv_head, stream));
      TESSERA_ASSIGN_OR_RETURN(const std::vector<float> v, host(kV, cell_.kv_heads, kv_head, stream));
      TESSERA_ASSIGN_OR_RETURN(const std::vector<float> dk, host(kDk, cell_.kv_heads, kv_head, stream));
      TESSERA_ASSIGN_OR_RETURN(const std::vector<float> dv, host(kDv, cell_.kv_heads, kv_head, stream));
      std::vector<double> want_k(static_cast<size_t>(4 * dim)), want_v(want_k.size()),
          want_q(static_cast<size_t>(dim));
      for (int head = kv_head * share; head < (kv_head + 1) * share; ++head) {
        TESSERA_ASSIGN_OR_RETURN(const std::vector<float> q, host(kQ, cell_.heads, head, stream));
        TESSERA_ASSIGN_OR_RETURN(const std::vector<float> o, host(kO, cell_.heads, head, stream));
        TESSERA_ASSIGN_OR_RETURN(const std::vector<float> dout, host(kDout, cell_.heads, head, stream));
        TESSERA_ASSIGN_OR_RETURN(const std::vector<float> dq, host(kDq, cell_.heads, head, stream));
        std::vector<float> lse(static_cast<size_t>(cell_.seqlen));
        const float* const from =
            buffers_[kLse].as<float>() + ((cell_.batch - 1) * cell_.heads + head) * cell_.seqlen;
        TESSERA_RETURN_IF_ERROR(cuda::copy(lse.data(), from, lse.size() * 4, stream));
        TESSERA_RETURN_IF_ERROR(stream.synchronize());
        const bench::HeadRows one{q.data(),   k.data(),     v.data(),  o.data(),      dout.data(),
                                  lse.data(), cell_.seqlen, cell_.dim, problem.scale, cell_.causal};
        for (int r = 0; r < 4; ++r) {
          bench::dq_row(one, rows[r], want_q.data());
          off[0].see(dq.data() + rows[r] * dim, want_q.data(), dim);
          bench::add_dkv_row(one, rows[r], want_k.data() + r * dim, want_v.data() + r * dim);
        }
      }
      for (int r = 0; r < 4; ++r) {
        off[1].see(dk.data() + rows[r] * dim, want_k.data() + r * dim, dim);
        off[2].see(dv.data() + rows[r] * dim, want_v.data() + r * dim, dim);
      }
    }
    double worst = 0;
    for (const Off& one : off) {
      if (!(one.worst / one.largest <= worst)) worst = one.worst / one.largest;
    }
    return worst;
  }

  // The largest error of some rows of o, in two heads of the last sequence, as a part of the largest value
  // there.
  Result<double> error(const AttentionProblem& problem, const cuda::Stream& stream) const {
    Off off;
    for (const int head : {0, cell_.heads - 1}) {
      const int kv_head = head / (cell_.heads / cell_.kv_heads);
      TESSERA_ASSIGN_OR_RETURN(const std::vector<float> q, host(kQ, cell_.heads, head, stream));
      TESSERA_ASSIGN_OR_RETURN(const std::vector<float> k, host(kK, cell_.kv_heads, kv_head, stream));
      TESSERA_ASSIGN_OR_RETURN(const std::vector<float> v, host(kV, cell_.kv_heads, kv_head, stream));
      TESSERA_ASSIGN_OR_RETURN(const std::vector<float> o, host(kO, cell_.heads, head, stream));
      for (const int64_t row : {int64_t{0}, cell_.seqlen / 3, cell_.seqlen / 2 + 1, cell_.seqlen - 1}) {
        AttentionProblem one = problem;
        one.batch = one.seqlen_q = one.heads = one.kv_heads = 1;
        one.dtype = DType::f32;
        if (cell_.causal) one.seqlen_k = row + 1;
        const int64_t dim = cell_.dim;
        std::vector<double> want(static_cast<size_t>(dim));
        attention::reference::attention(one, {q.data() + row * dim, 0, dim, dim}, {k.data(), 0, dim, dim},
                                        {v.data(), 0, dim, dim}, want.data(), nullptr);
        off.see(o.data() + row * dim, want.data(), dim);
      }
    }
    return off.worst / off.largest;
  }

 private:
  enum { kQ, kK, kV, kO, kLse, kDout, kDq, kDk, kDv, kCount };
  explicit Tensors(const Cell& cell) : cell_(cell) {}

  template <typename Pointer>
  attention::Strided<Pointer> at(int i, int heads) const {
    return attention::contiguous<Pointer>(buffers_[i].data(), cell_.seqlen, heads, cell_.dim);
  }
  // [seqlen][dim] of a head of the last sequence.
  Result<std::vector<float>> host(int i, int heads, int head, const cuda::Stream& stream) const {
    const int64_t sequence = cell_.seqlen * heads * cell_.dim;
    std::vector<char> bytes(static_cast<size_t>(sequence * cell_.element()));
    TESSERA_RETURN_IF_ERROR(
        cuda::copy(bytes.data(), buffers_[i].as<char>() + (cell_.batch - 1) * sequence * cell_.element(),
                   bytes.size(), stream));
    TESSERA_RETURN_IF_ERROR(stream.synchronize());
    std::vector<float> values(static_cast<size_t>(cell_.seqlen * cell_.dim));
    for (int64_t row = 0; row < cell_.seqlen; ++row) {
      for (int64_t d = 0; d < cell_.dim; ++d) {
        const char* from = bytes.data() + ((row * heads + head) * cell_.dim + d) * cell_.element();
        float& to = values[static_cast<size_t>(row * cell_.dim + d)];
        uint16_t half;
        __builtin_memcpy(&half, from, 2);
        if (cell_.dtype == DType::f32) {
          __builtin_memcpy(&to, from, 4);
        } else {
          to = cell_.dtype == DType::f16 ? f16_to_f32(half) : bf16_to_f32(half);
        }
      }
    }
    return values;
  }

  Cell cell_;
  DeviceBuffer buffers_[kCount];
};

// What stays from cell to cell.
struct Bench {
  CudaContext context;
  cuda::Stream stream;  // the context's
  cuda::DeviceProperties device;
  bench::SmClock clock;
  Result<bench::Matmul> matmul;

  static Result<Bench> create(int ordinal) {
    TESSERA_ASSIGN_OR_RETURN(CudaContext context, CudaContext::create({.device = ordinal}));
    TESSERA_RETURN_IF_ERROR(cuda::set_device(ordinal));
    TESSERA_ASSIGN_OR_RETURN(cuda::DeviceProperties device, cuda::device_properties(ordinal));
    cuda::Stream stream = cuda::Stream::of(context.stream());
    Result<bench::Matmul> matmul = bench::Matmul::create(stream);
    return Bench{std::move(context), std::move(stream), std::move(device), bench::SmClock(ordinal),
                 std::move(matmul)};
  }
  // FLOP/s of the matrix product; 0 without cuBLAS.
  Result<double> matmul_rate() const {
    if (!matmul.ok()) return 0.0;
    bench::TurnsOptions turns;
    turns.rounds = 5;
    TESSERA_ASSIGN_OR_RETURN(
        const std::vector<bench::WayTimes> times,
        bench::take_turns({{"matmul", [&](int) { return matmul->run(); }}}, turns, stream, clock));
    return bench::Matmul::kFlops / median(times[0].seconds);
  }
};

struct Figures {
  bench::WayTimes times;
  double error = 0;
};

Result<Figures> measure(const Bench& bench, const Cell& cell, const DeviceAttentionOptions& options) {
  const AttentionProblem problem = problem_of(cell);
  Context& context = bench.context;
  // The sets together exceed L2 twice.
  const int64_t bytes = (2 * cell.elements(cell.heads) + 2 * cell.elements(cell.kv_heads)) * cell.element();
  const int sets = static_cast<int>(std::max<int64_t>(3, (2 * bench.device.l2_bytes + bytes - 1) / bytes));
  std::vector<Tensors> tensors;
  for (int i = 0; i < sets; ++i) {
    TESSERA_ASSIGN_OR_RETURN(Tensors set,
                             Tensors::create(cell, options.backward, static_cast<uint32_t>(i), bench.stream));
    tensors.push_back(std::move(set));
    TESSERA_RETURN_IF_ERROR(tensors.back().forward(context, problem));
  }
  Figures figures;
  if (options.backward) {
    TESSERA_RETURN_IF_ERROR(tensors.back().backward(context, problem));
    TESSERA_ASSIGN_OR_RETURN(figures.error, tensors.back().gradient_error(problem, bench.stream));
  } else {
    TESSERA_ASSIGN_OR_RETURN(figures.error, tensors.back().error(problem, bench.stream));
  }
  bench::TurnsOptions turns;
  turns.rounds = options.rounds;
  turns.sets = sets;
  const auto call = [&](int i) {
    const Tensors& set = tensors[static_cast<size_t>(i % sets)];
    return options.backward ? set.backward(context, problem) : set.forward(context, problem);
  };
  TESSERA_ASSIGN_OR_RETURN(std::vector<bench::WayTimes> times,
                           bench::take_turns({{"tessera", call}}, turns, bench.stream, bench.clock));
  figures.times = std::move(times[0]);
  return figures;
}

std::string taken_line(Context& context, const AttentionProblem& problem, attention::Pass pass) {
  const std::string lines = attention::explain(context, problem, pass);
  const size_t taken = lines.find("> ");
  if (taken == std::string::npos) return "none";
  return lines.substr(taken + 2, lines.find(':', taken) - taken - 2);
}

double clock_of(const bench::WayTimes& times) {
  return median(std::vector<double>(times.megahertz.begin(), times.megahertz.end()));
}

std::vector<Cell> cells_of(const DeviceAttentionOptions& options) {
  std::vector<Cell> cells;
  for (const std::string& dtype : options.dtypes) {
    for (const int dim : options.dims) {
      for (const bool causal : {false, true}) {
        if (options.causal == (causal ? "no" : "yes")) continue;
        for (const int kv : options.kv_heads) {
          for (const int64_t seqlen : options.seqlens) {
            const int heads =
                options.heads > 0 ? options.heads : std::max<int>(1, static_cast<int>(kWidth / dim));
            const int64_t batch = options.batch > 0 ? options.batch : std::max<int64_t>(1, kTokens / seqlen);
            cells.push_back(
                {batch, seqlen, heads, kv > 0 ? kv : heads, dim, parse_dtype(dtype.c_str()).value(), causal});
          }
        }
      }
    }
  }
  return cells;
}

}  // namespace

Status bench_attention_on_device(const DeviceAttentionOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(JsonLines lines, JsonLines::open(options.json));
  TESSERA_ASSIGN_OR_RETURN(const Bench bench, Bench::create(options.device));
  if (bench.matmul.ok()) {
    TESSERA_RETURN_IF_ERROR(bench::keep_busy(kWarmUp, bench.stream, [&] { return bench.matmul->run(); }));
  }
  TESSERA_ASSIGN_OR_RETURN(const double matmul, bench.matmul_rate());
  const double peak = bench::dense_peak(bench.device);
  const char* const part = options.backward ? "backward" : "forward";
  std::printf("%s, %d multiprocessors; dense bf16 peak %.0f TFLOP/s, matrix product of 8192 %.0f%s\n",
              bench.device.name.c_str(), bench.device.multiprocessors, peak * 1e-12, matmul * 1e-12,
              bench.matmul.ok() ? "" : (" (" + bench.matmul.status().message() + ")").c_str());
  std::printf("%s, median of %d samples of at least 10 ms, each one CUDA graph over rotated tensors\n", part,
              options.rounds);
  std::printf("%-5s %-6s %7s %6s %6s %4s | %9s %6s %8s %6s %7s %6s | %8s  %s\n", "dtype", "mask", "heads",
              "batch", "S", "D", "us", "IQR", "TFLOP/s", "peak", "matmul", "MHz", "error", "kernel");
  boost::json::object first = about("attention", bench.device);
  first["part"] = part;
  first["dense_peak"] = peak;
  first["matmul"] = matmul;
  lines.write(first);
  bool wrong = false;
  for (const Cell& cell : cells_of(options)) {
    TESSERA_ASSIGN_OR_RETURN(const Figures f, measure(bench, cell, options));
    const double seconds = median(f.times.seconds), flops = flops_of(cell, options.backward);
    const double spread = percentile(f.times.seconds, 0.75) - percentile(f.times.seconds, 0.25);
    const std::string kernel =
        taken_line(bench.context, problem_of(cell),
                   options.backward ? attention::Pass::backward : attention::Pass::forward);
    const auto percent = [&](double of) { return of > 0 ? 100 * flops / seconds / of : 0.0; };
    std::printf(
        "%-5s %-6s %3d/%-3d %6lld %6lld %4d | %9.1f %5.1f%% %8.1f %5.1f%% %6.1f%% %6.0f | %8.1e  %s\n",
        name(cell.dtype), cell.causal ? "causal" : "full", cell.heads, cell.kv_heads,
        static_cast<long long>(cell.batch), static_cast<long long>(cell.seqlen), cell.dim, seconds * 1e6,
        100 * spread / seconds, flops / seconds * 1e-12, percent(peak), percent(matmul), clock_of(f.times),
        f.error, kernel.c_str());
    std::fflush(stdout);
    wrong |= !(f.error <= (options.backward ? kGradientLimit : kErrorLimit));
    lines.write({{"bench", "attention"},
                 {"part", part},
                 {"kernel", kernel},
                 {"dtype", name(cell.dtype)},
                 {"causal", cell.causal},
                 {"batch", cell.batch},
                 {"heads", cell.heads},
                 {"kv_heads", cell.kv_heads},
                 {"dim", cell.dim},
                 {"seqlen", cell.seqlen},
                 {"seconds", boost::json::value_from(f.times.seconds)},
                 {"megahertz", boost::json::value_from(f.times.megahertz)},
                 {"tflops", flops / seconds * 1e-12},
                 {"of_peak", percent(peak) / 100},
                 {"of_matmul", percent(matmul) / 100},
                 {"error", f.error}});
  }
  if (wrong)
    return Status(StatusCode::internal, "a result is further from the reference than its dtype allows");
  return {};
}

}  // namespace tessera::cli
