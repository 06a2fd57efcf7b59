// Backward beside the multiply-add ceiling: best and median of rounds, each case checked for finite gradients
// whose bits two runs share. Useful FLOPs: five products over the visible part of the matrix.
//
//   backward_bench [threads [rounds]]     the table; TESSERA_ISA forces the ISA
//   backward_bench --serve threads        one case a line from stdin, "dtype heads kv_heads head_dim seqlen
//                                         causal", answered by its seconds: for bench/peers/torch_backward.py
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "attention/backward_registry.h"
#include "bench/ceilings.h"
#include "core/context.h"
#include "tessera/attention.h"

namespace tessera::bench {
namespace {

using namespace attention;

// One case with its tensors, [batch 1][seqlen][heads][dim].
class Case {
 public:
  Case(Context& context, DType dtype, int heads, int kv_heads, int dim, int64_t seqlen, bool causal)
      : context_(context) {
    p_.dtype = dtype;
    p_.heads = heads;
    p_.kv_heads = kv_heads;
    p_.head_dim = p_.v_head_dim = dim;
    p_.seqlen_q = p_.seqlen_k = seqlen;
    p_.scale = 1.0f / std::sqrt(static_cast<float>(dim));
    p_.mask.causal = causal;
    const auto make = [&](std::vector<char>& memory, int count) {
      const size_t elements = static_cast<size_t>(seqlen * count * dim);
      memory.resize(elements * (dtype == DType::f32 ? 4 : 2));
      for (size_t i = 0; i < elements; ++i) {
        state_ = state_ * 1664525u + 1013904223u;
        const float x = static_cast<float>(state_ >> 8) * 0x1p-23f - 1.0f;
        if (dtype == DType::f32) {
          std::memcpy(memory.data() + 4 * i, &x, 4);
        } else {
          const uint16_t bits = f32_to_bf16(x);
          std::memcpy(memory.data() + 2 * i, &bits, 2);
        }
      }
    };
    for (std::vector<char>* t : {&q_, &o_, &dout_, &dq_}) make(*t, heads);
    for (std::vector<char>* t : {&k_, &v_, &dk_, &dv_}) make(*t, kv_heads);
    lse_.resize(static_cast<size_t>(heads * seqlen));
    const auto of = [&](auto* data, int count) { return contiguous(data, seqlen, count, dim); };
    const auto in = [&](std::vector<char>& t, int n) { return of(static_cast<const void*>(t.data()), n); };
    const auto out = [&](std::vector<char>& t, int n) { return of(static_cast<void*>(t.data()), n); };
    t_ = {in(q_, heads), in(k_, kv_heads), in(v_, kv_heads),   in(o_, heads),     in(dout_, heads),
          lse_.data(),   out(dq_, heads),  out(dk_, kv_heads), out(dv_, kv_heads)};
    ok(forward(context, p_, {t_.q, t_.k, t_.v, out(o_, heads), lse_.data()}));
  }
  void run() { ok(backward(context_, p_, t_)); }
  bool repeats() {
    run();
    const std::vector<char> q = dq_, k = dk_, v = dv_;
    run();
    return q == dq_ && k == dk_ && v == dv_;
  }
  double flops() const {
    const double pairs =
        static_cast<double>(p_.seqlen_q) *
        (p_.mask.causal ? 0.5 * static_cast<double>(p_.seqlen_k + 1) : static_cast<double>(p_.seqlen_k));
    return 10.0 * p_.heads * p_.head_dim * pairs;
  }

 private:
  static void ok(const Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "%s\n", status.message().c_str());
    std::exit(1);
  }
  Context& context_;
  AttentionProblem p_;
  BackwardTensors t_;
  uint32_t state_ = 1;
  std::vector<char> q_, k_, v_, o_, dout_, dq_, dk_, dv_;
  std::vector<float> lse_;
};

void table(Context& context, int threads, int rounds) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const int dim : {64, 128}) {
      for (const int64_t seqlen : {512, 1024, 2048, 4096}) {
        for (const int kv_heads : {4, 1}) {
          for (const bool causal : {false, true}) {
            Case c(context, dtype, 4, kv_heads, dim, seqlen, causal);
            const bool same = c.repeats();
            std::vector<double> seconds;
            double peak = f32_peak(context.pool);
            for (int round = 0; round < rounds; ++round) {
              const double start = now(threads);
              c.run();
              seconds.push_back(now(threads) - start);
            }
            peak = std::max(peak, f32_peak(context.pool));
            std::sort(seconds.begin(), seconds.end());
            const double best = seconds.front(), median = seconds[seconds.size() / 2];
            std::printf(
                "%s h4/kv%d/d%d S=%-5lld %s %8.3f ms best %8.3f median | %6.1f GFLOP/s = %5.1f %% of the f32 "
                "peak %.0f (median %5.1f %%); bits %s\n",
                name(dtype), kv_heads, dim, static_cast<long long>(seqlen), causal ? "causal" : "full  ",
                best * 1e3, median * 1e3, c.flops() / best * 1e-9, 100 * c.flops() / best / peak, peak * 1e-9,
                100 * c.flops() / median / peak, same ? "repeat" : "DIFFER");
            std::fflush(stdout);
            if (!same) std::exit(1);
          }
        }
      }
    }
  }
}

void serve(Context& context) {
  std::string last;
  std::unique_ptr<Case> made;
  char line[256];
  while (std::fgets(line, sizeof line, stdin) != nullptr) {
    if (last != line) {
      char dtype[16];
      int heads, kv_heads, dim, seqlen, causal;
      if (std::sscanf(line, "%15s %d %d %d %d %d", dtype, &heads, &kv_heads, &dim, &seqlen, &causal) != 6)
        std::exit(2);
      made = std::make_unique<Case>(context, parse_dtype(dtype).value(), heads, kv_heads, dim, seqlen,
                                    causal != 0);
      made->run();
      last = line;
    }
    // The wall's clock, as the peer is timed.
    const double start = now(2);
    made->run();
    std::printf("%.9f\n", now(2) - start);
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace tessera::bench

int main(int argc, char** argv) {
  using namespace tessera;
  const bool serves = argc > 1 && std::strcmp(argv[1], "--serve") == 0;
  const int threads = argc > 1 + serves ? std::atoi(argv[1 + serves]) : 1;
  ThreadPool pool({.threads = threads});
  Context context(pool);
  if (serves) {
    bench::serve(context);
  } else {
    bench::table(context, threads, argc > 2 ? std::atoi(argv[2]) : 7);
  }
  return 0;
}
