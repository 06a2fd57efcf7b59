// Times decode over paged caches, and attention over prefix trees, in CUDA graphs, beside a kernel that only
// loads the same blocks.
//
// Every graph is a run of back-to-back calls over shuffled block tables, of which enough are rotated that no
// call finds its blocks in L2 (at least 400 MB a rotation). Samples of all variants of a shape are
// interleaved; the median is printed, with bytes of K and V, q and o over that time, and the ratio to the
// loads.
//   decode_bench decode|tree|small
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "attention/cuda/common/ptx.cuh"
#include "attention/cuda/sm80/decode/decode.h"
#include "attention/cuda/sm90/decode/decode.h"
#include "attention/cuda/tree/tree.h"
#include "core/cuda/device.h"

namespace tessera::attention::cuda {
namespace {

using tessera::cuda::DeviceBuffer;
using tessera::cuda::Graph;
using tessera::cuda::Launch;

[[noreturn]] void fail(const std::string& what) {
  std::printf("error: %s\n", what.c_str());
  std::exit(1);
}
void need(const Status& status) {
  if (!status.ok()) fail(status.message());
}
template <typename T>
T need(Result<T> result) {
  if (!result.ok()) fail(result.status().message());
  return std::move(result).value();
}

__global__ void fill(__nv_bfloat16* to, int64_t count, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u ^ static_cast<uint32_t>(i >> 32) ^ seed;
    x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
    const float u = (static_cast<float>(x >> 16) + 1.0f) * (1.0f / 65537.0f);
    to[i] = __float2bfloat16(sqrtf(-2.0f * __logf(u)) *
                             __cosf(6.2831853f * static_cast<float>(x & 0xffff) / 65536.0f));
  }
}

// Loads only: chunk c is head c % heads of K (even) or V (odd) of entry c / heads / 2 of the table.
constexpr int kChunkBytes = 16384, kRing = 12;
__global__ void loads_only(const char* k, const char* v, const int32_t* table, int chunks, int heads,
                           int parts, int block_bytes) {
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ uint64_t full[kRing];
  if (threadIdx.x != 0) return;
  for (int s = 0; s < kRing; ++s) mbarrier_init(shared_address(&full[s]), 1);
  fence_barrier_init();
  const uint64_t policy = policy_evict_first();
  const int first = static_cast<int>(int64_t{chunks} * blockIdx.x / gridDim.x);
  const int end = static_cast<int>(int64_t{chunks} * (blockIdx.x + 1) / gridDim.x);
  const auto issue = [&](int c) {
    const int s = (c - first) % kRing;
    const char* base = c & 1 ? v : k;
    const int at = c >> 1;
    // `parts` table entries make a chunk.
    mbarrier_arrive_expect(shared_address(&full[s]), kChunkBytes);
    const int head = at % heads, group = at / heads;
    for (int i = 0; i < parts; ++i) {
      bulk_load(shared_address(memory + s * kChunkBytes + i * (kChunkBytes / parts)),
                base + int64_t{table[group * parts + i]} * block_bytes + head * (kChunkBytes / parts),
                static_cast<uint32_t>(kChunkBytes / parts), shared_address(&full[s]), policy);
    }
  };
  for (int c = first; c < end && c < first + kRing; ++c) issue(c);
  for (int c = first; c < end; ++c) {
    mbarrier_wait(shared_address(&full[(c - first) % kRing]), static_cast<uint32_t>((c - first) / kRing) & 1);
    if (c + kRing < end) issue(c + kRing);
  }
}

struct Shape {
  int batch, heads, kv_heads, n, page;
};

// Levels of a prefix tree: level i has `nodes` nodes of `tokens`; the last one a node for each sequence.
struct Level {
  int nodes, tokens;
};
struct TreeShape {
  std::string name;
  int batch, heads, kv_heads;
  std::vector<Level> levels;
};

constexpr int kDim = 128;

struct Variant {
  std::string name;
  std::function<Status(int set)> call;
  std::vector<double> samples;
};

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

class Bench {
 public:
  Bench()
      : launch_(need(Launch::create(0))),
        k_(need(DeviceBuffer::create(kPoolBytes, "K"))),
        v_(need(DeviceBuffer::create(kPoolBytes, "V"))),
        q_(need(DeviceBuffer::create(size_t{1} << 24, "q"))),
        o_(need(DeviceBuffer::create(size_t{1} << 24, "o"))),
        tables_(need(DeviceBuffer::create(size_t{1} << 26, "tables"))),
        lengths_(need(DeviceBuffer::create(1 << 16, "lengths"))) {
    fill<<<1024, 256>>>(k_.as<__nv_bfloat16>(), kPoolBytes / 2, 1);
    fill<<<1024, 256>>>(v_.as<__nv_bfloat16>(), kPoolBytes / 2, 2);
    fill<<<1024, 256>>>(q_.as<__nv_bfloat16>(), 1 << 23, 3);
    cudaFuncSetAttribute(loads_only, cudaFuncAttributeMaxDynamicSharedMemorySize, kRing * kChunkBytes);
    cudaDeviceSynchronize();
  }

  void run(const Shape& s, int rounds) {
    const int pages = (s.n + s.page - 1) / s.page;
    const int64_t block = int64_t{s.kv_heads} * s.page * kDim;
    const int64_t blocks = int64_t(kPoolBytes / 2) / block;
    const double bytes = 4.0 * s.batch * pages * double(block);
    const int entries = s.batch * pages;
    int sets = std::max(2, int(std::ceil(500e6 / bytes)));
    sets = int(std::min<int64_t>(sets, blocks / entries));
    std::vector<int32_t> ids(static_cast<size_t>(blocks));
    std::iota(ids.begin(), ids.end(), 0);
    std::mt19937 random(7);
    std::shuffle(ids.begin(), ids.end(), random);
    cudaMemcpy(tables_.data(), ids.data(), size_t(sets) * size_t(entries) * 4, cudaMemcpyHostToDevice);
    const std::vector<int32_t> lengths(size_t(s.batch), s.n);
    cudaMemcpy(lengths_.data(), lengths.data(), lengths.size() * 4, cudaMemcpyHostToDevice);

    AttentionProblem p;
    p.batch = s.batch, p.seqlen_q = 1, p.heads = s.heads, p.kv_heads = s.kv_heads;
    p.head_dim = p.v_head_dim = kDim, p.dtype = DType::bf16, p.scale = 1 / std::sqrt(float(kDim));
    p.mask.causal = false;
    CacheView view;
    view.k = {k_.data(), block, kDim, int64_t{s.page} * kDim};
    view.v = {v_.data(), block, kDim, int64_t{s.page} * kDim};
    view.num_blocks = blocks, view.block_size = s.page, view.max_blocks = pages;
    view.seqlens = lengths_.as<int32_t>();
    const int64_t width = int64_t{s.heads} * kDim;
    const CacheTensors tensors = {{q_.data(), width, width, kDim}, {o_.data(), width, width, kDim}, nullptr};
    const auto table = [&](int set) { return tables_.as<int32_t>() + int64_t{set} * entries; };
    const auto ours = [&](sm90::DecodeTuning tuning, decltype(&sm90::decode) decode = &sm90::decode) {
      return [=, this, &p](int set) mutable {
        CacheView v = view;
        v.block_table = tables_.as<int32_t>() + int64_t{set} * entries;
        return decode(launch_, p, v, {}, tensors, tuning);
      };
    };
    std::vector<Variant> variants;
    const int parts = kTileBytes / (s.page * kDim * 2);
    variants.push_back(
        {"loads", [&](int set) {
           loads_only<<<132, 32, kRing * kChunkBytes, static_cast<cudaStream_t>(launch_.stream.handle())>>>(
               k_.as<char>(), v_.as<char>(), table(set), int(2 * int64_t{entries} / parts * s.kv_heads),
               s.kv_heads, parts, int(block * 2));
           return tessera::cuda::launched("loads", "");
         }});
    variants.push_back({"ours", ours({})});
    variants.push_back({"128", ours({128, false})});
    variants.push_back({"132 whole", ours({132, false})});
    variants.push_back({"late", ours({0, true, false})});
    variants.push_back({"sm80", ours({}, &sm80::decode)});
    time(variants, sets, rounds, bytes);
    char name[80];
    std::snprintf(name, sizeof name, "b %3d h %2d:%-2d n %5d page %2d", s.batch, s.heads, s.kv_heads, s.n,
                  s.page);
    print(name, variants, bytes);
  }

  void run_tree(const TreeShape& s, int rounds) {
    constexpr int kPage = 64;
    const int64_t block = int64_t{s.kv_heads} * kPage * kDim;
    int unique = 0, pages = 0;
    int64_t shared_blocks = 0;
    for (const Level& level : s.levels) {
      unique += level.nodes * (level.tokens / kPage);
      if (level.nodes < s.batch) shared_blocks += level.nodes * (level.tokens / kPage);
      pages += level.tokens / kPage;
    }
    const double bytes = 4.0 * unique * double(block);
    const int64_t blocks = int64_t(kPoolBytes / 2) / block;
    // With evict_first on private blocks the shared ones survive in L2 from call to call: rotate those.
    const double rotated = shared_blocks > 0 ? 4.0 * double(shared_blocks) * double(block) : bytes;
    const int sets = int(std::min<int64_t>(std::max(2, int(std::ceil(260e6 / rotated))), blocks / unique));
    std::vector<int32_t> ids(static_cast<size_t>(blocks));
    std::iota(ids.begin(), ids.end(), 0);
    std::mt19937 random(7);
    std::shuffle(ids.begin(), ids.end(), random);
    std::vector<int32_t> tables;
    for (int set = 0; set < sets; ++set) {
      for (int b = 0; b < s.batch; ++b) {
        int base = set * unique;
        for (const Level& level : s.levels) {
          const int per = level.tokens / kPage, node = b / (s.batch / level.nodes);
          for (int i = 0; i < per; ++i) tables.push_back(ids[size_t(base + node * per + i)]);
          base += level.nodes * per;
        }
      }
    }
    if (tables.size() * 4 + ids.size() * 4 > tables_.size()) fail("tables do not fit");
    cudaMemcpy(tables_.data(), tables.data(), tables.size() * 4, cudaMemcpyHostToDevice);
    int32_t* flat = tables_.as<int32_t>() + tables.size();
    cudaMemcpy(flat, ids.data(), ids.size() * 4, cudaMemcpyHostToDevice);
    const int n = pages * kPage;
    const std::vector<int32_t> lengths(size_t(s.batch), n);
    cudaMemcpy(lengths_.data(), lengths.data(), lengths.size() * 4, cudaMemcpyHostToDevice);
    std::vector<sm90::TreeSequence> sequences;
    for (int b = 0; b < s.batch; ++b) sequences.push_back({tables.data() + b * pages, n});

    AttentionProblem p;
    p.batch = s.batch, p.seqlen_q = 1, p.heads = s.heads, p.kv_heads = s.kv_heads;
    p.head_dim = p.v_head_dim = kDim, p.dtype = DType::bf16, p.scale = 1 / std::sqrt(float(kDim));
    p.mask.causal = false;
    CacheView view;
    view.k = {k_.data(), block, kDim, int64_t{kPage} * kDim};
    view.v = {v_.data(), block, kDim, int64_t{kPage} * kDim};
    view.num_blocks = blocks, view.block_size = kPage, view.max_blocks = pages;
    view.seqlens = lengths_.as<int32_t>();
    const int64_t width = int64_t{s.heads} * kDim;
    const CacheTensors tensors = {{q_.data(), width, width, kDim}, {o_.data(), width, width, kDim}, nullptr};
    std::vector<sm90::TreePlan> plans;
    plans.reserve(9);
    std::vector<Variant> variants;
    variants.push_back(
        {"loads", [&](int set) {
           loads_only<<<132, 32, kRing * kChunkBytes, static_cast<cudaStream_t>(launch_.stream.handle())>>>(
               k_.as<char>(), v_.as<char>(), flat + int64_t{set} * unique, 2 * unique * s.kv_heads,
               s.kv_heads, 1, int(block * 2));
           return tessera::cuda::launched("loads", "");
         }});
    const auto add = [&](const std::string& name, const sm90::TreePlanOptions& options) {
      plans.push_back(need(sm90::TreePlan::create(launch_, p, sequences, kPage, options)));
      const sm90::TreePlan* plan = &plans.back();
      variants.push_back({name, [=, this](int set) {
                            CacheView v = view;
                            v.block_table = tables_.as<int32_t>() + int64_t{set} * s.batch * pages;
                            return plan->attend(launch_, v, {}, tensors);
                          }});
    };
    sm90::TreePlanOptions options;
    add("ours", options);
    options.sharing = sm90::TreeSharing::always;
    for (const int units : {1, 2, 4, 8}) {
      options.shared_units = units;
      add(std::to_string(units), options);
    }
    options.shared_units = 0;
    options.most_rows = 64;
    add("64 rows", options);
    options.sharing = sm90::TreeSharing::never;
    add("paged", options);
    options = {};
    options.for_any_device = true;
    add("sm80", options);
    time(variants, sets, rounds, bytes);
    print(s.name.c_str(), variants, bytes);
  }

  static void print(const char* name, const std::vector<Variant>& variants, double bytes) {
    std::printf("%s %7.1f MB |", name, bytes * 1e-6);
    const double loads = median(variants[0].samples);
    for (const Variant& v : variants) {
      const double us = median(v.samples);
      std::printf(" %s %.2f (%.2f TB/s, %.3f)", v.name.c_str(), us, bytes / us * 1e-6, loads / us);
    }
    std::printf("\n");
    std::fflush(stdout);
  }

 private:
  static constexpr size_t kPoolBytes = size_t{1} << 31;
  static constexpr int kTileBytes = 16384;

  void time(std::vector<Variant>& variants, int sets, int rounds, double bytes) {
    const double expected_us = std::max(5.0, bytes / 4.3e6);
    const int calls = std::max(sets, int(6000 / expected_us) / sets * sets);
    std::vector<Graph> graphs;
    for (Variant& v : variants) {
      need(v.call(0));
      need(launch_.stream.synchronize());
      graphs.push_back(need(Graph::capture(launch_.stream, [&]() -> Status {
        for (int i = 0; i < calls; ++i) TESSERA_RETURN_IF_ERROR(v.call(i % sets));
        return {};
      })));
    }
    const auto stream = static_cast<cudaStream_t>(launch_.stream.handle());
    cudaEvent_t from, to;
    cudaEventCreate(&from);
    cudaEventCreate(&to);
    for (int round = 0; round <= rounds; ++round) {
      for (size_t i = 0; i < variants.size(); ++i) {
        cudaEventRecord(from, stream);
        need(graphs[i].launch(launch_.stream));
        cudaEventRecord(to, stream);
        if (cudaEventSynchronize(to) != cudaSuccess) fail(cudaGetErrorString(cudaGetLastError()));
        float ms = 0;
        cudaEventElapsedTime(&ms, from, to);
        if (round > 0) variants[i].samples.push_back(1e3 * double(ms) / calls);
      }
    }
    cudaEventDestroy(from);
    cudaEventDestroy(to);
  }

  Launch launch_;
  DeviceBuffer k_, v_, q_, o_, tables_, lengths_;
};

}  // namespace
}  // namespace tessera::attention::cuda

int main(int argc, char** argv) {
  using tessera::attention::cuda::Shape;
  using tessera::attention::cuda::TreeShape;
  const std::string what = argc > 1 ? argv[1] : "decode";
  tessera::attention::cuda::Bench bench;
  std::vector<Shape> shapes;
  if (what == "decode") {
    for (const int page : {64, 16}) {
      for (const int kv : {32, 8}) {
        for (const int n : {1024, 2048, 4096}) shapes.push_back({32, 32, kv, n, page});
      }
    }
    shapes.push_back({32, 32, 1, 4096, 64});
    for (const int n : {64, 128, 256, 512}) shapes.push_back({256, 32, 32, n, 64});
  } else if (what == "small") {
    for (const int n : {64, 256, 1024, 4096}) shapes.push_back({1, 32, 32, n, 64});
    for (const int n : {256, 1024, 4096, 16384}) shapes.push_back({1, 32, 8, n, 64});
    shapes.push_back({5, 32, 32, 2048, 64});
    shapes.push_back({17, 32, 32, 2048, 64});
  } else {
    for (const int kv : {32, 8}) {
      for (const int np : {1024, 2048, 4096}) {
        for (const int ns : {0, np / 2, np / 4 * 3, np}) {
          TreeShape s{"32:" + std::to_string(kv) + " np " + std::to_string(np) + " ns " + std::to_string(ns),
                      32,
                      32,
                      kv,
                      {}};
          if (ns > 0) s.levels.push_back({1, ns});
          if (ns < np) s.levels.push_back({32, np - ns});
          bench.run_tree(s, 5);
        }
      }
      bench.run_tree(
          {"32:" + std::to_string(kv) + " three levels", 32, 32, kv, {{1, 1024}, {4, 512}, {32, 256}}}, 5);
    }
  }
  for (const Shape& s : shapes) bench.run(s, 5);
  return 0;
}
