// tessera bench attention: the library's dense attention beside the machine's peak and, on request, beside
// PyTorch's, in alternated rounds of one run.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <optional>
#include <thread>

#include "attention/reference/reference.h"
#include "bench.h"
#include "bench/ceilings.h"
#include "core/context.h"
#include "core/format.h"
#include "core/philox.h"
#include "cuda/bench_device.h"
#include "peer_process.h"
#include "tessera/attention.h"

namespace tessera::cli {
namespace {

using attention::AttentionProblem;

struct AttentionOptions {
  std::vector<int64_t> seqlens = {512, 1024, 2048, 4096};
  std::vector<int> dims = {64, 128};
  int batch = 1;
  int heads = 4;
  std::vector<int> kv_heads = {4, 1};
  std::vector<std::string> dtypes = {"f32", "bf16"};
  std::string causal = "both";
  std::vector<int> threads = {1, 2};
  bool backward = false;
  std::string schedule = "fa2";
  int rounds = 11;
  std::string peer, python = "python3", peer_script;
  std::string json;
  std::string device = "cpu";
};

struct Cell {
  int64_t seqlen;
  int batch, heads, kv_heads, dim;
  DType dtype;
  bool causal;
  int threads;
};

// Useful operations: two per multiply-add of the visible pairs, two products forward and five backward.
double flops_of(const Cell& c, bool backward) {
  const double s = static_cast<double>(c.seqlen);
  const double pairs = c.causal ? s * (s + 1) / 2 : s * s;
  return (backward ? 10.0 : 4.0) * c.batch * c.heads * c.dim * pairs;
}

// A tensor [batch][seqlen][heads][dim] of normal-like values, as the dtype holds them. Its data begin with a
// cache line, as the peer's do.
struct Values {
  DType dtype;
  std::vector<float> wide;
  std::vector<char> held;
  char* first = nullptr;

  Values(const Cell& c, int heads, uint32_t stream) : dtype(c.dtype) {
    const int64_t count = int64_t{c.batch} * c.seqlen * heads * c.dim;
    wide.resize(static_cast<size_t>(count));
    for (size_t i = 0; i < wide.size(); ++i) {
      const auto words =
          philox4x32({static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), stream, 0}, {7, 9});
      wide[i] = 1.7320508f * (philox_uniform(words[0]) + philox_uniform(words[1]) + philox_uniform(words[2]) +
                              philox_uniform(words[3]) - 2.0f);
    }
    const size_t element = dtype == DType::f32 ? 4 : 2;
    held.resize(wide.size() * element + 64);
    first = held.data() + (64 - reinterpret_cast<uintptr_t>(held.data()) % 64) % 64;
    for (size_t i = 0; i < wide.size(); ++i) {
      const uint16_t half = dtype == DType::f16 ? f32_to_f16(wide[i]) : f32_to_bf16(wide[i]);
      std::memcpy(first + i * element, element == 4 ? static_cast<const void*>(&wide[i]) : &half, element);
      wide[i] = at(i);
    }
  }
  Values(const Values&) = delete;
  float at(size_t i) const {
    float value;
    if (dtype == DType::f32) return std::memcpy(&value, first + i * 4, 4), value;
    uint16_t half;
    std::memcpy(&half, first + i * 2, 2);
    return dtype == DType::f16 ? f16_to_f32(half) : bf16_to_f32(half);
  }
  const void* data() const { return first; }
  void* data() { return first; }
};

// One cell's tensors, run forward or backward.
class Work {
 public:
  Work(const Cell& c, attention::Schedule schedule)
      : cell_(c),
        q_(c, c.heads, 1),
        k_(c, c.kv_heads, 2),
        v_(c, c.kv_heads, 3),
        dout_(c, c.heads, 4),
        o_(c, c.heads, 5),
        dq_(c, c.heads, 6),
        dk_(c, c.kv_heads, 7),
        dv_(c, c.kv_heads, 8),
        lse_(static_cast<size_t>(c.batch) * static_cast<size_t>(c.heads) * static_cast<size_t>(c.seqlen)) {
    problem_.batch = c.batch;
    problem_.seqlen_q = problem_.seqlen_k = c.seqlen;
    problem_.heads = c.heads;
    problem_.kv_heads = c.kv_heads;
    problem_.head_dim = problem_.v_head_dim = c.dim;
    problem_.dtype = c.dtype;
    problem_.scale = 1.0f / std::sqrt(static_cast<float>(c.dim));
    problem_.mask.causal = c.causal;
    tuning_.schedule = schedule;
  }
  const AttentionProblem& problem() const { return problem_; }

  Status forward(Context& context) {
    attention::ForwardTensors t;
    t.q = read(q_, cell_.heads);
    t.k = read(k_, cell_.kv_heads);
    t.v = read(v_, cell_.kv_heads);
    t.o = write(o_, cell_.heads);
    t.lse = lse_.data();
    return attention::forward(context, problem_, t, tuning_);
  }
  // After forward.
  Status backward(Context& context) {
    attention::BackwardTensors t;
    t.q = read(q_, cell_.heads);
    t.k = read(k_, cell_.kv_heads);
    t.v = read(v_, cell_.kv_heads);
    t.o = read(o_, cell_.heads);
    t.dout = read(dout_, cell_.heads);
    t.lse = lse_.data();
    t.dq = write(dq_, cell_.heads);
    t.dk = write(dk_, cell_.kv_heads);
    t.dv = write(dv_, cell_.kv_heads);
    return attention::backward(context, problem_, t);
  }

  // The largest error of some rows of o against double precision, as a part of the largest value there.
  double error() const {
    double worst = 0, largest = 0;
    const int64_t rows[] = {0, cell_.seqlen / 3, cell_.seqlen / 2 + 1, cell_.seqlen - 1};
    const int64_t width = int64_t{cell_.heads} * cell_.dim, kv_width = int64_t{cell_.kv_heads} * cell_.dim;
    for (const int64_t row : rows) {
      AttentionProblem one = problem_;
      one.batch = one.seqlen_q = 1;
      if (cell_.causal) one.seqlen_k = row + 1;
      std::vector<double> want(static_cast<size_t>(width));
      attention::reference::attention(one, {q_.wide.data() + row * width, 0, width, cell_.dim},
                                      {k_.wide.data(), 0, kv_width, cell_.dim},
                                      {v_.wide.data(), 0, kv_width, cell_.dim}, want.data(), nullptr);
      for (size_t i = 0; i < want.size(); ++i) {
        const double error = std::abs(o_.at(static_cast<size_t>(row * width) + i) - want[i]);
        if (!(error <= worst)) worst = error;
        largest = std::max(largest, std::abs(want[i]));
      }
    }
    return worst / largest;
  }

 private:
  attention::Strided<const void*> read(const Values& values, int heads) const {
    return attention::contiguous<const void*>(values.data(), cell_.seqlen, heads, cell_.dim);
  }
  attention::Strided<void*> write(Values& values, int heads) const {
    return attention::contiguous<void*>(values.data(), cell_.seqlen, heads, cell_.dim);
  }
  Cell cell_;
  AttentionProblem problem_;
  attention::Tuning tuning_;
  Values q_, k_, v_, dout_, o_, dq_, dk_, dv_;
  std::vector<float> lse_;
};

struct Figures {
  std::vector<double> seconds, peer_seconds;
  double peak = 0;  // FLOP/s measured beside it
  int64_t workspace = 0;
  double error = 0;
};

double lowest(const std::vector<double>& samples) {
  return *std::min_element(samples.begin(), samples.end());
}

// The peak of the arithmetic that the kernel uses: pairs of bf16, where it multiplies them.
double peak_of(ThreadPool& pool, const AttentionProblem& problem, bool backward) {
  const std::string lines =
      attention::explain(problem, backward ? attention::Pass::backward : attention::Pass::forward);
  const size_t taken = lines.find("> ");
  const std::string kernel =
      taken == std::string::npos ? "" : lines.substr(taken, lines.find('\n', taken) - taken);
  const bool pairs =
      kernel.find("avx512bf16") != std::string::npos || kernel.find("_amx") != std::string::npos;
  return pairs ? bench::bf16_peak(pool) : bench::f32_peak(pool);
}

Result<Figures> measure(const Cell& cell, const AttentionOptions& options, PeerProcess* peer) {
  CpuOptions cpu;
  cpu.threads = cell.threads;
  TESSERA_ASSIGN_OR_RETURN(const CpuContext context, CpuContext::create(cpu));
  Context& inner = context;
  Work work(cell, options.schedule == "fa1" ? attention::Schedule::fa1 : attention::Schedule::fa2);
  Figures figures;
  figures.peak = peak_of(inner.pool, work.problem(), options.backward);
  TESSERA_RETURN_IF_ERROR(work.forward(context));
  figures.error = work.error();
  const auto run = [&] { return options.backward ? work.backward(context) : work.forward(context); };
  if (peer != nullptr) {
    const boost::json::object description = {
        {"batch", cell.batch},   {"heads", cell.heads},     {"kv_heads", cell.kv_heads},
        {"seqlen", cell.seqlen}, {"dim", cell.dim},         {"dtype", name(cell.dtype)},
        {"causal", cell.causal}, {"threads", cell.threads}, {"backward", options.backward}};
    TESSERA_RETURN_IF_ERROR(peer->ask({{"cell", description}}).status());
  }
  // Turns of a few milliseconds, so that short calls are timed several at a time; each turn begins with an
  // untimed call, and waits before it until the other side's threads sleep: the peer's are looked at, ours
  // spin for 50 us.
  const int calls =
      std::clamp(static_cast<int>(5e-3 * figures.peak / 2 / flops_of(cell, options.backward)), 1, 20);
  for (int round = 0; round < options.rounds; ++round) {
    if (peer != nullptr) TESSERA_RETURN_IF_ERROR(peer->wait_until_asleep());
    TESSERA_RETURN_IF_ERROR(run());
    const double start = bench::now(cell.threads);
    for (int call = 0; call < calls; ++call) TESSERA_RETURN_IF_ERROR(run());
    figures.seconds.push_back((bench::now(cell.threads) - start) / calls);
    if (peer == nullptr) continue;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    TESSERA_ASSIGN_OR_RETURN(const boost::json::object answer, peer->ask({{"run", calls + 1}}));
    double sum = 0;
    const boost::json::array& seconds = answer.at("seconds").as_array();
    for (size_t i = 1; i < seconds.size(); ++i) sum += seconds[i].to_number<double>();
    figures.peer_seconds.push_back(sum / calls);
  }
  if (peer != nullptr) TESSERA_RETURN_IF_ERROR(peer->wait_until_asleep());
  figures.peak = std::max(figures.peak, peak_of(inner.pool, work.problem(), options.backward));
  figures.workspace = context.workspace_bytes();
  return figures;
}

struct Mean {
  double product = 1;
  int count = 0;
  void add(double ratio) {
    product *= ratio;
    ++count;
  }
  double value() const { return std::pow(product, 1.0 / count); }
};

void print_head(bool peer) {
  std::printf("%-5s %-6s %4s %5s %4s %2s | %9s %9s %8s %6s %6s | %9s %10s %8s%s\n", "dtype", "mask", "kv",
              "S", "D", "T", "best ms", "median", "GFLOP/s", "peak", "median", "workspace", "N x N", "error",
              peer ? " |  peer ms    median   best  median" : "");
}

void print_row(const Cell& c, const Figures& f, double flops, bool peer) {
  const double best = lowest(f.seconds), middle = median(f.seconds);
  const double stored =
      4.0 * c.batch * c.heads * static_cast<double>(c.seqlen) * static_cast<double>(c.seqlen);
  std::printf("%-5s %-6s %d/%-2d %5lld %4d %2d | %9.3f %9.3f %8.1f %5.1f%% %5.1f%% | %6.1f MB %7.1f MB %8.1e",
              name(c.dtype), c.causal ? "causal" : "full", c.heads, c.kv_heads,
              static_cast<long long>(c.seqlen), c.dim, c.threads, best * 1e3, middle * 1e3,
              flops / best * 1e-9, 100 * flops / best / f.peak, 100 * flops / middle / f.peak,
              static_cast<double>(f.workspace) * 1e-6, stored * 1e-6, f.error);
  if (peer) {
    std::printf(" | %8.3f %9.3f %5.2fx %6.2fx", lowest(f.peer_seconds) * 1e3, median(f.peer_seconds) * 1e3,
                lowest(f.peer_seconds) / best, median(f.peer_seconds) / middle);
  }
  std::printf("\n");
  std::fflush(stdout);
}

Status bench_attention(const AttentionOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(JsonLines lines, JsonLines::open(options.json));
  std::optional<PeerProcess> peer;
  if (!options.peer.empty()) {
    TESSERA_ASSIGN_OR_RETURN(PeerProcess started, PeerProcess::start({options.python, options.peer_script}));
    peer.emplace(std::move(started));
    TESSERA_ASSIGN_OR_RETURN(const boost::json::object hello, peer->read());
    std::printf("peer: %s\n", boost::json::serialize(hello).c_str());
    lines.write({{"bench", "attention"}, {"part", "peer"}, {"peer", hello}});
  }
  print_head(peer.has_value());
  std::vector<bool> masks;
  if (options.causal != "yes") masks.push_back(false);
  if (options.causal != "no") masks.push_back(true);
  bool wrong = false;
  double worst_best = INFINITY, worst_median = INFINITY;
  for (const std::string& dtype : options.dtypes) {
    TESSERA_ASSIGN_OR_RETURN(const DType parsed, parse_dtype(dtype.c_str()));
    Mean best_ratio, median_ratio;
    for (const bool causal : masks) {
      for (const int kv_heads : options.kv_heads) {
        for (const int dim : options.dims) {
          for (const int64_t seqlen : options.seqlens) {
            for (const int threads : options.threads) {
              const Cell cell{seqlen, options.batch, options.heads, kv_heads, dim, parsed, causal, threads};
              TESSERA_ASSIGN_OR_RETURN(const Figures f, measure(cell, options, peer ? &*peer : nullptr));
              const double flops = flops_of(cell, options.backward);
              print_row(cell, f, flops, peer.has_value());
              wrong |= !(f.error <= (parsed == DType::f32 ? 1e-5 : 2e-2));
              boost::json::object line = {{"bench", "attention"},
                                          {"part", options.backward ? "backward" : "forward"},
                                          {"schedule", options.schedule},
                                          {"dtype", dtype},
                                          {"causal", causal},
                                          {"batch", options.batch},
                                          {"heads", options.heads},
                                          {"kv_heads", kv_heads},
                                          {"dim", dim},
                                          {"seqlen", seqlen},
                                          {"threads", threads},
                                          {"seconds", boost::json::value_from(f.seconds)},
                                          {"gflops_best", flops / lowest(f.seconds) * 1e-9},
                                          {"peak_gflops", f.peak * 1e-9},
                                          {"workspace_bytes", f.workspace},
                                          {"error", f.error}};
              if (peer) {
                const double best = lowest(f.peer_seconds) / lowest(f.seconds);
                const double middle = median(f.peer_seconds) / median(f.seconds);
                best_ratio.add(best);
                median_ratio.add(middle);
                worst_best = std::min(worst_best, best);
                worst_median = std::min(worst_median, middle);
                line["peer_seconds"] = boost::json::value_from(f.peer_seconds);
                line["ratio_best"] = best;
                line["ratio_median"] = middle;
              }
              lines.write(line);
            }
          }
        }
      }
    }
    if (peer && best_ratio.count > 0) {
      std::printf("%s: geometric mean of the ratios to the peer over %d cells: best %.2fx, median %.2fx\n",
                  dtype.c_str(), best_ratio.count, best_ratio.value(), median_ratio.value());
    }
  }
  if (peer) std::printf("lowest cell: best %.2fx, median %.2fx\n", worst_best, worst_median);
  if (wrong)
    return Status(StatusCode::internal, "a result is further from the reference than its dtype allows");
  return {};
}

// The options of the CPU's cells that were given, in the device's terms.
Status bench_on_cuda(const CLI::App& sub, const AttentionOptions& options) {
  for (const char* name : {"--threads", "--schedule", "--peer", "--python", "--peer-script"}) {
    if (sub.count(name) > 0) {
      return invalid_argument(format("{} is for --device cpu; bench/peers/torch_attention.py compares on a "
                                     "CUDA device",
                                     name),
                              name);
    }
  }
  DeviceAttentionOptions device;
  if (sub.count("--seqlen") > 0) device.seqlens = options.seqlens;
  if (sub.count("--batch") > 0) device.batch = options.batch;
  if (sub.count("--heads") > 0) device.heads = options.heads;
  if (sub.count("--kv-heads") > 0) device.kv_heads = options.kv_heads;
  if (sub.count("--dtype") > 0) device.dtypes = options.dtypes;
  device.dims = options.dims;
  device.causal = options.causal;
  device.backward = options.backward;
  device.rounds = options.rounds;
  device.json = options.json;
  return bench_attention_on_device(device);
}

}  // namespace

void add_bench_attention(CLI::App& bench, int* code) {
  auto options = std::make_shared<AttentionOptions>();
  options->peer_script = TESSERA_SOURCE_DIR "/bench/peers/torch_sdpa.py";
  CLI::App* sub =
      bench.add_subcommand("attention", "dense attention beside the machine's peak and beside PyTorch");
  sub->add_option("-S,--seqlen", options->seqlens, "tokens of q, k and v")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 24));
  sub->add_option("-D,--head-dim", options->dims, "head dims")->delimiter(',');
  sub->add_option("--batch", options->batch, "batches")->capture_default_str()->check(CLI::Range(1, 65536));
  sub->add_option("--heads", options->heads, "query heads")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  sub->add_option("--kv-heads", options->kv_heads, "kv heads")->delimiter(',');
  sub->add_option("--dtype", options->dtypes, "f32, f16 or bf16")
      ->delimiter(',')
      ->check(CLI::IsMember({"f32", "f16", "bf16"}));
  sub->add_option("--causal", options->causal, "yes, no or both")
      ->capture_default_str()
      ->check(CLI::IsMember({"yes", "no", "both"}));
  sub->add_option("-t,--threads", options->threads, "threads")->delimiter(',');
  sub->add_flag("--backward", options->backward, "time the gradients instead");
  sub->add_option("--schedule", options->schedule, "fa2, or fa1: FlashAttention-1's loop order, to compare")
      ->capture_default_str()
      ->check(CLI::IsMember({"fa1", "fa2"}));
  sub->add_option("-r,--rounds", options->rounds, "rounds of each cell")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  sub->add_option("--peer", options->peer,
                  "torch: alternate rounds with PyTorch's scaled_dot_product_attention")
      ->check(CLI::IsMember({"torch"}));
  sub->add_option("--python", options->python, "interpreter that has torch")->capture_default_str();
  sub->add_option("--peer-script", options->peer_script, "the peer's script")->capture_default_str();
  sub->add_option("--json", options->json, "file for one JSON object a line");
  sub->add_option("--device", options->device,
                  "cpu, or cuda: then -S to 16384, --batch and --heads that make 16,384 tokens of 2,048 "
                  "elements, and bf16, unless they are given")
      ->capture_default_str()
      ->check(CLI::IsMember({"cpu", "cuda"}));
  sub->callback([options, code, sub] {
    const Status status =
        options->device == "cuda" ? bench_on_cuda(*sub, *options) : bench_attention(*options);
    *code = status.ok() ? kExitOk : fail(status);
  });
}

}  // namespace tessera::cli
