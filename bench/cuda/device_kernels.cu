// Kernels of the benchmarks: normal numbers, and reading memory as fast as it goes.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "attention/cuda/common/ptx.cuh"
#include "bench/cuda/device_bench.h"

namespace tessera::bench {
namespace {

template <typename T>
__device__ T narrowed(float value) {
  if constexpr (sizeof(T) == 4) {
    return value;
  } else {
    return static_cast<T>(value);
  }
}

template <typename T>
__global__ void normal_numbers(T* to, int64_t count, uint32_t seed) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u ^ static_cast<uint32_t>(i >> 32) ^ seed * 0x9e3779b9u;
    x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
    const float radius = (static_cast<float>(x >> 16) + 1.0f) * (1.0f / 65537.0f);
    const float angle = static_cast<float>(x & 0xffffu) * (6.2831853f / 65536.0f);
    to[i] = narrowed<T>(sqrtf(-2.0f * __logf(radius)) * __cosf(angle));
  }
}

template <typename T>
void launch_normal(void* data, int64_t count, uint32_t seed, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(std::min<int64_t>((count + 255) / 256, 4096));
  normal_numbers<T><<<blocks, 256, 0, stream>>>(static_cast<T*>(data), count, seed);
}

constexpr int kChunk = 16384, kRing = 12;

// One thread keeps kRing copies into shared memory under way; nobody looks at what arrives.
__global__ void read_chunks(const char* data, int64_t chunks) {
#if __CUDA_ARCH__ >= 900
  using namespace attention::cuda;
  extern __shared__ __align__(128) unsigned char ring[];
  __shared__ uint64_t full[kRing];
  if (threadIdx.x != 0 || blockIdx.x >= chunks) return;
  for (int slot = 0; slot < kRing; ++slot) mbarrier_init(shared_address(&full[slot]), 1);
  fence_barrier_init();
  const uint64_t policy = policy_evict_first();
  const int64_t mine = (chunks - blockIdx.x + gridDim.x - 1) / gridDim.x;
  for (int64_t i = 0; i < mine + kRing; ++i) {
    const uint32_t barrier = shared_address(&full[i % kRing]);
    if (i >= kRing && i - kRing < mine) mbarrier_wait(barrier, static_cast<uint32_t>(i / kRing - 1 & 1));
    if (i >= mine) continue;
    mbarrier_arrive_expect(barrier, kChunk);
    bulk_load(shared_address(ring + i % kRing * kChunk), data + (blockIdx.x + i * gridDim.x) * kChunk, kChunk,
              barrier, policy);
  }
#endif
}

}  // namespace

Status fill_normal(void* data, int64_t count, DType dtype, uint32_t seed, const cuda::Stream& stream) {
  if (count == 0) return {};
  const auto raw = static_cast<cudaStream_t>(stream.handle());
  if (dtype == DType::f32) {
    launch_normal<float>(data, count, seed, raw);
  } else if (dtype == DType::f16) {
    launch_normal<__half>(data, count, seed, raw);
  } else {
    launch_normal<__nv_bfloat16>(data, count, seed, raw);
  }
  return cuda::launched("normal_numbers", std::to_string(count) + " elements");
}

Status read_all(const void* data, int64_t bytes, const cuda::DeviceProperties& device,
                const cuda::Stream& stream) {
  if (device.major < 9) return unsupported("read_all needs compute capability 9.0", "device");
  constexpr int kShared = kRing * kChunk;
  TESSERA_RETURN_IF_ERROR(
      cuda::to_status(cudaFuncSetAttribute(read_chunks, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
                      "shared memory"));
  read_chunks<<<static_cast<unsigned>(device.multiprocessors), 32, kShared,
                static_cast<cudaStream_t>(stream.handle())>>>(static_cast<const char*>(data), bytes / kChunk);
  return cuda::launched("read_chunks", std::to_string(bytes) + " bytes");
}

}  // namespace tessera::bench
