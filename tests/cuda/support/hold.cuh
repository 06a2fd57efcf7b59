// A kernel that holds multiprocessors until the host lets it go.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace tessera::attention::cuda_test {

// `running` and `let_go` are the host's memory.
inline __global__ void hold_kernel(volatile int* running, volatile int* let_go) {
  if (threadIdx.x != 0) return;
  atomicAdd_system(const_cast<int*>(running), 1);
  while (*let_go == 0) __nanosleep(1000);
}

class Hold {
 public:
  // Of so many multiprocessors, all of their shared memory.
  explicit Hold(int blocks) : blocks_(blocks) {
    cudaHostAlloc(reinterpret_cast<void**>(&flags_), 2 * sizeof(int), cudaHostAllocMapped);
    flags_[0] = flags_[1] = 0;
    cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
  }
  Hold(const Hold&) = delete;
  Hold& operator=(const Hold&) = delete;
  ~Hold() {
    let_go();
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
    cudaFreeHost(flags_);
  }
  // Returns when all are held.
  void begin() {
    constexpr int kBytes = 227 * 1024;
    cudaFuncSetAttribute(hold_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    hold_kernel<<<static_cast<unsigned>(blocks_), 32, kBytes, stream_>>>(flags_, flags_ + 1);
    const auto start = std::chrono::steady_clock::now();
    while (*const_cast<volatile int*>(flags_) < blocks_ &&
           std::chrono::steady_clock::now() - start < std::chrono::seconds(5)) {
    }
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    EXPECT_EQ(flags_[0], blocks_);
  }
  void end_in(std::chrono::milliseconds time) {
    std::this_thread::sleep_for(time);
    let_go();
  }

 private:
  void let_go() { *const_cast<volatile int*>(flags_ + 1) = 1; }
  int blocks_;
  int* flags_ = nullptr;  // running, let_go
  cudaStream_t stream_ = nullptr;
};

}  // namespace tessera::attention::cuda_test
