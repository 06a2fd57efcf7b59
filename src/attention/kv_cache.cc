// The public face of KvStorage, WorkPlan and paged_attention: checks, conversion, rotation.
#include <algorithm>
#include <memory>
#include <vector>

#include "attention/device_kernels.h"
#include "attention/execution.h"
#include "attention/kv_storage.h"
#include "attention/paged.h"
#include "attention/plan_runner.h"
#include "attention/rope.h"
#include "core/boundary.h"
#include "core/context.h"
#include "core/format.h"
#include "tessera/paged.h"

namespace tessera::attention {
namespace {

static_assert(kCacheBlockTokens == kKeyTile);
constexpr int64_t kMost = int64_t{1} << 30;

Status refuse(const char* field, int64_t value, const char* limit) {
  return invalid_argument(format("{}={} must be {}", field, value, limit), field);
}
Status refuse_in(const char* field, size_t sequence, int64_t value, const std::string& limit) {
  return invalid_argument(format("{}={} of sequence {} must be {}", field, value, sequence, limit), field);
}

// Lengths, rows and the blocks that hold positions [first(s), end(s)) of each sequence.
template <typename First>
Status check_sequences(std::span<const CacheSequence> sequences, int num_blocks, First&& first_needed) {
  int64_t total = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const CacheSequence& s = sequences[i];
    if (s.first_row < 0 || s.first_row > kMost)
      return refuse_in("first_row", i, s.first_row, "from 0 to 2^30");
    if (s.rows < 0 || s.rows > kMost) return refuse_in("rows", i, s.rows, "from 0 to 2^30");
    if (s.first_position < 0 || s.first_position > kMost)
      return refuse_in("first_position", i, s.first_position, "from 0 to 2^30");
    total += s.rows;
    if (s.rows == 0) continue;
    if (s.first_position + s.rows > s.num_blocks * kKeyTile) {
      return refuse_in(
          "num_blocks", i, s.num_blocks,
          format("at least {} for {} positions", (s.first_position + s.rows + kKeyTile - 1) / kKeyTile,
                 s.first_position + s.rows));
    }
    if (s.blocks == nullptr) return refuse_in("blocks", i, 0, "an array, not null");
    for (int64_t b = first_needed(s) / kKeyTile; b * kKeyTile < s.first_position + s.rows; ++b) {
      if (s.blocks[b] < 0 || s.blocks[b] >= num_blocks)
        return refuse_in("blocks", i, s.blocks[b], format("from 0 to {} (entry {})", num_blocks - 1, b));
    }
  }
  if (total > kMost) return refuse("rows", total, "at most 2^30 in all");
  return {};
}

// The largest row of q, k, v and o that is named, plus 1; refuses two sequences with one row.
Result<int64_t> count_rows(std::span<const CacheSequence> sequences) {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (const CacheSequence& s : sequences) {
    if (s.rows > 0) ranges.emplace_back(s.first_row, s.first_row + s.rows);
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 0; i + 1 < ranges.size(); ++i) {
    if (ranges[i + 1].first < ranges[i].second)
      return refuse("first_row", ranges[i + 1].first, "in one sequence only");
  }
  return ranges.empty() ? 0 : ranges.back().second;
}

Status check_positions(std::span<const CacheSequence> sequences, const Rotary* rotary, int head_dim) {
  if (rotary == nullptr) return {};
  TESSERA_RETURN_IF_ERROR(validate_rotary(*rotary, head_dim));
  for (size_t i = 0; i < sequences.size(); ++i) {
    const int64_t end = sequences[i].first_position + sequences[i].rows;
    if (sequences[i].rows > 0 && end > rotary->positions)
      return refuse_in("rotary.positions", i, rotary->positions, format("at least {}", end));
  }
  return {};
}

struct RowAt {
  int64_t row;
  int32_t position;
};
// Row rows[i] at its strides to f32, rotated, as row place(i) of `to` [place][heads][dim].
template <typename Place>
void widen_rows(Context& context, const std::vector<RowAt>& rows, DType dtype,
                const Strided<const void*>& from, int heads, int dim, const Rotary* rotary, float* to,
                Place&& place) {
  const RowKernels& kernels = row_kernels();
  context.pool.parallel_for(static_cast<int64_t>(rows.size()), 16, [&](int64_t begin, int64_t end, int) {
    std::unique_ptr<RowRotator> rotator;
    if (rotary != nullptr) rotator = std::make_unique<RowRotator>(*rotary, false);
    for (int64_t i = begin; i < end; ++i) {
      const RowAt& at = rows[static_cast<size_t>(i)];
      if (rotator != nullptr) rotator->move_to(at.position);
      for (int64_t head = 0; head < heads; ++head) {
        float* out = to + (place(static_cast<size_t>(i)) * heads + head) * dim;
        kernels.widen(dtype,
                      static_cast<const char*>(from.data) +
                          (at.row * from.row_stride + head * from.head_stride) * element_bytes(dtype),
                      dim, out);
        if (rotator != nullptr) rotator->turn(out);
      }
    }
  });
}

std::vector<RowAt> rows_of(std::span<const CacheSequence> sequences) {
  std::vector<RowAt> rows;
  for (const CacheSequence& s : sequences) {
    for (int64_t r = 0; r < s.rows; ++r)
      rows.push_back({s.first_row + r, static_cast<int32_t>(s.first_position + r)});
  }
  return rows;
}

}  // namespace

struct KvCache::Impl {
  KvCacheOptions options;
  KvStorage storage;
};

Result<KvCache> KvCache::create(const KvCacheOptions& options) {
  if (options.struct_size != sizeof(KvCacheOptions))
    return refuse("struct_size", options.struct_size, "sizeof(KvCacheOptions) of this build");
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  if (options.v_head_dim == 0) impl->options.v_head_dim = options.head_dim;
  const KvFormat format{options.dtype, options.kv_heads, options.head_dim, impl->options.v_head_dim,
                        kKeyTile};
  TESSERA_ASSIGN_OR_RETURN(impl->storage, KvStorage::create(format, options.layers, options.num_blocks));
  return KvCache(std::move(impl));
}

KvCache::KvCache(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
KvCache::KvCache(KvCache&&) noexcept = default;
KvCache& KvCache::operator=(KvCache&&) noexcept = default;
KvCache::~KvCache() = default;

const KvCacheOptions& KvCache::options() const {
  return impl_->options;
}
int64_t KvCache::bytes() const {
  return impl_->storage.bytes();
}
int64_t KvCache::bytes_per_block() const {
  return impl_->storage.bytes_per_block();
}

Status KvCache::append(Context& context, int layer, std::span<const CacheSequence> sequences, DType dtype,
                       const Strided<const void*>& k, const Strided<const void*>& v, const Rotary* rotary) {
  TESSERA_RETURN_IF_ERROR(only_on_cpu(context, "KvCache::append"));
  return at_boundary([&]() -> Status {
    KvStorage& storage = impl_->storage;
    const KvFormat& format = storage.format();
    if (layer < 0 || layer >= storage.layers()) return refuse("layer", layer, "one of the cache's");
    if (!is_float(dtype))
      return unsupported(tessera::format("dtype={} is not supported; use f32, f16 or bf16", name(dtype)),
                         "dtype");
    TESSERA_RETURN_IF_ERROR(check_sequences(sequences, storage.num_blocks(),
                                            [](const CacheSequence& s) { return s.first_position; }));
    TESSERA_RETURN_IF_ERROR(check_positions(sequences, rotary, format.head_dim));
    const std::vector<RowAt> rows = rows_of(sequences);
    if (rows.empty()) return {};
    if (k.data == nullptr || v.data == nullptr) {
      const char* field = k.data == nullptr ? "k" : "v";
      return invalid_argument(tessera::format("{} is null but has {} rows", field, rows.size()), field);
    }
    std::vector<int32_t> block, offset;
    std::vector<int64_t> slots;
    for (const CacheSequence& s : sequences) {
      for (int64_t position = s.first_position; position < s.first_position + s.rows; ++position) {
        block.push_back(s.blocks[position / kKeyTile]);
        offset.push_back(static_cast<int32_t>(position % kKeyTile));
        slots.push_back(int64_t{block.back()} * kKeyTile + offset.back());
      }
    }
    std::sort(slots.begin(), slots.end());
    if (const auto twice = std::adjacent_find(slots.begin(), slots.end()); twice != slots.end())
      return refuse("blocks", *twice / kKeyTile, "written by one row a slot; copy the block first");

    const int64_t k_width = int64_t{format.kv_heads} * format.head_dim;
    const int64_t v_width = int64_t{format.kv_heads} * format.v_head_dim;
    const size_t floats = rows.size() * static_cast<size_t>(k_width + v_width);
    float* wide = static_cast<float*>(context.workspace(0).get(kInputSlot, floats * sizeof(float)));
    float* wide_v = wide + static_cast<int64_t>(rows.size()) * k_width;
    const auto in_order = [](size_t i) { return static_cast<int64_t>(i); };
    widen_rows(context, rows, dtype, k, format.kv_heads, format.head_dim, rotary, wide, in_order);
    widen_rows(context, rows, dtype, v, format.kv_heads, format.v_head_dim, nullptr, wide_v, in_order);
    storage.append(
        context, layer,
        {static_cast<int64_t>(rows.size()), wide, k_width, wide_v, v_width, block.data(), offset.data()});
    return {};
  });
}

Status KvCache::copy_rows(int source, int destination, int first, int count) {
  const int blocks = impl_->storage.num_blocks();
  if (source < 0 || source >= blocks) return refuse("source", source, "a block of the cache");
  if (destination < 0 || destination >= blocks)
    return refuse("destination", destination, "a block of the cache");
  if (first < 0 || first > kKeyTile) return refuse("first", first, "from 0 to 64");
  if (count < 0 || count > kKeyTile - first)
    return refuse("count", count, "at least 0, and first + count at most 64");
  impl_->storage.copy_rows(source, destination, first, count);
  return {};
}

Status KvCache::read(int layer, int block, int kv_head, int first, int count, float* k, float* v) const {
  const KvStorage& storage = impl_->storage;
  if (layer < 0 || layer >= storage.layers()) return refuse("layer", layer, "one of the cache's");
  if (block < 0 || block >= storage.num_blocks()) return refuse("block", block, "a block of the cache");
  if (kv_head < 0 || kv_head >= storage.format().kv_heads)
    return refuse("kv_head", kv_head, "one of the cache's");
  if (first < 0 || first > kKeyTile) return refuse("first", first, "from 0 to 64");
  if (count < 0 || count > kKeyTile - first)
    return refuse("count", count, "at least 0, and first + count at most 64");
  storage.read(layer, block, kv_head, first, count, k, v);
  return {};
}

struct CachePlan::Impl {
  Impl(AttentionProblem problem_in, std::span<const PagedSequence> paged, const WorkPlanOptions& options)
      : problem(problem_in), plan(paged, problem, options) {}
  AttentionProblem problem;
  WorkPlan plan;
  std::vector<CacheSequence> sequences;  // their `blocks` are not used after create()
  int64_t rows = 0;                      // of q and o
  int num_blocks = 0;
};

Result<CachePlan> CachePlan::create(Context& context, const KvCache& cache, const AttentionProblem& problem,
                                    std::span<const CacheSequence> sequences,
                                    const CachePlanOptions& options) {
  TESSERA_RETURN_IF_ERROR(only_on_cpu(context, "CachePlan::create"));
  std::unique_ptr<Impl> impl;
  const Status status = at_boundary([&]() -> Status {
    if (problem.mask.tensor.kind != MaskKind::none || problem.mask.ancestors.tree_keys != 0)
      return unsupported("mask: tensors and ancestors over a cache are not supported; use causal and windows",
                         "mask");
    if (problem.dropout.p != 0)
      return unsupported(format("dropout={} over a cache must be 0", problem.dropout.p), "dropout");
    if (problem.cu_seqlens_q != nullptr || problem.cu_seqlens_k != nullptr || problem.seqused_k != nullptr ||
        problem.leftpad_k != nullptr) {
      return invalid_argument(
          "cu_seqlens, seqused_k and leftpad_k must be null: the sequences say their lengths",
          "cu_seqlens_q");
    }
    if (problem.alibi_batch_stride != 0)
      return unsupported("alibi_batch_stride must be 0: one set of slopes for all sequences",
                         "alibi_batch_stride");
    AttentionProblem own = problem;
    own.batch = 1;
    own.seqlen_q = own.seqlen_k = 0;
    TESSERA_RETURN_IF_ERROR(validate(own));
    const KvCacheOptions& held = cache.options();
    if (own.dtype != held.dtype) {
      return invalid_argument(
          format("dtype={} must be the cache's, {}; q may differ", name(own.dtype), name(held.dtype)),
          "dtype");
    }
    for (const auto& [asked, there, field] : {std::tuple{own.kv_heads, held.kv_heads, "kv_heads"},
                                              {own.head_dim, held.head_dim, "head_dim"},
                                              {own.v_head_dim, held.v_head_dim, "v_head_dim"}}) {
      if (asked != there)
        return invalid_argument(format("{}={} must be the cache's, {}", field, asked, there), field);
    }
    TESSERA_RETURN_IF_ERROR(check_sequences(sequences, held.num_blocks, [&](const CacheSequence& s) {
      const int64_t left = own.mask.window_left;
      return left < 0 ? 0 : std::max<int64_t>(0, s.first_position - left);
    }));
    TESSERA_ASSIGN_OR_RETURN(const int64_t rows, count_rows(sequences));
    if (rows * own.heads > INT32_MAX) return refuse("rows x heads", rows * own.heads, "below 2^31");
    std::vector<PagedSequence> paged;
    for (const CacheSequence& s : sequences) {
      PagedSequence one;
      one.first_row = static_cast<int32_t>(s.first_row);
      one.rows = static_cast<int32_t>(s.rows);
      one.first_position = static_cast<int32_t>(s.first_position);
      one.blocks = s.blocks;
      paged.push_back(one);
    }
    WorkPlanOptions plan_options;
    plan_options.threads = context.pool.size();
    plan_options.two_phase = options.share;
    impl = std::make_unique<Impl>(own, paged, plan_options);
    impl->sequences.assign(sequences.begin(), sequences.end());
    impl->rows = rows;
    impl->num_blocks = held.num_blocks;
    return {};
  });
  if (!status.ok()) return status;
  return CachePlan(std::move(impl));
}

CachePlan::CachePlan(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CachePlan::CachePlan(CachePlan&&) noexcept = default;
CachePlan& CachePlan::operator=(CachePlan&&) noexcept = default;
CachePlan::~CachePlan() = default;

Status CachePlan::attend(Context& context, const KvCache& cache, int layer, const CacheQuery& query) const {
  TESSERA_RETURN_IF_ERROR(only_on_cpu(context, "CachePlan::attend"));
  return at_boundary([&]() -> Status {
    const AttentionProblem& p = impl_->problem;
    const KvStorage& storage = cache.impl_->storage;
    const KvFormat& format = storage.format();
    if (layer < 0 || layer >= storage.layers()) return refuse("layer", layer, "one of the cache's");
    if (format.dtype != p.dtype || format.kv_heads != p.kv_heads || format.head_dim != p.head_dim ||
        format.v_head_dim != p.v_head_dim || storage.num_blocks() < impl_->num_blocks) {
      return invalid_argument("cache: it is not the one that the plan was made for", "cache");
    }
    if (!is_float(query.dtype)) {
      return unsupported(
          tessera::format("dtype={} of q is not supported; use f32, f16 or bf16", name(query.dtype)),
          "dtype");
    }
    TESSERA_RETURN_IF_ERROR(check_positions(impl_->sequences, query.rotary, p.head_dim));
    if (impl_->rows == 0) return {};
    if (query.q.data == nullptr || query.o.data == nullptr) {
      const char* field = query.q.data == nullptr ? "q" : "o";
      return invalid_argument(tessera::format("{} is null but has {} rows", field, impl_->rows), field);
    }
    RowsIo io;
    io.seqlen = impl_->rows;
    io.lse = query.lse;
    io.q = query.q;
    io.o = query.o;
    if (query.dtype == DType::f32 && query.rotary == nullptr) {
      PlanRunner(context, p, storage, layer, impl_->plan, io).run();
      return {};
    }
    // Rows of another dtype, or to rotate, pass through f32: a step's rows are few beside its keys.
    const std::vector<RowAt> rows = rows_of(impl_->sequences);
    const int64_t q_width = int64_t{p.heads} * p.head_dim, o_width = int64_t{p.heads} * p.v_head_dim;
    const size_t floats = static_cast<size_t>(impl_->rows * (q_width + o_width));
    float* q = static_cast<float*>(context.workspace(0).get(kInputSlot, floats * sizeof(float)));
    float* o = q + impl_->rows * q_width;
    widen_rows(context, rows, query.dtype, query.q, p.heads, p.head_dim, query.rotary, q,
               [&](size_t i) { return rows[i].row; });
    io.q = {q, 0, q_width, p.head_dim};
    io.o = {o, 0, o_width, p.v_head_dim};
    PlanRunner(context, p, storage, layer, impl_->plan, io).run();
    const RowKernels& kernels = row_kernels();
    context.pool.parallel_for(static_cast<int64_t>(rows.size()), 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = rows[static_cast<size_t>(i)].row;
        for (int64_t head = 0; head < p.heads; ++head) {
          kernels.narrow(
              query.dtype, o + row * o_width + head * p.v_head_dim, p.v_head_dim,
              static_cast<char*>(query.o.data) +
                  (row * query.o.row_stride + head * query.o.head_stride) * element_bytes(query.dtype));
        }
      }
    });
    return {};
  });
}

CacheReads CachePlan::reads() const {
  const AttentionCounters planned = impl_->plan.planned_reads();
  return {planned.block_reads, planned.shared_block_reads,
          static_cast<uint64_t>(impl_->plan.unshared_reads())};
}
std::string CachePlan::explain() const {
  return impl_->plan.explain();
}

Status tree_attention(Context& context, const AttentionProblem& problem, const KvCache& cache, int layer,
                      std::span<const CacheSequence> sequences, const CacheQuery& query) {
  TESSERA_ASSIGN_OR_RETURN(const CachePlan plan, CachePlan::create(context, cache, problem, sequences));
  return plan.attend(context, cache, layer, query);
}

}  // namespace tessera::attention
