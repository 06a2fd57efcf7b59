// linear_bench: the linear kernels beside the ceilings of the same minute.
//   linear_bench [--threads 1,2] [--types q4_1,q8_0,...] [--rows 1,8,64,512] [--seconds 0.3]
// Weights of the shapes of a 135M Llama; more copies of each than any cache holds, walked in turn as a model
// does. Every line is the best of the rounds, and the median as a share of it; one thread is timed by its own
// CPU clock. TESSERA_ISA picks the kernels.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "bench/ceilings.h"
#include "core/arena.h"
#include "core/format.h"
#include "ops/linear.h"
#include "ops/reference.h"
#include "simd/isa.h"

namespace tessera::bench {
namespace {

struct Options {
  std::vector<std::string> threads = {"1", "2"};
  std::vector<std::string> types = {"q4_1", "q4_0", "q8_0", "bf16", "f32"};
  std::vector<std::string> rows = {"1", "4", "8", "16", "64", "512"};
  double seconds = 0.3;
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    parts.push_back(text.substr(at, comma - at));
    at = comma + 1;
  }
  return parts;
}

// Random but finite blocks.
std::vector<uint8_t> random_weights(DType dtype, int64_t n, int64_t k) {
  const DTypeInfo& of = info(dtype);
  std::vector<uint8_t> bytes(static_cast<size_t>(n * k / of.block_elements * of.block_bytes));
  uint32_t state = 1;
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>((state = state * 1664525u + 1013904223u) >> 24);
  const uint16_t scale = dtype == DType::bf16 ? f32_to_bf16(0.01f) : f32_to_f16(0.01f);
  for (size_t at = 0; at < bytes.size(); at += static_cast<size_t>(of.block_bytes)) {
    const float value = 0.01f;
    if (dtype == DType::f32) {
      std::memcpy(&bytes[at], &value, 4);
    } else {
      std::memcpy(&bytes[at], &scale, 2);
      if (dtype == DType::q4_1) std::memcpy(&bytes[at + 2], &scale, 2);
    }
  }
  return bytes;
}

struct Shape {
  int64_t n, k;
  int64_t copies_bytes;  // all copies together
};

bool check(const ops::WeightSource& source, int64_t k, const std::vector<float>& x,
           const std::vector<float>& y) {
  for (int64_t o = 0; o < source.rows; o += source.rows / 7) {
    const float expected = ops::reference::dot_chain(source, o, k, x.data(), ops::Compute::quantized);
    if (std::memcmp(&expected, &y[static_cast<size_t>(o)], sizeof expected) != 0) return false;
  }
  return true;
}

bool bench_shape(Context& context, DType dtype, const Shape& shape, const Options& options) {
  const std::vector<uint8_t> bytes = random_weights(dtype, shape.n, shape.k);
  const ops::WeightSource source{dtype, bytes.data(), shape.n};
  const size_t copies = std::max<size_t>(1, static_cast<size_t>(shape.copies_bytes) / bytes.size());
  ArenaAllocator arena;
  std::vector<ops::PackedWeight> weights;
  const double start = now(context.pool.size());
  for (size_t i = 0; i < copies; ++i) {
    Result<ops::PackedWeight> packed = ops::PackedWeight::pack(
        context, {&source, 1}, shape.k, ops::Compute::quantized, ops::PanelOrder::concatenated, arena);
    if (!packed.ok()) return std::fprintf(stderr, "%s\n", packed.status().message().c_str()), false;
    weights.push_back(std::move(packed).value());
  }
  const double pack_seconds = now(context.pool.size()) - start;
  std::printf("%-5s n %6lld k %5lld  %4zu copies, %4.0f MB, packed at %.2f GB/s\n", name(dtype),
              static_cast<long long>(shape.n), static_cast<long long>(shape.k), copies,
              static_cast<double>(copies * bytes.size()) / 1e6,
              static_cast<double>(copies * bytes.size()) / pack_seconds / 1e9);
  for (const std::string& text : options.rows) {
    const int64_t rows = std::atoll(text.c_str());
    std::vector<float> x(static_cast<size_t>(rows * shape.k)), y(static_cast<size_t>(rows * shape.n));
    for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i));
    // The engine's norms quantise in their epilogue, so that is not timed here.
    ops::QuantizedRows quantized;
    const ops::ConstRowsView f32(x.data(), rows, shape.k);
    if (weights[0].takes_quantized()) ops::quantize(context, f32, shape.k, quantized);
    const ops::LinearInput input =
        weights[0].takes_quantized() ? ops::LinearInput(quantized) : ops::LinearInput(f32);
    const double read = read_rate(context.pool);
    const double peak = info(dtype).quantized ? int8_peak(context.pool) : f32_peak(context.pool);
    const double guess = std::max(2.0 * static_cast<double>(rows * shape.n * shape.k) / 6e11,
                                  static_cast<double>(weights[0].bytes()) / 3e10);
    std::vector<double> times;
    const double begin = now(context.pool.size());
    // Rounds of about a millisecond: a loaded machine still leaves some of them whole.
    size_t next = 0;
    while (times.size() < 3 || now(context.pool.size()) - begin < options.seconds) {
      const size_t batch = std::clamp<size_t>(static_cast<size_t>(1e-3 / guess), 1, copies);
      const double round = now(context.pool.size());
      for (size_t i = 0; i < batch; ++i, next = (next + 1) % copies) {
        ops::linear(context, weights[next], input, ops::RowsView{y.data(), rows, shape.n});
      }
      times.push_back((now(context.pool.size()) - round) / static_cast<double>(batch));
    }
    std::sort(times.begin(), times.end());
    const double best = times.front();
    const double operations = 2.0 * static_cast<double>(rows * shape.n * shape.k) / best;
    const double bandwidth = static_cast<double>(weights[0].bytes()) / best;
    std::printf(
        "  %d thread(s) rows %4lld  %9.1f us (median %3.0f%%)  %7.1f GOP/s = %5.1f%% of %6.1f   %6.2f GB/s = "
        "%5.1f%% of %5.1f  %s\n",
        context.pool.size(), static_cast<long long>(rows), best * 1e6, 100 * best / times[times.size() / 2],
        operations / 1e9, peak > 0 ? 100 * operations / peak : 0.0, peak / 1e9, bandwidth / 1e9,
        100 * bandwidth / read, read / 1e9, ops::explain_linear(weights[0], rows).c_str());
    std::fflush(stdout);
    if (!check(source, shape.k, x, y)) return std::fprintf(stderr, "wrong result\n"), false;
  }
  return true;
}

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--threads")
      options.threads = split(value);
    else if (flag == "--types")
      options.types = split(value);
    else if (flag == "--rows")
      options.rows = split(value);
    else if (flag == "--seconds")
      options.seconds = std::atof(value.c_str());
    else
      return std::fprintf(stderr, "unknown flag %s\n", flag.c_str()), 2;
  }
  const Result<simd::Isa> isa = simd::requested_isa();
  if (!isa.ok()) return std::fprintf(stderr, "%s\n", isa.status().message().c_str()), 2;
  for (const std::string& threads : options.threads) {
    ThreadPool pool({.threads = std::atoi(threads.c_str()), .pin = true});
    Context context(pool);
    for (const std::string& type : options.types) {
      const Result<DType> dtype = parse_dtype(type.c_str());
      if (!dtype.ok()) return std::fprintf(stderr, "%s\n", dtype.status().message().c_str()), 2;
      for (const Shape& shape :
           {Shape{1536, 576, 200 << 20}, Shape{576, 1536, 200 << 20}, Shape{49152, 576, 200 << 20}}) {
        if (shape.n > 10000 && *dtype != DType::q8_0) continue;
        if (!bench_shape(context, *dtype, shape, options)) return 1;
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace tessera::bench

int main(int argc, char** argv) {
  return tessera::bench::main(argc, argv);
}
