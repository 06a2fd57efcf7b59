// CacheTreePlan: checks of the host's tables and of what a call brings along; the work is the device's, or
// attend_cache's on the CPU.
#include <algorithm>

#include "attention/cache_view.h"
#include "attention/device_kernels.h"
#include "core/boundary.h"
#include "core/context.h"
#include "core/format.h"
#include "tessera/paged.h"

namespace tessera::attention {
namespace {

constexpr int64_t kMost = int64_t{1} << 30;

Status refuse(const char* field, int64_t value, const std::string& limit) {
  return invalid_argument(format("{}={} must be {}", field, value, limit), field);
}
Status refuse_in(const char* field, int64_t sequence, int64_t value, const std::string& limit) {
  return invalid_argument(format("{}={} of sequence {} must be {}", field, value, sequence, limit), field);
}

Status check_problem(const AttentionProblem& p) {
  if (p.cu_seqlens_q != nullptr || p.cu_seqlens_k != nullptr) {
    return unsupported("cu_seqlens: a prefix tree takes one query row of every sequence", "cu_seqlens_q");
  }
  if (p.seqlen_q != 1) {
    return unsupported(
        format("seqlen_q={} of a prefix tree must be 1; attend_cache takes more rows", p.seqlen_q),
        "seqlen_q");
  }
  return p.batch < 0 || p.batch > kMost ? refuse("batch", p.batch, "from 0 to 2^30") : Status();
}

// The first of `keys` keys that the last position sees; leftpad, which the host need not know, aside.
int64_t first_seen(const AttentionProblem& p, int64_t keys) {
  return p.mask.window_left < 0 ? 0 : std::max<int64_t>(0, keys - 1 - p.mask.window_left);
}

// Tiles when every sequence walks its own table.
CacheReads reads_alone(const AttentionProblem& p, const CacheTables& t) {
  uint64_t tiles = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t keys = t.seqlens[b] + t.appended;
    tiles += static_cast<uint64_t>((keys + kKeyTile - 1) / kKeyTile - first_seen(p, keys) / kKeyTile);
  }
  tiles *= static_cast<uint64_t>(p.kv_heads);
  return {tiles, 0, tiles};
}

// Everything about tables that needs no device.
Status check_tables(const AttentionProblem& p, const CacheTables& t, const CacheTreeOptions& options) {
  if (t.struct_size != sizeof(CacheTables))
    return refuse("struct_size", t.struct_size, "sizeof(CacheTables) of this build");
  if (options.struct_size != sizeof(CacheTreeOptions))
    return refuse("struct_size", options.struct_size, "sizeof(CacheTreeOptions) of this build");
  if (options.reserve < 0 || options.reserve > kMost)
    return refuse("reserve", options.reserve, "from 0 to 2^30");
  if (t.num_blocks < 0 || t.num_blocks > kMost) return refuse("num_blocks", t.num_blocks, "from 0 to 2^30");
  if (t.block_size < 1 || t.block_size > kMost) return refuse("block_size", t.block_size, "from 1 to 2^30");
  if (t.max_blocks < 0 || t.max_blocks > kMost) return refuse("max_blocks", t.max_blocks, "from 0 to 2^30");
  if (t.table_stride < 0) return refuse("table_stride", t.table_stride, "at least 0");
  if (t.appended < 0 || t.appended > kMost) return refuse("appended", t.appended, "from 0 to 2^30");
  if (p.batch == 0) return {};
  if (t.block_table == nullptr) return invalid_argument("block_table is null", "block_table");
  if (t.seqlens == nullptr) return invalid_argument("seqlens is null", "seqlens");
  const int64_t capacity = std::min(kMost, t.max_blocks * t.block_size);
  const int64_t stride = t.table_stride > 0 ? t.table_stride : t.max_blocks;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t keys = t.seqlens[b] + t.appended;
    if (t.seqlens[b] < 0 || keys > capacity) {
      return refuse_in(
          "seqlens", b, t.seqlens[b],
          format("from 0 to {} (capacity {} less {} new keys)", capacity - t.appended, capacity, t.appended));
    }
    for (int64_t i = first_seen(p, keys) / t.block_size; i * t.block_size < keys; ++i) {
      const int32_t id = t.block_table[b * stride + i];
      if (id < 0 || id >= t.num_blocks)
        return refuse_in("block_table", b, id, format("from 0 to {} (entry {})", t.num_blocks - 1, i));
    }
  }
  return {};
}

}  // namespace

struct CacheTreePlan::Impl {
  AttentionProblem problem;
  CacheTables tables;                      // without the arrays
  std::unique_ptr<DeviceTreePlan> device;  // null: the CPU
  CacheReads cpu_reads;

  DeviceTreePlan::Limits limits(int64_t b) const {
    const int64_t capacity = std::min(kMost, tables.max_blocks * tables.block_size);
    if (device == nullptr) return {0, capacity};
    const DeviceTreePlan::Limits planned = device->limits(b);
    return {planned.least, std::min(planned.most, capacity)};
  }
  Status check_length(int64_t b, int64_t seqlen) const {
    const auto [least, most] = limits(b);
    const int64_t keys = seqlen + tables.appended;
    if (seqlen >= 0 && keys >= least && keys <= most) return {};
    return refuse_in("cache_seqlens", b, seqlen,
                     format("from {} to {} under this plan; make a new one",
                            std::max<int64_t>(0, least - tables.appended), most - tables.appended));
  }
  Status check_call(const CacheView& c, const CacheAppend& append) const {
    if (c.struct_size != sizeof(CacheView))
      return refuse("struct_size", c.struct_size, "sizeof(CacheView) of this build");
    if (problem.batch > 0 && c.block_table == nullptr)
      return invalid_argument("block_table is null: a plan is for paged caches", "block_table");
    for (const auto& [value, planned, field] :
         {std::tuple{c.num_blocks, tables.num_blocks, "num_blocks"},
          std::tuple{c.block_size, tables.block_size, "block_size"},
          std::tuple{c.max_blocks, tables.max_blocks, "max_blocks"},
          std::tuple{append.seqlen, tables.appended, "append.seqlen"}}) {
      if (value != planned) return refuse(field, value, format("the plan's, {}", planned));
    }
    if (c.seqlens != nullptr) return {};
    for (int64_t b = 0; b < problem.batch; ++b) TESSERA_RETURN_IF_ERROR(check_length(b, c.seqlen));
    return {};
  }
};

Result<CacheTreePlan> CacheTreePlan::create(Context& context, const AttentionProblem& problem,
                                            const CacheTables& tables, const CacheTreeOptions& options) {
  auto impl = std::make_unique<Impl>();
  TESSERA_RETURN_IF_ERROR(at_boundary([&]() -> Status {
    TESSERA_RETURN_IF_ERROR(check_problem(problem));
    if (context.attention != nullptr) {
      TESSERA_RETURN_IF_ERROR(context.attention->check_host_memory("block_table", tables.block_table));
      TESSERA_RETURN_IF_ERROR(context.attention->check_host_memory("seqlens", tables.seqlens));
    }
    TESSERA_RETURN_IF_ERROR(check_tables(problem, tables, options));
    impl->problem = problem;
    impl->tables = tables;
    impl->tables.block_table = impl->tables.seqlens = nullptr;
    if (context.attention != nullptr) {
      TESSERA_ASSIGN_OR_RETURN(impl->device, context.attention->plan_tree(problem, tables, options));
      return {};
    }
    TESSERA_RETURN_IF_ERROR(check_view_problem(problem));
    impl->cpu_reads = reads_alone(problem, tables);
    return {};
  }));
  return CacheTreePlan(std::move(impl));
}

Status CacheTreePlan::attend(Context& context, const CacheView& cache, const CacheAppend& append,
                             const CacheTensors& tensors) const {
  return at_boundary([&]() -> Status {
    if ((context.attention != nullptr) != (impl_->device != nullptr)) {
      return invalid_argument(
          format("context: the plan was made for the {} and this context is of the {}",
                 impl_->device != nullptr ? "GPU" : "CPU", impl_->device != nullptr ? "CPU" : "GPU"),
          "context");
    }
    TESSERA_RETURN_IF_ERROR(impl_->check_call(cache, append));
    if (impl_->device == nullptr) return attend_cache(context, impl_->problem, cache, append, tensors);
    return context.attention->attend_tree(*impl_->device, cache, append, tensors);
  });
}

Status CacheTreePlan::covers(std::span<const int32_t> seqlens) const {
  if (static_cast<int64_t>(seqlens.size()) != impl_->problem.batch)
    return refuse("seqlens", static_cast<int64_t>(seqlens.size()),
                  format("of the plan's batch, {}", impl_->problem.batch));
  for (size_t b = 0; b < seqlens.size(); ++b)
    TESSERA_RETURN_IF_ERROR(impl_->check_length(static_cast<int64_t>(b), seqlens[b]));
  return {};
}

CacheReads CacheTreePlan::reads() const {
  return impl_->device != nullptr ? impl_->device->reads() : impl_->cpu_reads;
}

std::string CacheTreePlan::explain() const {
  if (impl_->device != nullptr) return impl_->device->explain();
  return format("{} sequences on the CPU, each over its own table: {} tiles; a KvCache's CachePlan shares\n",
                impl_->problem.batch, impl_->cpu_reads.tiles);
}

CacheTreePlan::CacheTreePlan(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CacheTreePlan::CacheTreePlan(CacheTreePlan&&) noexcept = default;
CacheTreePlan& CacheTreePlan::operator=(CacheTreePlan&&) noexcept = default;
CacheTreePlan::~CacheTreePlan() = default;

}  // namespace tessera::attention
