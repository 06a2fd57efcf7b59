// A kernel ahead of a step that lets it start at once, and writes its lengths and blocks only when whoever
// looks early has looked.
#pragma once

#include "attention/cuda/common/ptx.cuh"
#include "tests/cuda/support/paged_case.cuh"

namespace tessera::attention::cuda_test {

__global__ void write_late(int32_t* lengths, const int32_t* new_lengths, int count, int32_t* table,
                           const int32_t* new_table, int entries) {
#if __CUDA_ARCH__ >= 900
  cuda::dependency_launch();
#endif
  const long long start = clock64();
  while (clock64() - start < 200000) {
  }
  for (int i = threadIdx.x; i < count; i += blockDim.x) lengths[i] = new_lengths[i];
  for (int i = threadIdx.x; i < entries; i += blockDim.x) table[i] = new_table[i];
}

// Puts `lengths` and blocks that are nowhere in place of the case's own, and a kernel on the stream that
// brings those back.
class LateWriter {
 public:
  LateWriter(PagedCase& c, std::vector<int32_t> lengths) : case_(c), old_lengths_(std::move(lengths)) {
    old_table_ = c.table;
    for (size_t i = 0; i < old_table_.size(); ++i) {
      if (i % 3 == 0) old_table_[i] = i % 2 == 0 ? 1 << 30 : -1;
    }
  }
  // What is stale: lengths, blocks, or both.
  void launch(cudaStream_t stream, bool of_lengths, bool of_blocks) {
    if (of_lengths) put(case_.lengths_on_device, old_lengths_);
    if (of_blocks) put(case_.table_on_device, old_table_);
    cudaDeviceSynchronize();
    write_late<<<1, 128, 0, stream>>>(case_.lengths_on_device.as<int32_t>(), lengths_.as<int32_t>(),
                                      int(case_.shape.lengths.size()), case_.table_on_device.as<int32_t>(),
                                      table_.as<int32_t>(), int(case_.table.size()));
  }

 private:
  static void put(GuardedBuffer& to, const std::vector<int32_t>& from) {
    cudaMemcpy(to.data(), from.data(), from.size() * 4, cudaMemcpyHostToDevice);
  }
  PagedCase& case_;
  std::vector<int32_t> old_lengths_, old_table_;
  GuardedBuffer lengths_ = PagedCase::upload(case_.shape.lengths), table_ = PagedCase::upload(case_.table);
};

}  // namespace tessera::attention::cuda_test
