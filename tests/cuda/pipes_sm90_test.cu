// Rings and waves of barriers under random delays: whatever the order in which producer and consumers come,
// every consumer reads the bytes of its round and no others. The sums of what was read are exact.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "attention/cuda/common/pipe.cuh"
#include "attention/cuda/common/ptx.cuh"
#include "attention/cuda/sm90/decode/entry.cuh"
#include "tests/cuda/support/device_array.h"

namespace tessera::attention::cuda {
namespace {

using cuda_test::DeviceArray;

__host__ __device__ inline uint32_t mixed(uint32_t x) {
  x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
  return x;
}
// Up to 2 us, one time in four; who is late differs from round to round.
__device__ inline void random_delay(uint32_t seed, uint32_t who, uint32_t round) {
  const uint32_t x = mixed(seed ^ mixed(who * 0x9e3779b9u + round));
  if ((x & 3) == 0) __nanosleep((x >> 8) & 2047);
}

constexpr int kBlockWords = 512;  // of a stage
constexpr int kBlocks = 61;       // distinct contents, prime to every number of stages

uint32_t word_of(int block, int i) {
  return mixed(static_cast<uint32_t>(block * kBlockWords + i) ^ 0xabcdefu);
}
std::vector<uint32_t> contents() {
  std::vector<uint32_t> words(static_cast<size_t>(kBlocks) * kBlockWords);
  for (int i = 0; i < kBlocks * kBlockWords; ++i)
    words[static_cast<size_t>(i)] = word_of(i / kBlockWords, i % kBlockWords);
  return words;
}
// sum_of() on the host.
uint64_t block_sum(int block, int words) {
  uint64_t sum = 0;
  for (int i = 0; i < words; ++i) sum += uint64_t{word_of(block, i)} * static_cast<uint64_t>(i + 1);
  return sum;
}
std::vector<uint64_t> block_sums() {
  std::vector<uint64_t> sums;
  for (int block = 0; block < kBlocks; ++block) sums.push_back(block_sum(block, kBlockWords));
  return sums;
}
// What a warp makes of the first `words` words of a stage: the order of rounds counts.
__host__ __device__ inline uint64_t folded(uint64_t sum, uint64_t of_round) {
  return sum * 0x9e3779b97f4a7c15u + of_round;
}
__device__ inline uint64_t sum_of(uint32_t stage, int words, int lane) {
  uint64_t sum = 0;
  for (int i = lane; i < words; i += 32) {
    uint32_t word;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(stage + 4 * i) : "memory");
    sum += uint64_t{word} * static_cast<uint64_t>(i + 1);
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  return sum;
}

struct RingRun {
  const uint32_t* source;
  uint64_t* sums;  // [consumer warps]
  int rounds, last_words;
  uint32_t seed;
};

// As in prefill: a producer thread and warps that each let go of a stage; kCopies: TMA brings the bytes, else
// the producer warp stores them (as tile numbers are).
template <int kStages, int kConsumers, bool kCopies>
__global__ void __launch_bounds__(32 * (kConsumers + 1), 1) ring_kernel(RingRun run) {
  __shared__ __align__(128) uint32_t stage[kStages][kBlockWords];
  __shared__ __align__(16) uint64_t barriers[2 * kStages];
  const Ring ring{shared_address(barriers)};
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    ring.init(kStages, 1, kConsumers);
    fence_barrier_init();
  }
  __syncthreads();
  RingPosition<kStages> at;
  if (warp == kConsumers) {
    if (kCopies && lane != 0) return;
    for (int round = 0; round < run.rounds; ++round) {
      const int words = round == run.rounds - 1 ? run.last_words : kBlockWords;
      const uint32_t* from = run.source + round % kBlocks * kBlockWords;
      ring.acquire(at.stage, at.phase);
      random_delay(run.seed, kConsumers, static_cast<uint32_t>(round));
      if constexpr (kCopies) {
        ring.expect(at.stage, 4 * words);
        bulk_load(shared_address(stage[at.stage]), from, 4 * words, ring.full(at.stage),
                  policy_evict_first());
      } else {
        for (int i = lane; i < words; i += 32) stage[at.stage][i] = from[i];
        __syncwarp();
        if (lane == 0) mbarrier_arrive(ring.full(at.stage));
      }
      at.next();
    }
    return;
  }
  uint64_t sum = 0;
  for (int round = 0; round < run.rounds; ++round) {
    const int words = round == run.rounds - 1 ? run.last_words : kBlockWords;
    random_delay(run.seed, static_cast<uint32_t>(warp), static_cast<uint32_t>(round));
    ring.wait(at.stage, at.phase);
    // Every seventh round is skipped by one warp: it waits and lets go, as warpgroups do whose rows see none.
    const bool skipped = round % 7 == warp % 7;
    if (!skipped) sum = folded(sum, sum_of(shared_address(stage[at.stage]), words, lane));
    __syncwarp();
    if (lane == 0) ring.release(at.stage);
    at.next();
  }
  if (lane == 0) run.sums[warp] = sum;
}

template <int kStages, int kConsumers, bool kCopies>
void check_ring(int rounds, int last_words, uint32_t seed) {
  const std::string name = std::to_string(kStages) + " stages, " + std::to_string(kConsumers) +
                           " consumers, " + std::to_string(rounds) + " rounds, the last of " +
                           std::to_string(last_words) + " words, " + (kCopies ? "copies" : "stores") +
                           ", seed " + std::to_string(seed);
  const DeviceArray<uint32_t> source(contents());
  const DeviceArray<uint64_t> sums(static_cast<size_t>(kConsumers));
  ring_kernel<kStages, kConsumers, kCopies>
      <<<1, 32 * (kConsumers + 1)>>>({source.data(), sums.data(), rounds, last_words, seed});
  if (!cuda_test::ran("ring", name)) return;
  const std::vector<uint64_t> whole = block_sums();
  const uint64_t last = block_sum((rounds - 1) % kBlocks, last_words);
  std::vector<uint64_t> want;
  for (int warp = 0; warp < kConsumers; ++warp) {
    uint64_t sum = 0;
    for (int round = 0; round < rounds; ++round) {
      if (round % 7 == warp % 7) continue;
      sum = folded(sum, round == rounds - 1 ? last : whole[static_cast<size_t>(round % kBlocks)]);
    }
    want.push_back(sum);
  }
  cuda_test::expect_equal(name + ", sums of warps", sums.read(), want, 1);
}

class PipeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto device = tessera::cuda::device_properties(0);
    ASSERT_TRUE(device.ok());
    if (device->sm() != 90) GTEST_SKIP() << "transaction barriers are sm_90's";
  }
};

TEST_F(PipeTest, RingOfCopies) {
  // Rounds a multiple of the stages or not; the last round whole or partial; fewer rounds than stages.
  for (const int rounds : {1, 3, 4000, 4001}) {
    for (const int last : {kBlockWords, 4, 300}) {
      check_ring<1, 8, true>(rounds, last, 11);
      check_ring<2, 8, true>(rounds, last, 12);
      check_ring<3, 12, true>(rounds, last, 13);
      check_ring<4, 16, true>(rounds, last, 14);
      if (HasFailure()) return;
    }
  }
}
TEST_F(PipeTest, RingOfStores) {
  for (const int rounds : {1, 4000, 4001}) {
    for (const int last : {kBlockWords, 1}) {
      check_ring<2, 9, false>(rounds, last, 21);
      check_ring<3, 17, false>(rounds, last, 22);
      if (HasFailure()) return;
    }
  }
}

// ---- Waves, as decode has them ----------------------------------------------------------------------------
//
// A wave is up to 8 >> mode units of up to 4 tiles; unit u is read by the 2^mode warps w with w >> mode == u.
// Tiles arrive at barriers of their place in the wave, stages are free when eight arrivals have been made,
// and the barriers of places that a wave does not use are completed by the producer.

using sm90::mbarrier_arrive_many;

constexpr int kWarps = 8, kSlots = 3, kPlaces = 32, kWaveStages = 5, kMostTiles = 4;

struct WavePlan {
  int units, mode;
  int tiles[kWarps];
};
__host__ __device__ inline WavePlan plan_of(uint32_t seed, int wave, int waves) {
  WavePlan plan{};
  if (wave == waves) return plan;  // no more
  const uint32_t x = mixed(seed + 0x51ed27u * static_cast<uint32_t>(wave));
  plan.mode = static_cast<int>(x % 4);
  const int most = kWarps >> plan.mode;
  plan.units = 1 + static_cast<int>((x >> 8) % static_cast<uint32_t>(most));
  for (int u = 0; u < plan.units; ++u) plan.tiles[u] = static_cast<int>(mixed(x + u + 1u) % (kMostTiles + 1));
  return plan;
}

struct WaveRun {
  const uint32_t* source;
  uint64_t* sums;
  int waves;
  uint32_t seed;
};

__global__ void __launch_bounds__(32 * (kWarps + 1), 1) wave_kernel(WaveRun run) {
  __shared__ __align__(128) uint32_t stage[kWaveStages][2][kBlockWords];
  __shared__ WavePlan wave_plan[kSlots];
  __shared__ uint64_t k_full[kSlots][kPlaces], v_full[kSlots][kPlaces], empty[kWaveStages];
  __shared__ uint64_t wave_full[kSlots], wave_empty[kSlots];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kSlots; ++s) {
      for (int place = 0; place < kPlaces; ++place) {
        mbarrier_init(shared_address(&k_full[s][place]), 1);
        mbarrier_init(shared_address(&v_full[s][place]), 1);
      }
      mbarrier_init(shared_address(&wave_full[s]), 1);
      mbarrier_init(shared_address(&wave_empty[s]), kWarps);
    }
    for (int s = 0; s < kWaveStages; ++s) mbarrier_init(shared_address(&empty[s]), kWarps);
    fence_barrier_init();
  }
  __syncthreads();
  if (warp == kWarps) {
    uint32_t tile = 0;
    for (int wave = 0;; ++wave) {
      const uint32_t slot = static_cast<uint32_t>(wave) % kSlots;
      const WavePlan plan = plan_of(run.seed, wave, run.waves);
      mbarrier_wait(shared_address(&wave_empty[slot]), ((static_cast<uint32_t>(wave) / kSlots) & 1) ^ 1);
      random_delay(run.seed, 100, static_cast<uint32_t>(wave));
      if (lane == 0) wave_plan[slot] = plan;
      __syncwarp();
      if (lane == 0) mbarrier_arrive(shared_address(&wave_full[slot]));
      if (plan.units == 0) return;
      int total = 0;
      for (int u = 0; u < plan.units; ++u) total += plan.tiles[u];
      if (lane >= total) {
        mbarrier_arrive(shared_address(&k_full[slot][lane]));
        mbarrier_arrive(shared_address(&v_full[slot][lane]));
      }
      int place = 0;
      for (int t = 0; t < kMostTiles; ++t) {
        for (int u = 0; u < plan.units; ++u) {
          if (plan.tiles[u] <= t) continue;
          const uint32_t at = tile % kWaveStages;
          mbarrier_wait(shared_address(&empty[at]), ((tile / kWaveStages) & 1) ^ 1);
          random_delay(run.seed, 101, tile);
          if (lane < 2) {
            const uint32_t full = shared_address(lane == 0 ? &k_full[slot][place] : &v_full[slot][place]);
            mbarrier_arrive_expect(full, 4 * kBlockWords);
            bulk_load(shared_address(stage[at][lane]),
                      run.source + (2 * tile + static_cast<uint32_t>(lane)) % kBlocks * kBlockWords,
                      4 * kBlockWords, full, policy_evict_first());
          }
          __syncwarp();
          ++tile;
          ++place;
        }
      }
    }
  }
  uint64_t sum = 0;
  uint32_t tiles_before = 0;
  for (int wave = 0;; ++wave) {
    const uint32_t slot = static_cast<uint32_t>(wave) % kSlots,
                   phase = (static_cast<uint32_t>(wave) / kSlots) & 1;
    random_delay(run.seed, static_cast<uint32_t>(warp), static_cast<uint32_t>(wave));
    mbarrier_wait(shared_address(&wave_full[slot]), phase);
    const WavePlan& plan = wave_plan[slot];
    const int units = plan.units, mode = plan.mode;
    if (units == 0) break;
    const int mine = warp >> mode;
    uint32_t place = 0;
    for (int t = 0; t < kMostTiles; ++t) {
      for (int u = 0; u < units; ++u) {
        if (plan.tiles[u] <= t) continue;
        if (u == mine) {
          const uint32_t at = (tiles_before + place) % kWaveStages;
          mbarrier_wait(shared_address(&k_full[slot][place]), phase);
          sum = folded(sum, sum_of(shared_address(stage[at][0]), kBlockWords, lane));
          random_delay(run.seed, static_cast<uint32_t>(warp) + 10, tiles_before + place);
          mbarrier_wait(shared_address(&v_full[slot][place]), phase);
          sum = folded(sum, sum_of(shared_address(stage[at][1]), kBlockWords, lane));
          __syncwarp();
          if (lane == 0) mbarrier_arrive_many(shared_address(&empty[at]), kWarps >> mode);
        }
        ++place;
      }
    }
    tiles_before += place;
    __syncwarp();
    if (lane == 0) mbarrier_arrive(shared_address(&wave_empty[slot]));
  }
  if (lane == 0) run.sums[warp] = sum;
}

TEST_F(PipeTest, WavesOfUnits) {
  const std::vector<uint64_t> whole = block_sums();
  const DeviceArray<uint32_t> source(contents());
  for (const int waves : {0, 1, 2, 3, 2000, 2001}) {
    for (const uint32_t seed : {31u, 32u, 33u}) {
      const std::string name = std::to_string(waves) + " waves, seed " + std::to_string(seed);
      std::vector<uint64_t> want(kWarps, 0);
      uint32_t tile = 0;
      for (int wave = 0; wave < waves; ++wave) {
        const WavePlan plan = plan_of(seed, wave, waves);
        for (int t = 0; t < kMostTiles; ++t) {
          for (int u = 0; u < plan.units; ++u) {
            if (plan.tiles[u] <= t) continue;
            for (size_t warp = 0; warp < kWarps; ++warp) {
              if (static_cast<int>(warp) >> plan.mode != u) continue;
              want[warp] = folded(want[warp], whole[2 * tile % kBlocks]);
              want[warp] = folded(want[warp], whole[(2 * tile + 1) % kBlocks]);
            }
            ++tile;
          }
        }
      }
      const DeviceArray<uint64_t> sums(kWarps);
      wave_kernel<<<1, 32 * (kWarps + 1)>>>({source.data(), sums.data(), waves, seed});
      if (!cuda_test::ran("wave", name)) return;
      if (!cuda_test::expect_equal(name + ", sums of warps", sums.read(), want, 1)) return;
    }
  }
}

}  // namespace
}  // namespace tessera::attention::cuda
