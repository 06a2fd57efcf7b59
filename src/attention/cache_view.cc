// attend_cache's checks and its append; the attention itself is in view_runner.cc.
#include "attention/cache_view.h"

#include <algorithm>
#include <cstring>

#include "attention/device_kernels.h"
#include "attention/rope.h"
#include "attention/view_runner.h"
#include "core/boundary.h"
#include "core/context.h"
#include "core/format.h"

namespace tessera::attention {
namespace {

constexpr int64_t kMost = int64_t{1} << 30;

Status refuse(const char* field, int64_t value, const char* limit) {
  return invalid_argument(format("{}={} must be {}", field, value, limit), field);
}
Status refuse_in(const char* field, int64_t batch, int64_t value, const std::string& limit) {
  return invalid_argument(format("{}={} of batch {} must be {}", field, value, batch, limit), field);
}

Status check_cache(const CacheView& c) {
  if (c.struct_size != sizeof(CacheView))
    return refuse("struct_size", c.struct_size, "sizeof(CacheView) of this build");
  if (c.num_blocks < 0 || c.num_blocks > kMost) return refuse("num_blocks", c.num_blocks, "from 0 to 2^30");
  if (c.block_size < 1 || c.block_size > kMost) return refuse("block_size", c.block_size, "from 1 to 2^30");
  if (c.seqlen < 0 || c.seqlen > kMost) return refuse("seqlen", c.seqlen, "from 0 to 2^30");
  if (c.block_table != nullptr) {
    if (c.cache_batch_idx != nullptr)
      return invalid_argument("cache_batch_idx must be null when block_table is given", "cache_batch_idx");
    if (c.max_blocks < 0 || c.max_blocks > kMost) return refuse("max_blocks", c.max_blocks, "from 0 to 2^30");
    if (c.table_stride < 0) return refuse("table_stride", c.table_stride, "at least 0");
  }
  if (c.num_blocks > 0 && (c.k.data == nullptr || c.v.data == nullptr)) {
    const char* field = c.k.data == nullptr ? "k_cache" : "v_cache";
    return invalid_argument(format("{} is null but has {} blocks", field, c.num_blocks), field);
  }
  return {};
}

Status check_tensor(const void* data, const char* field, int64_t rows) {
  if (data != nullptr || rows == 0) return {};
  return invalid_argument(format("{} is null but has {} rows", field, rows), field);
}

}  // namespace

Status check_view_problem(const AttentionProblem& p) {
  if (p.mask.tensor.kind != MaskKind::none)
    return unsupported("mask: a mask tensor over a cache is not supported; use causal, windows or leftpad",
                       "mask");
  if (p.mask.ancestors.tree_keys != 0)
    return unsupported("mask: ancestors over a cache are not supported", "mask");
  if (p.dropout.p != 0)
    return unsupported(format("dropout={} over a cache must be 0", p.dropout.p), "dropout");
  if (p.cu_seqlens_k != nullptr)
    return invalid_argument("cu_seqlens_k must be null: the cache's seqlens say how many keys there are",
                            "cu_seqlens_k");
  if (p.seqused_k != nullptr)
    return invalid_argument("seqused_k must be null: give the cache's seqlens", "seqused_k");
  // What concerns keys in tensors is the cache's business here.
  AttentionProblem plain = p;
  plain.leftpad_k = nullptr;
  plain.cu_seqlens_q = nullptr;
  plain.alibi_batch_stride = 0;
  plain.seqlen_k = 0;
  if (p.dtype == DType::f16) plain.dtype = DType::f32;
  return validate(plain);
}

Result<CheckedView> CheckedView::create(const AttentionProblem& problem, const CacheView& cache,
                                        const CacheAppend& append, const CacheTensors& tensors) {
  TESSERA_RETURN_IF_ERROR(check_view_problem(problem));
  TESSERA_RETURN_IF_ERROR(check_cache(cache));
  if (append.seqlen < 0 || append.seqlen > kMost)
    return refuse("append.seqlen", append.seqlen, "from 0 to 2^30");
  if (append.rotary != nullptr) {
    if (append.seqlen == 0)
      return invalid_argument("rotary is given but no new keys; rotate q with rope_forward", "rotary");
    TESSERA_RETURN_IF_ERROR(validate_rotary(*append.rotary, problem.head_dim));
  }
  CheckedView view(problem, cache);
  TESSERA_RETURN_IF_ERROR(view.add_sequences(append));
  const int64_t added = problem.batch * append.seqlen;
  int64_t rows = 0;
  for (const ViewSequence& sequence : view.sequences_) rows += sequence.rows;
  if (rows * problem.heads > INT32_MAX) return refuse("rows x heads", rows * problem.heads, "below 2^31");
  TESSERA_RETURN_IF_ERROR(check_tensor(append.k.data, "k", added));
  TESSERA_RETURN_IF_ERROR(check_tensor(append.v.data, "v", added));
  TESSERA_RETURN_IF_ERROR(check_tensor(tensors.q.data, "q", rows));
  TESSERA_RETURN_IF_ERROR(check_tensor(tensors.o.data, "o", rows));
  TESSERA_RETURN_IF_ERROR(view.check_blocks(append));
  return view;
}

Status CheckedView::add_sequences(const CacheAppend& append) {
  const AttentionProblem& p = *problem_;
  const CacheView& c = *cache_;
  const bool paged = c.block_table != nullptr;
  const int64_t capacity = paged ? c.max_blocks * c.block_size : c.block_size;
  if (p.cu_seqlens_q != nullptr && p.cu_seqlens_q[0] != 0)
    return refuse("cu_seqlens_q[0]", p.cu_seqlens_q[0], "0");
  for (int64_t b = 0; b < p.batch; ++b) {
    ViewSequence s{};
    s.batch = b;
    s.first_row = p.cu_seqlens_q != nullptr ? p.cu_seqlens_q[b] : 0;
    s.rows = p.cu_seqlens_q != nullptr ? p.cu_seqlens_q[b + 1] - int64_t{p.cu_seqlens_q[b]} : p.seqlen_q;
    if (s.rows < 0)
      return refuse_in("cu_seqlens_q", b, p.cu_seqlens_q[b + 1], "no smaller than the one before");
    s.old_keys = c.seqlens != nullptr ? c.seqlens[b] : c.seqlen;
    s.keys = s.old_keys + append.seqlen;
    if (s.old_keys < 0 || s.keys > std::min(capacity, kMost)) {
      return refuse_in("cache_seqlens", b, s.old_keys,
                       format("from 0 to {} (capacity {} less {} new keys)", capacity - append.seqlen,
                              capacity, append.seqlen));
    }
    s.leftpad = p.leftpad_k != nullptr ? p.leftpad_k[b] : 0;
    if (s.leftpad < 0 || s.leftpad > s.keys)
      return refuse_in("leftpad_k", b, s.leftpad, format("from 0 to its {} keys", s.keys));
    if (append.rotary != nullptr) {
      const int64_t last = s.old_keys + std::max(append.seqlen, s.rows) - 1;
      if (last >= append.rotary->positions) {
        return refuse_in("rotary.positions", b, append.rotary->positions,
                         format("above position {}, which is rotated", last));
      }
    }
    if (c.cache_batch_idx != nullptr && (c.cache_batch_idx[b] < 0 || c.cache_batch_idx[b] >= c.num_blocks)) {
      return refuse_in("cache_batch_idx", b, c.cache_batch_idx[b], format("from 0 to {}", c.num_blocks - 1));
    }
    if (!paged && c.cache_batch_idx == nullptr && b >= c.num_blocks)
      return refuse("batch", p.batch, "at most the cache's first extent");
    sequences_.push_back(s);
  }
  return {};
}

Status CheckedView::check_blocks(const CacheAppend& append) const {
  const CacheView& c = *cache_;
  struct Written {
    int64_t block, first, end, batch;
  };
  std::vector<Written> written;
  for (const ViewSequence& s : sequences_) {
    const auto check = [&](int64_t from, int64_t to, bool writes) -> Status {
      for (int64_t key = from; key < to; key += run(key, to)) {
        const int64_t block = block_of(s, key);
        if (block < 0 || block >= c.num_blocks) {
          return refuse_in("block_table", s.batch, block,
                           format("from 0 to {} (entry {})", c.num_blocks - 1, key / c.block_size));
        }
        const int64_t slot = key % c.block_size;
        if (writes) written.push_back({block, slot, slot + run(key, to), s.batch});
      }
      return {};
    };
    const Range seen = visible(s);
    TESSERA_RETURN_IF_ERROR(check(seen.first, seen.end, false));
    TESSERA_RETURN_IF_ERROR(check(s.old_keys, s.old_keys + append.seqlen, true));
  }
  std::sort(written.begin(), written.end(), [](const Written& a, const Written& b) {
    return a.block != b.block ? a.block < b.block : a.first < b.first;
  });
  for (size_t i = 0; i + 1 < written.size(); ++i) {
    const Written &a = written[i], &b = written[i + 1];
    if (a.block == b.block && b.first < a.end) {
      return invalid_argument(
          format("batches {} and {} both append to slot {} of block {}", a.batch, b.batch, b.first, b.block),
          c.block_table != nullptr ? "block_table" : "cache_batch_idx");
    }
  }
  return {};
}

int64_t CheckedView::block_of(const ViewSequence& sequence, int64_t key) const {
  const CacheView& c = *cache_;
  if (c.block_table != nullptr) {
    const int64_t stride = c.table_stride > 0 ? c.table_stride : c.max_blocks;
    return c.block_table[sequence.batch * stride + key / c.block_size];
  }
  return c.cache_batch_idx != nullptr ? c.cache_batch_idx[sequence.batch] : sequence.batch;
}

CheckedView::Range CheckedView::visible(const ViewSequence& s, int64_t row) const {
  const Mask& mask = problem_->mask;
  const int64_t position = row + s.keys - s.rows;
  int64_t first = s.leftpad, end = s.keys;
  if (mask.causal) end = std::min(end, position + 1);
  if (mask.window_right >= 0) end = std::min(end, position + mask.window_right + 1);
  if (mask.window_left >= 0) first = std::max(first, position - mask.window_left);
  if (end <= first) return {0, 0};
  return {first, end};
}

CheckedView::Range CheckedView::visible(const ViewSequence& s) const {
  Range all = {INT64_MAX, 0};
  for (int64_t row = 0; row < s.rows; ++row) {
    const Range seen = visible(s, row);
    if (seen.first == seen.end) continue;
    all = {std::min(all.first, seen.first), std::max(all.end, seen.end)};
  }
  return all.end == 0 ? Range{0, 0} : all;
}

namespace {

// Writes the new rows; who writes a row does not matter to its bits.
void append_rows(Context& context, const AttentionProblem& p, const CheckedView& view,
                 const CacheAppend& append) {
  const int64_t bytes = view.element_bytes();
  const int64_t k_bytes = p.head_dim * bytes, v_bytes = p.v_head_dim * bytes;
  const RowKernels& kernels = row_kernels();
  context.pool.parallel_for(p.batch * append.seqlen, 16, [&](int64_t begin, int64_t end, int) {
    std::unique_ptr<RowRotator> rotator;
    if (append.rotary != nullptr) rotator = std::make_unique<RowRotator>(*append.rotary, false);
    float wide[256];
    for (int64_t i = begin; i < end; ++i) {
      const ViewSequence& s = view.sequences()[static_cast<size_t>(i / append.seqlen)];
      const int64_t t = i % append.seqlen, key = s.old_keys + t;
      if (rotator != nullptr) rotator->move_to(key);
      for (int64_t head = 0; head < p.kv_heads; ++head) {
        const auto from = [&](const Strided<const void*>& x) {
          return static_cast<const char*>(x.data) +
                 (s.batch * x.batch_stride + t * x.row_stride + head * x.head_stride) * bytes;
        };
        std::memcpy(view.v_row(s, key, head), from(append.v), static_cast<size_t>(v_bytes));
        char* k = view.k_row(s, key, head);
        if (rotator == nullptr) {
          std::memcpy(k, from(append.k), static_cast<size_t>(k_bytes));
          continue;
        }
        kernels.widen(p.dtype, from(append.k), p.head_dim, wide);
        rotator->turn(wide);
        kernels.narrow(p.dtype, wide, p.head_dim, k);
      }
    }
  });
}

}  // namespace

Status attend_cache(Context& context, const AttentionProblem& problem, const CacheView& cache,
                    const CacheAppend& append, const CacheTensors& tensors) {
  return at_boundary([&]() -> Status {
    if (context.attention != nullptr) return context.attention->attend_cache(problem, cache, append, tensors);
    TESSERA_ASSIGN_OR_RETURN(const CheckedView view, CheckedView::create(problem, cache, append, tensors));
    TESSERA_ASSIGN_OR_RETURN(ViewRunner runner,
                             ViewRunner::create(context, problem, view, append.rotary, tensors));
    if (append.seqlen > 0) append_rows(context, problem, view, append);
    runner.run();
    return {};
  });
}

}  // namespace tessera::attention
