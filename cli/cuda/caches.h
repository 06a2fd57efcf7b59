// Caches of the benchmarks in a device's memory: pages of normal numbers, block tables, one query a sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "bench/cuda/device_bench.h"
#include "tessera/paged.h"

namespace tessera::cli {

struct CacheShape {
  int heads = 0, kv_heads = 0, dim = 0;
  int64_t slots = 0;  // of a block
  int64_t blocks = 0;
  bool paged = true;  // false: sequence b's keys are block b
  DType dtype = DType::bf16;
  std::vector<int64_t> lengths;              // keys of each sequence
  std::vector<std::vector<int32_t>> tables;  // blocks of each sequence
  int64_t batch() const { return static_cast<int64_t>(lengths.size()); }
  int64_t elements() const { return blocks * slots * kv_heads * dim; }  // of K, and of V
};

class DeviceCaches {
 public:
  static Result<DeviceCaches> create(const CacheShape& shape, uint32_t seed, const cuda::Stream& stream);
  attention::AttentionProblem problem() const;
  attention::CacheView view() const;
  attention::CacheTensors tensors() const;
  // The largest error of o in two heads of the first and the last sequence, as a part of the largest value
  // there.
  Result<double> error(const cuda::Stream& stream) const;
  double bytes() const { return 4.0 * static_cast<double>(shape_.elements()); }  // of K and V

 private:
  Status error_of(int64_t sequence, const cuda::Stream& stream, double* worst, double* largest) const;
  explicit DeviceCaches(const CacheShape& shape) : shape_(shape) {}
  CacheShape shape_;
  cuda::DeviceBuffer q_, k_, v_, o_, table_, lengths_;
};

// Reads as many bytes as a step must by one launch of the fastest reader, other memory from call to call: the
// ceiling of a step of that size, whose launch and first bytes count for it too.
class DeviceReader {
 public:
  // Of `bytes` rounded up to whole pieces of the reader.
  static Result<DeviceReader> create(double bytes, const cuda::Stream& stream);
  Status read(int i, const cuda::DeviceProperties& device, const cuda::Stream& stream) const;
  double bytes() const { return static_cast<double>(each_); }

 private:
  int64_t each_ = 0;
  int places_ = 1;
  cuda::DeviceBuffer memory_;
};

}  // namespace tessera::cli
