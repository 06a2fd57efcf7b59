// Decode over caches beside the memory's read rate: Tessera's packed cache and a caller's rows (paged and
// contiguous), and what appending and rotating a step's rows adds. Alternated rounds in one process, the read
// of plain memory one of the turns; best and median are compared with the read's best and median. Every case
// checks that the packed cache and the rows agree bit for bit.
//
//   cache_bench [threads [rounds [dtype]]]      defaults: 1 7 bf16; TESSERA_ISA forces the ISA
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "bench/bench.h"
#include "core/buffer.h"
#include "core/context.h"
#include "tessera/paged.h"

namespace tessera::bench {
namespace {

using namespace attention;

void check(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.message().c_str());
  std::exit(1);
}

// Elements of a dtype, from a generator that needs no library.
struct Elements {
  DType dtype;
  Buffer bytes;  // in large pages, as the read probe's memory
  Elements(DType dtype_in, int64_t count, uint32_t seed)
      : dtype(dtype_in),
        bytes(
            Buffer::create(static_cast<size_t>(count * (dtype == DType::f32 ? 4 : 2)), "elements").value()) {
    uint32_t state = seed;
    for (int64_t i = 0; i < count; ++i) {
      state = state * 1664525u + 1013904223u;
      const float value = static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
      const uint16_t half = dtype == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
      if (dtype == DType::f32) {
        std::memcpy(bytes.as<char>() + i * 4, &value, 4);
      } else {
        std::memcpy(bytes.as<char>() + i * 2, &half, 2);
      }
    }
  }
  char* data() const { return const_cast<char*>(bytes.as<char>()); }
  bool operator==(const Elements& other) const {
    return bytes.size() == other.bytes.size() && std::memcmp(data(), other.data(), bytes.size()) == 0;
  }
};

// One step over `layers` layers, each with K and V of its own, so that no cache holds what is read.
void decode(Context& context, const Settings& settings, int heads, int kv_heads, int head_dim, int layers,
            int batch, int keys) {
  const int blocks_each = keys / kCacheBlockTokens, blocks = blocks_each * batch;
  const int64_t kv_width = int64_t{kv_heads} * head_dim, q_width = int64_t{heads} * head_dim;
  const DType tiles = settings.dtype == DType::f16 ? DType::bf16 : settings.dtype;
  KvCacheOptions options;
  options.dtype = tiles;
  options.layers = layers;
  options.kv_heads = kv_heads;
  options.head_dim = head_dim;
  options.num_blocks = blocks;
  auto cache = KvCache::create(options);
  check(cache.status());
  RopeConfig rope_config;
  rope_config.rotary_dim = head_dim;
  const auto table = RopeTable::create(rope_config, keys);
  const Rotary turn = rotary(*table);

  std::vector<Elements> k, v;
  std::vector<int32_t> ids(static_cast<size_t>(blocks));
  for (int i = 0; i < blocks; ++i) ids[static_cast<size_t>(i)] = i * 7 % blocks;  // 7 does not divide them
  const auto rows = [](const Elements& x, int64_t row_width, int64_t dim) {
    return Strided<const void*>{x.data(), 0, row_width, dim};
  };
  std::vector<CacheSequence> fill, step;
  for (int b = 0; b < batch; ++b) {
    const int32_t* own = ids.data() + b * blocks_each;
    fill.push_back({int64_t{b} * keys, keys, 0, own, blocks_each});
    step.push_back({b, 1, keys - 1, own, blocks_each});
  }
  for (int layer = 0; layer < layers; ++layer) {
    k.emplace_back(settings.dtype, batch * keys * kv_width, 2u * static_cast<uint32_t>(layer));
    v.emplace_back(settings.dtype, batch * keys * kv_width, 2u * static_cast<uint32_t>(layer) + 1);
    check(cache->append(context, layer, fill, settings.dtype, rows(k.back(), kv_width, head_dim),
                        rows(v.back(), kv_width, head_dim)));
  }
  AttentionProblem problem;
  problem.heads = heads;
  problem.kv_heads = kv_heads;
  problem.head_dim = problem.v_head_dim = head_dim;
  problem.dtype = tiles;
  problem.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  const auto plan = CachePlan::create(context, *cache, problem, step);
  check(plan.status());
  const Elements q(settings.dtype, batch * q_width, 99), row_k(settings.dtype, batch * kv_width, 5),
      row_v(settings.dtype, batch * kv_width, 6);
  Elements packed_o(settings.dtype, batch * q_width, 1), rows_o(settings.dtype, batch * q_width, 1),
      paged_o(settings.dtype, batch * q_width, 1);

  AttentionProblem over_rows = problem;
  over_rows.batch = batch;
  over_rows.seqlen_q = 1;
  over_rows.dtype = settings.dtype;
  // The same rows as a contiguous cache and as blocks of 256.
  const auto view_of = [&](int layer, bool paged, const std::vector<int32_t>& table_of) {
    CacheView view;
    const size_t i = static_cast<size_t>(layer);
    view.block_size = paged ? 256 : keys;
    view.num_blocks = int64_t{batch} * keys / view.block_size;
    view.k = {k[i].data(), view.block_size * kv_width, kv_width, head_dim};
    view.v = {v[i].data(), view.block_size * kv_width, kv_width, head_dim};
    view.seqlen = keys;
    if (paged) {
      view.block_table = table_of.data();
      view.max_blocks = keys / 256;
    }
    return view;
  };
  std::vector<int32_t> in_order(static_cast<size_t>(batch * keys / 256));
  for (size_t i = 0; i < in_order.size(); ++i) in_order[i] = static_cast<int32_t>(i);
  const auto strided = [&](Elements& o) { return Strided<void*>{o.data(), q_width, q_width, head_dim}; };
  ReadProbe probe(context.pool);
  const std::vector<std::function<void()>> ways = {
      [&] {
        for (int layer = 0; layer < layers; ++layer) {
          CacheQuery query;
          query.dtype = settings.dtype;
          query.q = rows(q, q_width, head_dim);
          query.o = strided(packed_o);
          check(plan->attend(context, *cache, layer, query));
        }
      },
      [&] {
        for (int layer = 0; layer < layers; ++layer) {
          CacheTensors t{{q.data(), q_width, q_width, head_dim}, strided(rows_o), nullptr};
          check(attend_cache(context, over_rows, view_of(layer, false, in_order), {}, t));
        }
      },
      [&] {
        for (int layer = 0; layer < layers; ++layer) {
          CacheTensors t{{q.data(), q_width, q_width, head_dim}, strided(paged_o), nullptr};
          check(attend_cache(context, over_rows, view_of(layer, true, in_order), {}, t));
        }
      },
      [&] {
        for (int layer = 0; layer < layers; ++layer) {
          check(cache->append(context, layer, step, settings.dtype, rows(row_k, kv_width, head_dim),
                              rows(row_v, kv_width, head_dim), &turn));
        }
      },
      [&] { probe.run(); },
  };
  for (size_t i = 0; i < 3; ++i) ways[i]();
  const bool same = settings.dtype == DType::f16 || (packed_o == rows_o && packed_o == paged_o);
  const std::vector<Times> times = alternate(settings, ways);
  const double read = probe.bytes() / times[4].best(), read_median = probe.bytes() / times[4].median();
  const double bytes =
      2.0 * layers * batch * keys * static_cast<double>(kv_width) * (settings.dtype == DType::f32 ? 4 : 2);
  std::printf(
      "decode h%d/kv%d/d%d batch %d x %d keys, %d layers, %.0f MB, read rate %.1f GB/s best %.1f median; "
      "bits %s\n",
      heads, kv_heads, head_dim, batch, keys, layers, bytes * 1e-6, read * 1e-9, read_median * 1e-9,
      same ? "equal" : "DIFFER");
  const char* names[] = {"packed cache", "rows, contiguous", "rows, blocks of 256"};
  for (size_t i = 0; i < 3; ++i) {
    std::printf(
        "  %-20s %8.3f ms best %8.3f median | %5.1f GB/s = %5.1f %% of the read rate (median %5.1f %%)\n",
        names[i], times[i].best() * 1e3, times[i].median() * 1e3, bytes / times[i].best() * 1e-9,
        100 * bytes / times[i].best() / read, 100 * bytes / times[i].median() / read_median);
  }
  std::printf("  append and rotate    %8.3f ms best %8.3f median | %.2f %% of packed decode\n",
              times[3].best() * 1e3, times[3].median() * 1e3, 100 * times[3].best() / times[0].best());
  if (!same) std::exit(1);
}

}  // namespace
}  // namespace tessera::bench

int main(int argc, char** argv) {
  using namespace tessera;
  using namespace tessera::bench;
  const Settings settings = Settings::of(argc, argv);
  ThreadPool pool({.threads = settings.threads, .pin = true});
  pin_caller();
  Context context(pool);
  std::printf("threads %d, dtype %s\n", settings.threads, name(settings.dtype));
  decode(context, settings, 9, 3, 64, 12, 16, 1024);
  decode(context, settings, 9, 3, 64, 30, 1, 4096);
  decode(context, settings, 32, 8, 128, 4, 16, 1024);
  decode(context, settings, 32, 8, 128, 8, 1, 4096);
  return 0;
}
