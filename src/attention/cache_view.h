// A CacheView as the code behind attend_cache sees it: checked, with the sequences' lengths worked out.
#pragma once

#include <vector>

#include "attention/problem.h"
#include "tessera/paged.h"

namespace tessera::attention {

// One sequence of the call.
struct ViewSequence {
  int64_t batch;
  int64_t first_row, rows;  // of q: row counts inside the batch, or through all sequences with cu_seqlens_q
  int64_t old_keys, keys;   // before and after the append
  int64_t leftpad;
};

// What attend_cache can do of a problem, whatever the cache.
Status check_view_problem(const AttentionProblem& problem);

class CheckedView {
 public:
  // Everything that attend_cache promises to check. The structs must outlive it.
  static Result<CheckedView> create(const AttentionProblem& problem, const CacheView& cache,
                                    const CacheAppend& append, const CacheTensors& tensors);

  const std::vector<ViewSequence>& sequences() const { return sequences_; }
  int64_t element_bytes() const { return problem_->dtype == DType::f32 ? 4 : 2; }
  // Keys that row `row` of the sequence sees: [first, end), or {0, 0}.
  struct Range {
    int64_t first, end;
  };
  Range visible(const ViewSequence& sequence, int64_t row) const;
  // The same over all of its rows.
  Range visible(const ViewSequence& sequence) const;

  int64_t block_size() const { return cache_->block_size; }
  // How many keys from `key` on, at most up to `end`, lie one behind the other.
  int64_t run(int64_t key, int64_t end) const {
    const int64_t left = cache_->block_size - key % cache_->block_size;
    return end - key < left ? end - key : left;
  }
  char* k_row(const ViewSequence& sequence, int64_t key, int64_t kv_head) const {
    return row(cache_->k, sequence, key, kv_head);
  }
  char* v_row(const ViewSequence& sequence, int64_t key, int64_t kv_head) const {
    return row(cache_->v, sequence, key, kv_head);
  }
  int64_t k_row_bytes() const { return cache_->k.row_stride * element_bytes(); }
  int64_t v_row_bytes() const { return cache_->v.row_stride * element_bytes(); }
  int64_t k_head_bytes() const { return cache_->k.head_stride * element_bytes(); }
  int64_t v_head_bytes() const { return cache_->v.head_stride * element_bytes(); }
  // Whether the rows of all kv heads of a key lie in one piece of K and of V.
  bool heads_inside_rows() const {
    const auto inside = [&](const Strided<void*>& s, int64_t dim) {
      return s.head_stride >= 0 && (problem_->kv_heads - 1) * s.head_stride + dim <= s.row_stride;
    };
    return inside(cache_->k, problem_->head_dim) && inside(cache_->v, problem_->v_head_dim);
  }

 private:
  CheckedView(const AttentionProblem& problem, const CacheView& cache) : problem_(&problem), cache_(&cache) {}
  Status add_sequences(const CacheAppend& append);
  Status check_blocks(const CacheAppend& append) const;
  int64_t block_of(const ViewSequence& sequence, int64_t key) const;
  char* row(const Strided<void*>& s, const ViewSequence& sequence, int64_t key, int64_t kv_head) const {
    return static_cast<char*>(s.data) + (block_of(sequence, key) * s.batch_stride +
                                         key % cache_->block_size * s.row_stride + kv_head * s.head_stride) *
                                            element_bytes();
  }

  const AttentionProblem* problem_;
  const CacheView* cache_;
  std::vector<ViewSequence> sequences_;
};

}  // namespace tessera::attention
