// What the benchmarks on a CUDA device share: random tensors, ceilings measured beside the work, and samples
// that are CUDA graphs taken in turns. No CUDA header is needed to include this.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/cuda/device.h"
#include "tessera/dtype.h"
#include "tessera/status.h"

namespace tessera::bench {

// bf16 multiply-adds of one multiprocessor of compute capability 9.0 count 4,096 operations a clock; NVIDIA's
// dense figure (989 TFLOP/s for 132 of them) is at 1.83 GHz. 0: not known for this device.
double dense_peak(const cuda::DeviceProperties& device);

// `count` values of a standard normal distribution (Box-Muller over a hash of index and seed), f32, f16 or
// bf16.
Status fill_normal(void* data, int64_t count, DType dtype, uint32_t seed, const cuda::Stream& stream);

// Reads `bytes` (a multiple of 16,384) of device memory through the asynchronous copy engine of each
// multiprocessor, 192 KB in flight: the fastest reader that was found. sm_90 and later.
Status read_all(const void* data, int64_t bytes, const cuda::DeviceProperties& device,
                const cuda::Stream& stream);

// Products of 8192 x 8192 bf16 matrices of normal values by cuBLAS, which is looked for at run time.
class Matmul {
 public:
  // unavailable, with the reason, where there is no cuBLAS.
  static Result<Matmul> create(const cuda::Stream& stream);
  Matmul(Matmul&&) noexcept;
  ~Matmul();
  Status run() const;
  static constexpr double kFlops = 2.0 * 8192 * 8192 * 8192;

 private:
  struct Impl;
  explicit Matmul(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The SM clock by NVML, which is looked for at run time. 0 where it is not.
class SmClock {
 public:
  explicit SmClock(int device);
  int megahertz() const;

 private:
  void* device_ = nullptr;
  int (*read_)(void*, int, unsigned*) = nullptr;
};

// The NVIDIA driver's version ("580.159.03") by NVML; "" where it is not found.
std::string driver_version();

// A way of doing the work: enqueues call i on the stream.
struct Way {
  std::string name;
  std::function<Status(int i)> call;
};

struct WayTimes {
  std::string name;
  std::vector<double> seconds;  // of one call, by round
  std::vector<int> megahertz;   // during each round
};

struct TurnsOptions {
  int rounds = 11;
  double sample_seconds = 10e-3;  // least length of a sample
  int sets = 1;                   // call i works on set i % sets; a sample is a multiple of it
};

// Times the ways in turns, each sample one graph of calls; who begins changes every round. Every way has run
// before.
Result<std::vector<WayTimes>> take_turns(const std::vector<Way>& ways, const TurnsOptions& options,
                                         const cuda::Stream& stream, const SmClock& clock);

// Runs `work` for so many seconds, to bring the clocks to where they stay.
Status keep_busy(double seconds, const cuda::Stream& stream, const std::function<Status()>& work);

}  // namespace tessera::bench
