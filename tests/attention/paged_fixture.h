// A paged cache filled with random sequences, and their attention by the reference.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "attention/kv_storage.h"
#include "attention/paged.h"
#include "attention/reference/reference.h"
#include "attention/registry.h"
#include "core/context.h"

namespace tessera::attention {

inline constexpr uint32_t kSeed = 71829;

inline std::vector<float> random_values(size_t count, uint32_t seed, float scale = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

inline AttentionProblem make_problem(DType dtype, int heads, int kv_heads, int head_dim,
                                     int window_left = -1) {
  AttentionProblem problem;
  problem.heads = heads;
  problem.kv_heads = kv_heads;
  problem.head_dim = head_dim;
  problem.v_head_dim = head_dim;
  problem.dtype = dtype;
  problem.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  problem.mask.window_left = window_left;
  return problem;
}

// K, V and q of one sequence of `length` tokens, by position: k [length][kv_heads][head_dim]...
struct Sequence {
  int length = 0;
  std::vector<float> q, k, v;

  Sequence(const AttentionProblem& p, int length_in, uint32_t seed, float q_scale = 1.0f)
      : length(length_in),
        q(random_values(static_cast<size_t>(length_in) * p.heads * p.head_dim, seed, q_scale)),
        k(random_values(static_cast<size_t>(length_in) * p.kv_heads * p.head_dim, seed + 1)),
        v(random_values(static_cast<size_t>(length_in) * p.kv_heads * p.v_head_dim, seed + 2)) {}

  // The first `shared` tokens are those of `other`.
  void share(const Sequence& other, const AttentionProblem& p, int shared) {
    std::memcpy(k.data(), other.k.data(), sizeof(float) * size_t(shared) * size_t(p.kv_heads * p.head_dim));
    std::memcpy(v.data(), other.v.data(), sizeof(float) * size_t(shared) * size_t(p.kv_heads * p.v_head_dim));
  }
};

// Storage whose every row is NaN until it is written, with blocks handed out in a scrambled order.
class Cache {
 public:
  Cache(const AttentionProblem& p, int num_blocks, int layers = 1) : problem_(p) {
    auto made =
        KvStorage::create({p.dtype, p.kv_heads, p.head_dim, p.v_head_dim, kKeyTile}, layers, num_blocks);
    EXPECT_TRUE(made.ok()) << made.status().message();
    storage = std::move(made).value();
    poison();
    for (int block = 0; block < num_blocks; ++block) free_.push_back(block);
    std::mt19937 random(kSeed);
    std::shuffle(free_.begin(), free_.end(), random);
  }

  void poison() {
    for (int layer = 0; layer < storage.layers(); ++layer) {
      for (int block = 0; block < storage.num_blocks(); ++block) {
        for (int head = 0; head < storage.format().kv_heads; ++head) {
          // 0xffff is a NaN in bf16, 0xffffffff one in f32.
          std::memset(storage.mutable_pair(layer, block, head), 0xff, size_t(storage.format().pair_bytes()));
        }
      }
    }
  }

  int take() {
    const int block = free_.back();
    free_.pop_back();
    return block;
  }

  // Appends tokens [first, end) of `sequence` behind `table`, taking blocks as needed.
  void append(Context& context, const Sequence& sequence, int first, int end, std::vector<int32_t>& table,
              int layer = 0) {
    std::vector<int32_t> block, offset;
    for (int token = first; token < end; ++token) {
      if (token / kKeyTile >= static_cast<int>(table.size())) table.push_back(take());
      block.push_back(table[size_t(token / kKeyTile)]);
      offset.push_back(token % kKeyTile);
    }
    KvRows rows;
    rows.rows = end - first;
    rows.k_row_stride = problem_.kv_heads * problem_.head_dim;
    rows.v_row_stride = problem_.kv_heads * problem_.v_head_dim;
    rows.k = sequence.k.data() + first * rows.k_row_stride;
    rows.v = sequence.v.data() + first * rows.v_row_stride;
    rows.block = block.data();
    rows.offset = offset.data();
    storage.append(context, layer, rows);
  }

  KvStorage storage;

 private:
  AttentionProblem problem_;
  std::vector<int> free_;
};

// Rows of one sequence in a step: positions [first, first + rows).
struct StepRows {
  const Sequence* sequence;
  const std::vector<int32_t>* table;
  int first, rows;
};

// Runs one step; the rows of the result come in the order of `steps`.
inline std::vector<float> run_step(Context& context, const AttentionProblem& p, const KvStorage& storage,
                                   std::span<const StepRows> steps, WorkPlanOptions options = {},
                                   AttentionCounters* counters = nullptr) {
  std::vector<PagedSequence> sequences;
  std::vector<float> q;
  int32_t row = 0;
  for (const StepRows& step : steps) {
    sequences.push_back({row, step.rows, step.first, step.table->data()});
    row += step.rows;
    const size_t width = size_t(p.heads) * size_t(p.head_dim);
    q.insert(q.end(), step.sequence->q.begin() + long(size_t(step.first) * width),
             step.sequence->q.begin() + long(size_t(step.first + step.rows) * width));
  }
  const int64_t o_width = int64_t{p.heads} * p.v_head_dim;
  std::vector<float> o(static_cast<size_t>(row * o_width), std::nanf(""));
  options.threads = context.pool.size();
  const WorkPlan plan(sequences, p, options);
  paged_attention(context, p, storage, 0, plan, q.data(), int64_t{p.heads} * p.head_dim, o.data(), o_width);
  if (counters != nullptr) *counters = plan.counters();
  return o;
}

// The reference's rows [first, first + rows) of a sequence. `rounded`: K and V as bf16 holds them.
inline std::vector<double> reference_rows(const AttentionProblem& p, const Sequence& s, int first, int rows,
                                          bool rounded) {
  std::vector<float> k = s.k, v = s.v;
  if (rounded) {
    for (float& value : k) value = bf16_to_f32(f32_to_bf16(value));
    for (float& value : v) value = bf16_to_f32(f32_to_bf16(value));
  }
  AttentionProblem whole = p;
  whole.seqlen_q = rows;
  whole.seqlen_k = first + rows;
  std::vector<double> o(size_t(rows) * size_t(p.heads) * size_t(p.v_head_dim));
  reference::attention(
      whole,
      {s.q.data() + int64_t{first} * p.heads * p.head_dim, 0, int64_t{p.heads} * p.head_dim, p.head_dim},
      {k.data(), 0, int64_t{p.kv_heads} * p.head_dim, p.head_dim},
      {v.data(), 0, int64_t{p.kv_heads} * p.v_head_dim, p.v_head_dim}, o.data(), nullptr);
  return o;
}

}  // namespace tessera::attention
