// Forward attention on Hopper, kernels alone: TFLOP/s of each shape variant over the 36 cells of bf16, B * S
// = 16k, H * D = 2048, inside CUDA graphs, in turns. usage: prefill_bench [rounds] [filter]
// With the filter "groups": microseconds of few query rows over 4,096 keys (2,048 at D = 256), a group's
// heads in tiles of their own and packed, and which of them is taken.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "attention/cuda/sm90/prefill/launch.h"

namespace {

using tessera::attention::AttentionProblem;
using tessera::attention::ForwardTensors;
using tessera::attention::cuda::sm90::PrefillVariant;

void check(const tessera::Status& status) {
  if (status.ok()) return;
  std::printf("%s\n", status.message().c_str());
  std::exit(1);
}

// Normal numbers (Box-Muller over a hash), as attention's inputs are: zeros would lower the power and raise
// the clock.
__global__ void fill(__nv_bfloat16* x, int64_t count, uint32_t seed) {
  for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u + seed;
    h ^= h >> 16;
    h *= 0x85ebca6bu;
    h ^= h >> 13;
    h *= 0xc2b2ae35u;
    h ^= h >> 16;
    uint32_t g = h * 747796405u + 2891336453u;
    g ^= g >> 15;
    const float u = (static_cast<float>(h >> 8) + 1.0f) / 16777217.0f,
                v = static_cast<float>(g >> 8) / 16777216.0f;
    x[i] = __float2bfloat16(sqrtf(-2.0f * logf(u)) * cospif(2.0f * v));
  }
}

// Median milliseconds of one of `calls` calls in a graph.
float median_ms(tessera::cuda::Launch& launch, int rounds, int calls,
                const std::function<tessera::Status(int)>& run) {
  auto stream = static_cast<cudaStream_t>(launch.stream.handle());
  check(run(0));
  check(launch.stream.synchronize());
  auto graph = tessera::cuda::Graph::capture(launch.stream, [&]() -> tessera::Status {
    for (int i = 0; i < calls; ++i) TESSERA_RETURN_IF_ERROR(run(i));
    return {};
  });
  check(graph.status());
  std::vector<float> ms;
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  for (int round = 0; round < rounds + 2; ++round) {
    cudaEventRecord(begin, stream);
    check(graph->launch(launch.stream));
    cudaEventRecord(end, stream);
    if (cudaEventSynchronize(end) != cudaSuccess) {
      std::printf("%s\n", cudaGetErrorString(cudaGetLastError()));
      std::exit(1);
    }
    float elapsed = 0;
    cudaEventElapsedTime(&elapsed, begin, end);
    if (round >= 2) ms.push_back(elapsed / static_cast<float>(calls));
  }
  std::sort(ms.begin(), ms.end());
  return ms[ms.size() / 2];
}

void bench_groups(tessera::cuda::Launch& launch, int rounds, __nv_bfloat16* memory) {
  using tessera::attention::contiguous;
  using tessera::attention::cuda::sm90::GroupTiles;
  constexpr int64_t kMostQ = 192;
  std::printf("us apart, us packed, taken\n");
  for (const int d : {64, 128, 256}) {
    const int64_t seqlen_k = d == 256 ? 2048 : 4096;  // what fits
    for (const int group : {2, 4, 8}) {
      for (const int64_t batch : {2, 16}) {
        for (const int64_t s : {int64_t{1}, int64_t{17}, int64_t{33}, int64_t{64}, int64_t{130}, kMostQ}) {
          AttentionProblem p;
          p.batch = batch;
          p.seqlen_q = s;
          p.seqlen_k = seqlen_k;
          p.heads = 32;
          p.kv_heads = 32 / group;
          p.head_dim = p.v_head_dim = d;
          p.dtype = tessera::DType::bf16;
          p.scale = 1.0f / std::sqrt(static_cast<float>(d));
          p.mask.causal = true;
          const int64_t rows = batch * kMostQ * p.heads * d, keys = batch * seqlen_k * p.kv_heads * d;
          const ForwardTensors t{contiguous<const void*>(memory, s, p.heads, d),
                                 contiguous<const void*>(memory + 2 * rows, seqlen_k, p.kv_heads, d),
                                 contiguous<const void*>(memory + 2 * rows + keys, seqlen_k, p.kv_heads, d),
                                 contiguous<void*>(memory + rows, s, p.heads, d)};
          const auto time = [&](GroupTiles groups) {
            return 1e3f * median_ms(launch, rounds, 20, [&](int) {
                     return tessera::attention::cuda::sm90::prefill(launch, p, t, {}, {.groups = groups});
                   });
          };
          const float apart = time(GroupTiles::apart), packed = time(GroupTiles::packed);
          const bool packs = tessera::attention::cuda::sm90::prefill_packs(p, launch.device.multiprocessors);
          std::printf("D%d group %d batch %2d rows %3d: %8.1f %8.1f %s%s\n", d, group,
                      static_cast<int>(batch), static_cast<int>(s), apart, packed, packs ? "packed" : "apart",
                      packs == (packed < apart) ? "" : " (the slower)");
        }
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 7;
  const char* filter = argc > 2 ? argv[2] : "";
  tessera::Result<tessera::cuda::Launch> created = tessera::cuda::Launch::create(0);
  check(created.status());
  tessera::cuda::Launch& launch = *created;
  const int64_t elements = int64_t{16384} * 2048;
  constexpr int kSets = 3;
  __nv_bfloat16* memory = nullptr;
  float* lse = nullptr;
  cudaMalloc(&memory, elements * 4 * kSets * 2);
  cudaMalloc(&lse, int64_t{16384} * 32 * 4);
  fill<<<1024, 256>>>(memory, elements * 4 * kSets, 7);
  if (cudaDeviceSynchronize() != cudaSuccess) return 1;
  if (std::strcmp(filter, "groups") == 0) {
    bench_groups(launch, rounds, memory);
    return 0;
  }
  const PrefillVariant variants[] = {PrefillVariant::d64_four_by_64, PrefillVariant::d64_three_by_128,
                                     PrefillVariant::d128_two_by_128, PrefillVariant::d256_two_by_80,
                                     PrefillVariant::d256_two_by_64_registers};
  const char* names[] = {"4x64", "3x128", "2x128", "2x80", "2x64r"};
  const int dims[] = {64, 64, 128, 256, 256};
  for (const int d : {128, 64, 256}) {
    for (const bool causal : {false, true}) {
      for (size_t v = 0; v < std::size(variants); ++v) {
        if (dims[v] != d) continue;
        char label[64];
        std::snprintf(label, sizeof label, "D%d %s %s", d, causal ? "causal" : "full", names[v]);
        if (std::strstr(label, filter) == nullptr) continue;
        std::printf("%-20s", label);
        for (const int64_t s : {512, 1024, 2048, 4096, 8192, 16384}) {
          AttentionProblem p;
          p.batch = 16384 / s;
          p.seqlen_q = p.seqlen_k = s;
          p.heads = p.kv_heads = 2048 / d;
          p.head_dim = p.v_head_dim = d;
          p.dtype = tessera::DType::bf16;
          p.scale = 1.0f / std::sqrt(static_cast<float>(d));
          p.mask.causal = causal;
          const double flops =
              4.0 * static_cast<double>(p.batch) * p.heads * s * s * d * (causal ? 0.5 : 1.0);
          const int calls = std::max(3, static_cast<int>(10e-3 / (flops / 550e12)));
          const auto run = [&](int set) {
            using tessera::attention::contiguous;
            __nv_bfloat16* at = memory + elements * 4 * set;
            ForwardTensors t;
            t.q = contiguous<const void*>(at, s, p.heads, d);
            t.k = contiguous<const void*>(at + elements, s, p.heads, d);
            t.v = contiguous<const void*>(at + 2 * elements, s, p.heads, d);
            t.o = contiguous<void*>(at + 3 * elements, s, p.heads, d);
            t.lse = lse;
            return tessera::attention::cuda::sm90::prefill(launch, p, t, {}, {variants[v]});
          };
          const float ms = median_ms(launch, rounds, calls, [&](int i) { return run(i % kSets); });
          std::printf(" %6.1f", flops / (ms * 1e-3) / 1e12);
          std::fflush(stdout);
        }
        std::printf("\n");
      }
    }
  }
  return 0;
}
