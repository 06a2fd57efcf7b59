#include "bench/ceilings.h"

#include <algorithm>
#include <atomic>
#include <ctime>

#include "bench/ceilings_kernels.h"
#include "core/buffer.h"
#include "simd/isa.h"

namespace tessera::bench {
namespace {

const CeilingKernels& kernels() {
  switch (simd::requested_isa().value()) {
    case simd::Isa::scalar:
      return kCeilings_scalar;
    case simd::Isa::avx2:
      return kCeilings_avx2;
    case simd::Isa::avx512:
      return kCeilings_avx512;
    case simd::Isa::avx512bf16:
      return kCeilings_avx512bf16;
    case simd::Isa::amx:
      return kCeilings_amx;
  }
  return kCeilings_scalar;
}

// Best of fifteen: a ceiling is what the machine can do, not what the neighbours leave.
double rate(ThreadPool& pool, double units, auto&& work) {
  double best = 0;
  for (int repeat = 0; repeat < 15; ++repeat) {
    const double start = now(pool.size());
    pool.run(work);
    best = std::max(best, units * pool.size() / (now(pool.size()) - start));
  }
  return best;
}

std::atomic<float> sink;

}  // namespace

double now(int threads) {
  timespec time{};
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double f32_peak(ThreadPool& pool) {
  constexpr int64_t kTurns = 1 << 20;
  return rate(pool, kernels().flops_per_turn * kTurns, [](int) { sink = kernels().f32_turns(kTurns); });
}

double bf16_peak(ThreadPool& pool) {
  if (kernels().bf16_turns == nullptr) return 0;
  // As much work at every level, whose turns differ by a factor of 85.
  const double flops = kernels().bf16_flops_per_turn;
  const int64_t turns = static_cast<int64_t>(8e8 / flops);
  return rate(pool, flops * static_cast<double>(turns), [=](int) { sink = kernels().bf16_turns(turns); });
}

double int8_peak(ThreadPool& pool) {
  constexpr int64_t kTurns = 1 << 19;
  return rate(pool, kernels().int8_ops_per_turn * kTurns, [](int) { sink = kernels().int8_turns(kTurns); });
}

ReadProbe::ReadProbe(ThreadPool& pool) : pool_(pool) {
  constexpr size_t kBytes = size_t{256} << 20;
  memory_ = Buffer::create(kBytes, "read probe").value();
  std::fill_n(memory_.as<float>(), kBytes / sizeof(float), 1.0f);
  part_ = kBytes / sizeof(float) / static_cast<size_t>(pool.size());
}

void ReadProbe::run() {
  pool_.run([&](int worker) {
    sink = kernels().read(memory_.as<float>() + part_ * static_cast<size_t>(worker), part_);
  });
}

double ReadProbe::bytes() const {
  return static_cast<double>(part_ * sizeof(float)) * pool_.size();
}

double read_rate(ThreadPool& pool) {
  ReadProbe probe(pool);
  double best = 0;
  for (int repeat = 0; repeat < 15; ++repeat) {
    const double start = now(pool.size());
    probe.run();
    best = std::max(best, probe.bytes() / (now(pool.size()) - start));
  }
  return best;
}

}  // namespace tessera::bench
