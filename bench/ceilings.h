// What this machine can do at most, measured now: shares of a ceiling are comparable between runs, seconds
// are not.
#pragma once

#include "core/buffer.h"
#include "core/thread_pool.h"

namespace tessera::bench {

// Multiply-adds on registers alone, in FLOP/s over all workers of the pool: f32 with the best ISA allowed,
// and pairs of bf16 (0 where the machine has no dot product of them).
double f32_peak(ThreadPool& pool);
double bf16_peak(ThreadPool& pool);
// The same for multiply-adds of unsigned by signed bytes, summed in 32 bits: vpdpbusd, or what AVX2 has in
// its place.
double int8_peak(ThreadPool& pool);
// Bytes/s read from memory that no cache holds, over all workers.
double read_rate(ThreadPool& pool);
// The same read, to be timed in turns with what it is compared with.
class ReadProbe {
 public:
  explicit ReadProbe(ThreadPool& pool);
  // Reads bytes() once.
  void run();
  double bytes() const;

 private:
  ThreadPool& pool_;
  Buffer memory_;
  size_t part_;  // floats of a worker
};

// Seconds: the calling thread's own CPU clock for one thread, the wall's for several.
double now(int threads);

}  // namespace tessera::bench
