// common/mask.cuh against the reference's visibility and scores: each feature and each pair of features,
// element by element, with NaN for every dot that nothing may look at.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "attention/cuda/common/mask.cuh"
#include "attention/reference/score.h"
#include "tests/cuda/support/dense_case.h"
#include "tests/cuda/support/device_array.h"

namespace tessera::attention::cuda {
namespace {

using cuda_test::DeviceArray;

constexpr int kRowTile = 16, kKeyTile = 64;

// One warp a slab of 16 rows and 64 keys of a head. x: dots, then scores; gradient: then times the slope.
// Both [batch][head][rows][keys], padded to whole tiles.
__global__ void score_kernel(Features f, int rows, int keys, float* x, float* gradient, uint8_t* seen) {
  const int lane = static_cast<int>(threadIdx.x), batch = static_cast<int>(blockIdx.z);
  const int head = static_cast<int>(blockIdx.y), heads = static_cast<int>(gridDim.y);
  const int tiles = keys / kKeyTile;
  const int row0 = static_cast<int>(blockIdx.x) / tiles * kRowTile,
            key0 = static_cast<int>(blockIdx.x) % tiles * kKeyTile;
  const int64_t base = (int64_t{batch} * heads + head) * rows * keys;
  const Sequence s = sequence_of(f, batch);
  float dots[kKeyTile / 2], slopes[kKeyTile / 2], plain[kKeyTile / 2];
  const auto at = [&](int e) {
    return base + int64_t{row0 + lane / 4 + 8 * (e / 2 % 2)} * keys + key0 + 8 * (e / 4) + 2 * (lane % 4) +
           e % 2;
  };
#pragma unroll
  for (int e = 0; e < kKeyTile / 2; ++e) plain[e] = dots[e] = x[at(e)], slopes[e] = gradient[at(e)];
  score_fragment<true>(f, s, batch, head, row0 + lane / 4, key0 + 2 * (lane % 4), dots, slopes);
  score_fragment<false>(f, s, batch, head, row0 + lane / 4, key0 + 2 * (lane % 4), plain, nullptr);
#pragma unroll
  for (int e = 0; e < kKeyTile / 2; ++e) {
    // Both forms must have the same bits; else NaN, which fails.
    x[at(e)] = __float_as_uint(dots[e]) == __float_as_uint(plain[e]) ? dots[e] : __int_as_float(0x7fc00000);
    gradient[at(e)] = slopes[e];
  }
  for (int i = lane; i < kRowTile * kKeyTile; i += 32) {
    const int row = row0 + i / kKeyTile, key = key0 + i % kKeyTile;
    seen[base + int64_t{row} * keys + key] = row < s.rows && sees(f, s, batch, head, row, key) ? 1 : 0;
  }
}

// What ALiBi takes from a score and what an additive mask adds to it, in size.
double added_sizes(AttentionProblem p, int64_t b, int64_t h, int64_t row, int64_t key) {
  p.softcap = 0;
  const bool slopes = p.alibi_slopes != nullptr;
  const double both = reference::score(p, b, h, row, key, 0.0).value;
  p.alibi_slopes = nullptr;
  const double mask = reference::score(p, b, h, row, key, 0.0).value;
  return std::abs(mask) + (slopes ? std::abs(both - mask) : 0.0);
}

void check_scores(DenseCase& c) {
  const AttentionProblem& p = c.p;
  const tessera::cuda::Stream stream = tessera::cuda::Stream::of(nullptr);
  const DeviceProblem problem(p, c.mask, stream);
  const int rows = static_cast<int>(p.seqlen_q + kRowTile - 1) / kRowTile * kRowTile + kRowTile;
  const int keys = static_cast<int>(p.seqlen_k + kKeyTile - 1) / kKeyTile * kKeyTile + kKeyTile;
  const auto index = [&](int64_t b, int64_t h, int64_t row, int64_t key) {
    return static_cast<size_t>(((b * p.heads + h) * rows + row) * keys + key);
  };
  const size_t count =
      static_cast<size_t>(p.batch * p.heads) * static_cast<size_t>(rows) * static_cast<size_t>(keys);
  std::vector<float> dots(count, std::nanf("")), gradients(count);
  std::vector<double> want(count, -INFINITY), bound(count, 0.0), want_slope(count), slope_bound(count);
  std::vector<uint8_t> visible(count, 0);
  std::normal_distribution<float> normal(0.0f, 8.0f);
  for (float& g : gradients) g = normal(c.random);
  for (int64_t b = 0; b < p.batch; ++b) {
    const reference::Extent e = reference::extent(p, b);
    for (int64_t h = 0; h < p.heads; ++h) {
      for (int64_t row = 0; row < e.rows; ++row) {
        for (int64_t key = 0; key < e.keys; ++key) {
          if (!reference::visible(p, b, h, row, key)) continue;
          const size_t i = index(b, h, row, key);
          visible[i] = 1;
          dots[i] = normal(c.random);
          const reference::Score s = reference::score(p, b, h, row, key, dots[i]);
          want[i] = s.value / std::log(2.0);
          // Each term takes at most five roundings and log2(e)'s, tanhf two units; then they are added.
          const double dot = std::abs(double{p.scale} * dots[i]);
          const double capped = p.softcap > 0 ? std::min(dot, double{p.softcap}) : dot;
          bound[i] =
              16 * std::ldexp(dot + capped + added_sizes(p, b, h, row, key), -24) / std::log(2.0) + 1e-30;
          want_slope[i] = gradients[i] * (s.slope / p.scale);
          slope_bound[i] = 16 * std::ldexp(std::abs(gradients[i]), -24) * (1 + dot);
        }
      }
    }
  }
  const DeviceArray<float> x(dots), gradient(gradients);
  const DeviceArray<uint8_t> seen(count);
  const dim3 grid(static_cast<unsigned>(rows / kRowTile * (keys / kKeyTile)), static_cast<unsigned>(p.heads),
                  static_cast<unsigned>(p.batch));
  score_kernel<<<grid, 32>>>(make_features(problem.problem()), rows, keys, x.data(), gradient.data(),
                             seen.data());
  if (!cuda_test::ran("score_fragment", "a case")) return;
  const std::vector<float> got = x.read(), slopes = gradient.read();
  const auto width = static_cast<size_t>(keys);
  cuda_test::expect_equal("sees()", seen.read(), visible, width);
  cuda_test::expect_each(
      "scores", count, width,
      [&](size_t i) {
        return visible[i] != 0 ? std::abs(got[i] - want[i]) <= bound[i] : got[i] == -INFINITY;
      },
      [&](size_t i) {
        return std::to_string(got[i]) + " for " + std::to_string(want[i]) + " within " +
               std::to_string(bound[i]);
      });
  cuda_test::expect_each(
      "slopes", count, width,
      [&](size_t i) { return visible[i] == 0 || std::abs(slopes[i] - want_slope[i]) <= slope_bound[i]; },
      [&](size_t i) { return std::to_string(slopes[i]) + " for " + std::to_string(want_slope[i]); });
}

TEST(Masks, ScoresOfEachFeatureAndEachPair) {
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    SCOPED_TRACE(name(dtype));
    each_feature_and_each_pair(dtype, 7000, [](DenseCase& c) { check_scores(c); });
    if (HasFailure()) return;
  }
}

// ---- Ranges -----------------------------------------------------------------------------------------------

// keys_of_rows, keys_of_all_rows of 16 rows, and rows_of_keys of 64 keys: [batch][slab] pairs each.
__global__ void range_kernel(Features f, int slabs, int blocks, int2* some, int2* all, int2* rows) {
  const int batch = static_cast<int>(blockIdx.x);
  const Sequence s = sequence_of(f, batch);
  for (int i = static_cast<int>(threadIdx.x); i < slabs; i += 32) {
    if (i * kRowTile >= s.rows) continue;
    const Interval a = keys_of_rows(f, s, i * kRowTile, kRowTile),
                   b = keys_of_all_rows(f, s, i * kRowTile, kRowTile);
    some[batch * slabs + i] = make_int2(a.begin, a.end);
    all[batch * slabs + i] = make_int2(b.begin, b.end);
  }
  for (int i = static_cast<int>(threadIdx.x); i < blocks; i += 32) {
    const Interval r = rows_of_keys(f, s, i * kKeyTile, kKeyTile);
    rows[batch * blocks + i] = make_int2(r.begin, r.end);
  }
}

// An interval as a set; every empty one is the same.
std::string shown(int begin, int end) {
  return end <= begin ? "nothing" : std::to_string(begin) + " to " + std::to_string(end);
}

void check_ranges(DenseCase& c) {
  const AttentionProblem& p = c.p;
  const DeviceProblem problem(p, c.mask, tessera::cuda::Stream::of(nullptr));
  const int slabs = static_cast<int>(p.seqlen_q + kRowTile - 1) / kRowTile;
  const int blocks = static_cast<int>(p.seqlen_k + kKeyTile - 1) / kKeyTile + 1;
  const DeviceArray<int2> some(static_cast<size_t>(p.batch * slabs)),
      all(static_cast<size_t>(p.batch * slabs)), rows(static_cast<size_t>(p.batch * blocks));
  range_kernel<<<static_cast<unsigned>(p.batch), 32>>>(make_features(problem.problem()), slabs, blocks,
                                                       some.data(), all.data(), rows.data());
  if (!cuda_test::ran("ranges", "a case")) return;
  const std::vector<int2> got_some = some.read(), got_all = all.read(), got_rows = rows.read();
  for (int b = 0; b < p.batch; ++b) {
    const reference::Extent e = reference::extent(p, b);
    for (int i = 0; i * kRowTile < e.rows; ++i) {
      const int first = i * kRowTile, last = std::min<int>(first + kRowTile, static_cast<int>(e.rows));
      int begin = INT32_MAX, end = 0, all_begin = INT32_MAX, all_end = 0;
      for (int key = 0; key < e.keys; ++key) {
        int seen = 0;
        for (int row = first; row < last; ++row) seen += reference::visible(p, b, 0, row, key) ? 1 : 0;
        if (seen > 0) begin = std::min(begin, key), end = key + 1;
        if (seen == last - first) all_begin = std::min(all_begin, key), all_end = key + 1;
      }
      const int2 x = got_some[static_cast<size_t>(b * slabs + i)],
                 y = got_all[static_cast<size_t>(b * slabs + i)];
      EXPECT_EQ(shown(x.x, x.y), shown(begin, end)) << "keys of some of rows " << first << " on, batch " << b;
      EXPECT_EQ(shown(y.x, y.y), shown(all_begin, all_end))
          << "keys of all of rows " << first << " on, batch " << b;
    }
    for (int i = 0; i < blocks; ++i) {
      int begin = INT32_MAX, end = 0;
      for (int row = 0; row < e.rows; ++row) {
        bool seen = false;
        for (int key = i * kKeyTile; key < (i + 1) * kKeyTile; ++key)
          seen |= reference::visible(p, b, 0, row, key);
        if (seen) begin = std::min(begin, row), end = row + 1;
      }
      const int2 x = got_rows[static_cast<size_t>(b * blocks + i)];
      EXPECT_EQ(shown(x.x, x.y), shown(begin, end)) << "rows of keys " << i * kKeyTile << " on, batch " << b;
    }
  }
}

TEST(Masks, RangesOfRowsAndKeysAreExact) {
  const Feature positional[] = {Feature::causal, Feature::window, Feature::varlen, Feature::seqused,
                                Feature::leftpad};
  uint32_t seed = 7500;
  for (const Feature a : positional) {
    for (const Feature b : positional) {
      if (b < a) continue;  // lengths first, then what is used of them
      for (const auto& [seqlen_q, seqlen_k] : {std::pair{37, 150}, std::pair{150, 37}, std::pair{64, 64}}) {
        SCOPED_TRACE(std::string(name(a)) + " and " + name(b) + ", " + std::to_string(seqlen_q) + " rows, " +
                     std::to_string(seqlen_k) + " keys, seed " + std::to_string(seed));
        DenseCase c(DType::bf16, 4, seqlen_q, seqlen_k, 1, 8, seed++);
        c.add(a);
        if (b != a) c.add(b);
        check_ranges(c);
        if (HasFailure()) return;
      }
    }
  }
}

}  // namespace
}  // namespace tessera::attention::cuda
