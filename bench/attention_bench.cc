// Attention beside its ceilings: prefill against multiply-adds on registers, decode against memory, and
// decode over a shared prefix as copies, as shared pages walked by each sequence, and in two phases.
// Alternated rounds in one process; best and median are printed. One thread is timed by its own CPU clock, so
// that a busy machine disturbs it less; several threads by the wall's. Every case checks that the ways it
// compares agree bit for bit.
//
//   attention_bench [threads [rounds [dtype]]]      defaults: 1 7 bf16; TESSERA_ISA forces the ISA
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "attention/paged.h"
#include "bench/bench.h"

namespace tessera::bench {
namespace {

using namespace attention;

void fill(std::vector<float>& values, uint32_t seed) {
  uint32_t state = seed;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
  }
}

// A model's attention: every layer's cache, filled.
struct Model {
  AttentionProblem problem;
  KvStorage storage;
  int layers;

  Model(Context& context, DType dtype, int heads, int kv_heads, int head_dim, int layers_in, int blocks)
      : storage(
            KvStorage::create({dtype, kv_heads, head_dim, head_dim, kKeyTile}, layers_in, blocks).value()),
        layers(layers_in) {
    problem.heads = heads;
    problem.kv_heads = kv_heads;
    problem.head_dim = problem.v_head_dim = head_dim;
    problem.dtype = dtype;
    problem.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    const int64_t width = int64_t{kv_heads} * head_dim;
    std::vector<float> k(static_cast<size_t>(kKeyTile * width)), v(k.size());
    std::vector<int32_t> block(kKeyTile), offset(kKeyTile);
    for (int i = 0; i < kKeyTile; ++i) offset[static_cast<size_t>(i)] = i;
    for (int b = 0; b < blocks; ++b) {
      fill(k, static_cast<uint32_t>(b));
      fill(v, static_cast<uint32_t>(b) + 77);
      std::fill(block.begin(), block.end(), b);
      for (int layer = 0; layer < layers; ++layer) {
        storage.append(context, layer,
                       {kKeyTile, k.data(), width, v.data(), width, block.data(), offset.data()});
      }
    }
  }

  int64_t q_width() const { return int64_t{problem.heads} * problem.head_dim; }

  void attend(Context& context, const WorkPlan& plan, const std::vector<float>& q,
              std::vector<float>& o) const {
    for (int layer = 0; layer < layers; ++layer) {
      paged_attention(context, problem, storage, layer, plan, q.data(), q_width(), o.data(), q_width());
    }
  }
};

void prefill(Context& context, const Settings& settings, double peak, int heads, int kv_heads, int head_dim,
             int length) {
  const int blocks = (length + kKeyTile - 1) / kKeyTile;
  const Model model(context, settings.dtype, heads, kv_heads, head_dim, 1, blocks);
  std::vector<int32_t> table(static_cast<size_t>(blocks));
  for (int i = 0; i < blocks; ++i) table[static_cast<size_t>(i)] = i;
  const PagedSequence sequence[] = {{0, length, 0, table.data()}};
  std::vector<float> q(static_cast<size_t>(length * model.q_width())), o(q.size());
  fill(q, 5);
  const WorkPlan plan(sequence, model.problem, {.threads = settings.threads});
  const Times times = alternate(settings, {[&] { model.attend(context, plan, q, o); }})[0];
  const double flops = 4.0 * heads * head_dim * (0.5 * length * (length + 1.0));
  std::printf(
      "prefill h%d/kv%d/d%d S=%-5d %8.3f ms best %8.3f median | %7.1f GFLOP/s = %4.1f %% of peak (median "
      "%4.1f %%)\n",
      heads, kv_heads, head_dim, length, times.best() * 1e3, times.median() * 1e3,
      flops / times.best() * 1e-9, 100 * flops / times.best() / peak, 100 * flops / times.median() / peak);
}

void decode(Context& context, const Settings& settings, int heads, int kv_heads, int head_dim, int layers,
            int count, int length) {
  const int own = (length + kKeyTile - 1) / kKeyTile;
  const Model model(context, settings.dtype, heads, kv_heads, head_dim, layers, own * count);
  std::vector<std::vector<int32_t>> tables;
  std::vector<PagedSequence> sequences;
  for (int s = 0; s < count; ++s) {
    tables.emplace_back();
    for (int i = 0; i < own; ++i) tables.back().push_back(i * count + s);
  }
  for (int s = 0; s < count; ++s)
    sequences.push_back({s, 1, length - 1, tables[static_cast<size_t>(s)].data()});
  std::vector<float> q(static_cast<size_t>(count * model.q_width())), o(q.size());
  fill(q, 5);
  const WorkPlan plan(sequences, model.problem, {.threads = settings.threads});
  const double rate_before = read_rate(context.pool);
  const Times times = alternate(settings, {[&] { model.attend(context, plan, q, o); }})[0];
  const double rate = std::max(rate_before, read_rate(context.pool));
  const double bytes = static_cast<double>(model.storage.bytes_per_block()) * own * count;
  std::printf(
      "decode  h%d/kv%d/d%d B=%d @%d, %d layers %8.3f ms best %8.3f median | %5.1f GB/s = %4.1f %% of %.1f "
      "(median %4.1f %%)\n",
      heads, kv_heads, head_dim, count, length, layers, times.best() * 1e3, times.median() * 1e3,
      bytes / times.best() * 1e-9, 100 * bytes / times.best() / rate, rate * 1e-9,
      100 * bytes / times.median() / rate);
}

void shared_prefix(Context& context, const Settings& settings, int heads, int kv_heads, int head_dim,
                   int layers, int count, int shared, int own) {
  const int prefix = shared / kKeyTile, tail = (own + kKeyTile - 1) / kKeyTile, each = prefix + tail;
  const Model model(context, settings.dtype, heads, kv_heads, head_dim, layers, each * count);
  std::vector<std::vector<int32_t>> copied, pages;
  for (int s = 0; s < count; ++s) {
    copied.emplace_back();
    pages.emplace_back();
    for (int i = 0; i < each; ++i) {
      copied.back().push_back(s * each + i);
      pages.back().push_back(i < prefix ? i : s * each + i);
    }
  }
  const auto sequences_of = [&](const std::vector<std::vector<int32_t>>& tables) {
    std::vector<PagedSequence> sequences;
    for (int s = 0; s < count; ++s) {
      sequences.push_back({s, 1, shared + own - 1, tables[static_cast<size_t>(s)].data()});
    }
    return sequences;
  };
  std::vector<float> q(static_cast<size_t>(count * model.q_width())), o1(q.size()), o2(q.size()),
      o3(q.size());
  fill(q, 5);
  const auto copies = sequences_of(copied), sharing = sequences_of(pages);
  const WorkPlan plan_copies(copies, model.problem, {.threads = settings.threads});
  const WorkPlan plan_walk(sharing, model.problem, {.threads = settings.threads, .two_phase = false});
  const WorkPlan plan_two(sharing, model.problem, {.threads = settings.threads});
  const std::vector<Times> times = alternate(settings, {[&] { model.attend(context, plan_copies, q, o1); },
                                                        [&] { model.attend(context, plan_walk, q, o2); },
                                                        [&] { model.attend(context, plan_two, q, o3); }});
  const bool same = std::memcmp(o2.data(), o3.data(), o2.size() * sizeof(float)) == 0;
  std::printf(
      "shared  h%d/kv%d/d%d %d x (%d + %d), %d layers: copies %.3f, walked %.3f, two-phase %.3f ms best; "
      "two-phase is "
      "%.2fx copies, %.2fx walked (medians %.2fx, %.2fx); bits %s\n%s",
      heads, kv_heads, head_dim, count, shared, own, layers, times[0].best() * 1e3, times[1].best() * 1e3,
      times[2].best() * 1e3, times[0].best() / times[2].best(), times[1].best() / times[2].best(),
      times[0].median() / times[2].median(), times[1].median() / times[2].median(), same ? "equal" : "DIFFER",
      plan_two.explain().c_str());
  if (!same) std::exit(1);
}

}  // namespace
}  // namespace tessera::bench

int main(int argc, char** argv) {
  using namespace tessera;
  using namespace tessera::bench;
  const Settings settings = Settings::of(argc, argv);
  ThreadPool pool({.threads = settings.threads, .pin = true});
  Context context(pool);
  const double f32 = f32_peak(pool), bf16 = bf16_peak(pool);
  const bool pairs = settings.dtype == DType::bf16 && bf16 > 0;
  std::printf("threads %d, storage %s, f32 peak %.1f GFLOP/s, bf16 peak %.1f, memory read %.1f GB/s\n",
              settings.threads, name(settings.dtype), f32 * 1e-9, bf16 * 1e-9, read_rate(pool) * 1e-9);
  const double peak = pairs ? bf16 : f32;
  for (int length : {512, 2048, 4096}) prefill(context, settings, peak, 9, 3, 64, length);
  prefill(context, settings, peak, 8, 2, 128, 2048);
  decode(context, settings, 9, 3, 64, 30, 1, 4096);
  decode(context, settings, 9, 3, 64, 30, 16, 1024);
  decode(context, settings, 32, 8, 128, 4, 8, 1024);
  shared_prefix(context, settings, 9, 3, 64, 30, 16, 1024, 64);
  shared_prefix(context, settings, 9, 3, 64, 30, 16, 0, 1024);
  shared_prefix(context, settings, 32, 8, 128, 4, 16, 1024, 64);
  return 0;
}
