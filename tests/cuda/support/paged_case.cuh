// A step over a cache in rows, all of it on the device: random K, V and q by (sequence, position), shuffled
// blocks, NaN wherever nothing was written, and its attention in float64.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "core/cuda/device.h"
#include "tessera/paged.h"
#include "tests/cuda/support/guarded_buffer.h"

namespace tessera::attention::cuda_test {

using DeviceBuffer = GuardedBuffer;  // caches, tables and rows are all guarded

inline constexpr uint32_t kSeed = 90210;

enum class CacheLayout { head_outside, token_outside };  // [block, head, slot, d], [block, slot, head, d]

struct PagedShape {
  DType dtype = DType::bf16;
  int heads = 4, kv_heads = 4, head_dim = 128;
  int v_head_dim = 0;  // 0: head_dim
  int tokens = 1;
  int page = 64;  // 0: contiguous
  CacheLayout layout = CacheLayout::head_outside;
  std::vector<int32_t> lengths;  // of each sequence, the new tokens included
  int capacity = 0;              // positions of a table; 0: the longest length
  // Sequence b takes its first `shared_blocks[b].second` blocks from sequence shared_blocks[b].first < b.
  std::vector<std::pair<int, int>> shared_blocks;
  float q_scale = 1.0f;
  uint32_t seed = kSeed;
  int v_dim() const { return v_head_dim > 0 ? v_head_dim : head_dim; }
  size_t element_bytes() const { return dtype == DType::f32 ? 4 : 2; }
};

__device__ inline uint32_t mixed(uint32_t x) {
  x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
  return x;
}
// Normal, a function of (seed, index).
__device__ inline float normal_at(uint32_t seed, uint64_t index) {
  const uint32_t a =
      mixed(seed ^ mixed(static_cast<uint32_t>(index) ^ mixed(static_cast<uint32_t>(index >> 32) + 77)));
  const uint32_t b = mixed(a + 0x9e3779b9u);
  const float u = (static_cast<float>(a >> 8) + 1.0f) * (1.0f / 16777217.0f);
  return sqrtf(-2.0f * logf(u)) * cosf(6.2831853f * static_cast<float>(b >> 8) * (1.0f / 16777216.0f));
}
// f32: to the nearest that tf32 holds, so that kernels of f32 have nothing to round but P.
template <typename T>
__device__ inline T rounded(float x) {
  if constexpr (std::is_same_v<T, float>)
    return __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u);
  return static_cast<T>(x);
}

template <typename T>
__global__ void fill_normal(T* to, int64_t count, uint32_t seed, float scale) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x)
    to[i] = rounded<T>(scale * normal_at(seed, static_cast<uint64_t>(i)));
}

struct CacheStrides {
  int64_t block, slot, head;
};

// Rows [0, lengths[b]) of the cache; identity[b * max_blocks + i] says whose random numbers block i holds, so
// that shared blocks agree.
template <typename T>
__global__ void fill_cache(T* cache, CacheStrides s, const int32_t* table, const int32_t* lengths,
                           int max_blocks, int page, int kv_heads, int dim, uint32_t seed) {
  const int b = blockIdx.y;
  const int64_t count = int64_t{lengths[b]} * kv_heads * dim;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int d = static_cast<int>(i % dim), h = static_cast<int>(i / dim % kv_heads);
    const int position = static_cast<int>(i / dim / kv_heads);
    const int32_t block = table != nullptr ? table[b * max_blocks + position / page] : b;
    const int slot = table != nullptr ? position % page : position;
    const uint64_t index =
        ((uint64_t(block) * 65536 + uint64_t(slot)) * 256 + uint64_t(h)) * 512 + uint64_t(d);
    cache[block * s.block + slot * s.slot + h * s.head + d] = rounded<T>(normal_at(seed, index));
  }
}

struct OracleFeatures {
  bool causal = false;
  int window_left = -1, window_right = -1;
  double softcap = 0;
  const float* slopes = nullptr;  // [heads]
  const int32_t* leftpad = nullptr;
};

// One block of 128 threads a (token, head): o, the sum of p |v| / l of each column, and lse.
template <typename T>
__global__ void oracle(const T* q, const T* k, const T* v, CacheStrides k_strides, CacheStrides v_strides,
                       const int32_t* table, const int32_t* lengths, int max_blocks, int page, int tokens,
                       int heads, int kv_heads, int dim, int v_dim, double scale, OracleFeatures f, double* o,
                       double* weight, double* lse) {
  extern __shared__ double scores[];
  __shared__ double reduced[128];
  const int token = blockIdx.x, head = blockIdx.y, b = token / tokens, t = token % tokens;
  const int length = lengths[b], kv_head = head / (heads / kv_heads);
  const int position = length - tokens + t;
  const T* row = q + (int64_t{token} * heads + head) * dim;
  const auto at = [&](int j, const CacheStrides& s) {
    const int32_t block = table != nullptr ? table[b * max_blocks + j / page] : b;
    return block * s.block + (table != nullptr ? j % page : j) * s.slot + kv_head * s.head;
  };
  double most = -INFINITY;
  for (int j = threadIdx.x; j < length; j += 128) {
    bool seen = f.leftpad == nullptr || j >= f.leftpad[b];
    seen = seen && (!f.causal || j <= position) && (f.window_left < 0 || j >= position - f.window_left) &&
           (f.window_right < 0 || j <= position + f.window_right);
    double x = -INFINITY;
    if (seen) {
      x = 0;
      for (int d = 0; d < dim; ++d) x += double(float(row[d])) * double(float(k[at(j, k_strides) + d]));
      x *= scale;
      if (f.softcap != 0) x = f.softcap * tanh(x / f.softcap);
      if (f.slopes != nullptr) x -= double(f.slopes[head]) * abs(position - j);
    }
    scores[j] = x;
    most = fmax(most, x);
  }
  reduced[threadIdx.x] = most;
  __syncthreads();
  for (int i = 0; i < 128; ++i) most = fmax(most, reduced[i]);
  __syncthreads();
  double sum = 0;
  for (int j = threadIdx.x; j < length; j += 128) {
    scores[j] = scores[j] == -INFINITY ? 0 : exp(scores[j] - most);
    sum += scores[j];
  }
  reduced[threadIdx.x] = sum;
  __syncthreads();
  sum = 0;
  for (int i = 0; i < 128; ++i) sum += reduced[i];
  const int64_t out = int64_t{token} * heads + head;
  for (int d = threadIdx.x; d < v_dim; d += 128) {
    double value = 0, absolute = 0;
    for (int j = 0; j < length; ++j) {
      if (scores[j] == 0) continue;
      const double x = double(float(v[at(j, v_strides) + d]));
      value += scores[j] * x;
      absolute += scores[j] * fabs(x);
    }
    o[out * v_dim + d] = sum == 0 ? 0 : value / sum;
    weight[out * v_dim + d] = sum == 0 ? 0 : absolute / sum;
  }
  if (threadIdx.x == 0) lse[out] = sum == 0 ? -INFINITY : most + log(sum);
}

class PagedCase {
 public:
  PagedShape shape;
  int max_blocks = 0, num_blocks = 0;
  std::vector<int32_t> table;
  DeviceBuffer k, v, q, o, lse, table_on_device, lengths_on_device, slopes, leftpad;
  CacheStrides strides{}, v_strides{};

  explicit PagedCase(PagedShape shape_in) : shape(std::move(shape_in)) {
    const int batch = static_cast<int>(shape.lengths.size());
    int capacity = shape.capacity;
    for (const int32_t length : shape.lengths) capacity = std::max(capacity, int(length));
    capacity = std::max(capacity, 1);
    const bool paged = shape.page > 0;
    slots_ = paged ? shape.page : capacity;
    max_blocks = paged ? (capacity + shape.page - 1) / shape.page : 1;
    num_blocks = paged ? batch * max_blocks + 3 : batch;
    if (paged) {
      std::vector<int32_t> ids(static_cast<size_t>(num_blocks));
      std::iota(ids.begin(), ids.end(), 0);
      std::mt19937 random(shape.seed);
      std::shuffle(ids.begin(), ids.end(), random);
      table.resize(size_t(batch) * size_t(max_blocks));
      size_t next = 0;
      for (int b = 0; b < batch; ++b) {
        for (int i = 0; i < max_blocks; ++i) {
          const bool shared =
              b < int(shape.shared_blocks.size()) && i < shape.shared_blocks[size_t(b)].second;
          table[size_t(b * max_blocks + i)] =
              shared ? table[size_t(shape.shared_blocks[size_t(b)].first * max_blocks + i)] : ids[next++];
        }
      }
    }
    const auto strides_of = [&](int dim) {
      return shape.layout == CacheLayout::head_outside
                 ? CacheStrides{int64_t{slots_} * shape.kv_heads * dim, dim, int64_t{slots_} * dim}
                 : CacheStrides{int64_t{slots_} * shape.kv_heads * dim, int64_t{shape.kv_heads} * dim, dim};
    };
    strides = strides_of(shape.head_dim), v_strides = strides_of(shape.v_dim());
    const auto bytes = [&](int64_t elements) { return size_t(elements) * shape.element_bytes(); };
    const int64_t rows = int64_t{batch} * shape.tokens * shape.heads;
    k = make(bytes(num_blocks * strides.block)), v = make(bytes(num_blocks * v_strides.block));
    q = make(bytes(rows * shape.head_dim)), o = make(bytes(rows * shape.v_dim()));
    lse = make(size_t(rows) * 4);
    table_on_device = upload(table);
    lengths_on_device = upload(shape.lengths);
    cudaMemset(k.data(), 0xff, k.size());
    cudaMemset(v.data(), 0xff, v.size());
    if (shape.dtype == DType::f32) {
      fill<float>();
    } else if (shape.dtype == DType::f16) {
      fill<__half>();
    } else {
      fill<__nv_bfloat16>();
    }
    clear();
  }

  void clear() {
    cudaMemset(o.data(), 0xff, o.size());
    cudaMemset(lse.data(), 0xff, lse.size());
  }

  AttentionProblem problem() const {
    AttentionProblem p;
    p.batch = int64_t(shape.lengths.size());
    p.seqlen_q = shape.tokens;
    p.heads = shape.heads;
    p.kv_heads = shape.kv_heads;
    p.head_dim = shape.head_dim;
    p.v_head_dim = shape.v_dim();
    p.dtype = shape.dtype;
    p.scale = 1.0f / std::sqrt(float(shape.head_dim));
    return p;
  }
  // `appended`: of each length, behind which nothing is in the cache yet.
  CacheView view() const {
    CacheView c;
    c.k = {k.data(), strides.block, strides.slot, strides.head};
    c.v = {v.data(), v_strides.block, v_strides.slot, v_strides.head};
    c.num_blocks = num_blocks;
    c.block_size = slots_;
    if (shape.page > 0) {
      c.block_table = table_on_device.as<int32_t>();
      c.max_blocks = max_blocks;
    }
    c.seqlens = lengths_on_device.as<int32_t>();
    return c;
  }
  CacheTensors tensors() const {
    const int64_t width = int64_t{shape.heads} * shape.head_dim,
                  v_width = int64_t{shape.heads} * shape.v_dim();
    return {{q.data(), shape.tokens * width, width, shape.head_dim},
            {o.data(), shape.tokens * v_width, v_width, shape.v_dim()},
            lse.as<float>()};
  }

  std::vector<uint16_t> output() const {
    std::vector<uint16_t> bits(o.size() / 2);
    EXPECT_EQ(cudaMemcpy(bits.data(), o.data(), o.size(), cudaMemcpyDeviceToHost), cudaSuccess)
        << cudaGetErrorString(cudaGetLastError());
    return bits;
  }
  std::vector<float> output_lse() const {
    std::vector<float> values(lse.size() / 4);
    cudaMemcpy(values.data(), lse.data(), lse.size(), cudaMemcpyDeviceToHost);
    return values;
  }

  // The last `count` positions of every sequence, [batch][count][kv_heads][head_dim], taken out of the cache
  // (NaN is left there); lengths: what remains; cache_k, cache_v: the caches before.
  struct TakenRows {
    DeviceBuffer k, v, lengths;
    std::vector<uint16_t> cache_k, cache_v;
  };
  TakenRows take_rows(int count) {
    TakenRows taken;
    std::vector<int32_t> before;
    for (const int32_t length : shape.lengths) before.push_back(length - count);
    taken.lengths = upload(before);
    const auto take = [&](DeviceBuffer& cache, const CacheStrides& s, int dim, std::vector<uint16_t>& whole) {
      whole = download(cache);
      std::vector<uint16_t> left = whole, rows;
      for (size_t b = 0; b < shape.lengths.size(); ++b) {
        for (int t = 0; t < count; ++t) {
          const int position = before[b] + t;
          const int64_t block =
              shape.page > 0 ? table[b * size_t(max_blocks) + size_t(position / slots_)] : int64_t(b);
          for (int h = 0; h < shape.kv_heads; ++h) {
            for (int d = 0; d < dim; ++d) {
              const auto at = size_t(block * s.block + (position % slots_) * s.slot + h * s.head + d);
              const size_t halves = shape.element_bytes() / 2;  // an element is one or two
              for (size_t i = at * halves; i < (at + 1) * halves; ++i) {
                rows.push_back(whole[i]);
                left[i] = 0xffff;
              }
            }
          }
        }
      }
      cudaMemcpy(cache.data(), left.data(), left.size() * 2, cudaMemcpyHostToDevice);
      return upload(rows);
    };
    taken.k = take(k, strides, shape.head_dim, taken.cache_k);
    taken.v = take(v, v_strides, shape.v_dim(), taken.cache_v);
    return taken;
  }
  static std::vector<uint16_t> download(const DeviceBuffer& buffer) {
    std::vector<uint16_t> bits(buffer.size() / 2);
    cudaMemcpy(bits.data(), buffer.data(), buffer.size(), cudaMemcpyDeviceToHost);
    return bits;
  }
  template <typename E>
  static DeviceBuffer upload(const std::vector<E>& values) {
    DeviceBuffer buffer = make(values.size() * sizeof(E));
    cudaMemcpy(buffer.data(), values.data(), values.size() * sizeof(E), cudaMemcpyHostToDevice);
    return buffer;
  }

  // Fails with the first element outside the tolerance. P is rounded once and o once: errors of at most half
  // a unit in the last place of each, doubled. tf32, to which f32 is rounded, has as many places as f16.
  void check(const OracleFeatures& features, const std::string& name) {
    if (shape.dtype == DType::f32) {
      check_as<float>(features, name, 1.0 / 1024, 2e-4);
    } else if (shape.dtype == DType::f16) {
      check_as<__half>(features, name, 1.0 / 1024, 2e-4);
    } else {
      check_as<__nv_bfloat16>(features, name, 1.0 / 128, 1e-5);
    }
  }

 private:
  static DeviceBuffer make(size_t bytes) { return DeviceBuffer(bytes); }
  template <typename T>
  void fill() {
    const dim3 grid(64, unsigned(shape.lengths.size()));
    const int32_t* ids = shape.page > 0 ? table_on_device.as<int32_t>() : nullptr;
    fill_cache<T><<<grid, 256>>>(k.as<T>(), strides, ids, lengths_on_device.as<int32_t>(), max_blocks, slots_,
                                 shape.kv_heads, shape.head_dim, shape.seed + 1);
    fill_cache<T><<<grid, 256>>>(v.as<T>(), v_strides, ids, lengths_on_device.as<int32_t>(), max_blocks,
                                 slots_, shape.kv_heads, shape.v_dim(), shape.seed + 2);
    fill_normal<T><<<64, 256>>>(q.as<T>(), int64_t(q.size() / sizeof(T)), shape.seed + 3, shape.q_scale);
  }
  template <typename T>
  void check_as(const OracleFeatures& features, const std::string& name, double relative, double absolute) {
    const int batch = int(shape.lengths.size()), rows = batch * shape.tokens * shape.heads;
    const size_t elements = size_t(rows) * size_t(shape.v_dim());
    DeviceBuffer want = make(elements * 8), weight = make(elements * 8), want_lse = make(size_t(rows) * 8);
    const int32_t longest = *std::max_element(shape.lengths.begin(), shape.lengths.end());
    // Of whole kilobytes: compute-sanitizer takes the last ones of others for outside.
    const size_t shared = (size_t(std::max(longest, 1)) * 8 + 1023) / 1024 * 1024;
    ASSERT_EQ(cudaFuncSetAttribute(oracle<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)),
              cudaSuccess);
    oracle<T><<<dim3(unsigned(batch * shape.tokens), unsigned(shape.heads)), 128, shared>>>(
        q.as<T>(), k.as<T>(), v.as<T>(), strides, v_strides,
        shape.page > 0 ? table_on_device.as<int32_t>() : nullptr, lengths_on_device.as<int32_t>(), max_blocks,
        slots_, shape.tokens, shape.heads, shape.kv_heads, shape.head_dim, shape.v_dim(),
        double(problem().scale), features, want.as<double>(), weight.as<double>(), want_lse.as<double>());
    std::vector<double> o64(elements), w64(elements), l64(static_cast<size_t>(rows));
    cudaMemcpy(o64.data(), want.data(), elements * 8, cudaMemcpyDeviceToHost);
    cudaMemcpy(w64.data(), weight.data(), elements * 8, cudaMemcpyDeviceToHost);
    ASSERT_EQ(cudaMemcpy(l64.data(), want_lse.data(), size_t(rows) * 8, cudaMemcpyDeviceToHost), cudaSuccess)
        << name << ": " << cudaGetErrorString(cudaGetLastError());
    const std::vector<uint16_t> bits = output();
    size_t bad = 0;
    double worst = 0;
    std::string first;
    for (size_t i = 0; i < elements; ++i) {
      T value;
      std::memcpy(static_cast<void*>(&value), &bits[i * (sizeof(T) / 2)], sizeof(T));
      const double error = std::fabs(double(float(value)) - o64[i]);
      const double limit = relative * (std::fabs(o64[i]) + w64[i]) / 2 + absolute;
      worst = std::max(worst, error / limit);
      if (!(error <= limit) && bad++ == 0) {
        const size_t row = i / size_t(shape.v_dim());
        first = "token " + std::to_string(row / size_t(shape.heads)) + " head " +
                std::to_string(row % size_t(shape.heads)) + " d " +
                std::to_string(i % size_t(shape.v_dim())) + " want " + std::to_string(o64[i]) + " got " +
                std::to_string(float(value));
      }
    }
    EXPECT_EQ(bad, 0u) << name << ": " << bad << " of " << elements << " outside, first " << first;
    const std::vector<float> got = output_lse();
    size_t bad_lse = 0;
    for (int row = 0; row < rows; ++row) {
      const int token = row / shape.heads, head = row % shape.heads;
      const int b = token / shape.tokens, t = token % shape.tokens;
      const double x = l64[size_t(row)];
      const float y = got[size_t((b * shape.heads + head) * shape.tokens + t)];
      const bool same =
          std::isinf(x) ? double(y) == x : std::fabs(double(y) - x) <= 2e-5 * std::max(1.0, std::fabs(x));
      if (!same && bad_lse++ == 0) {
        ADD_FAILURE() << name << ": lse of token " << token << " head " << head << " want " << x << " got "
                      << y;
      }
    }
    std::printf("%-44s worst %.3f of the limit\n", name.c_str(), worst);
  }
  int slots_ = 0;
};

}  // namespace tessera::attention::cuda_test
