// A plan of a decode step over the prefix tree of the caller's block tables (tessera/paged.h).
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <vector>

#include "bindings/cache.h"
#include "core/format.h"

namespace tessera::python {
namespace {

attention::TreeSharing sharing_of(const std::string& text) {
  if (text == "when_it_pays") return attention::TreeSharing::when_it_pays;
  if (text == "always") return attention::TreeSharing::always;
  if (text == "never") return attention::TreeSharing::never;
  raise_value_error(format("sharing={} must be when_it_pays, always or never", text));
}

class CacheTreePlan {
 public:
  // block_table [batch, max_blocks] and seqlens [batch] are the host's. Of options, dtype, scale, windows,
  // softcap, ALiBi, leftpad and the place count.
  CacheTreePlan(int heads, int kv_heads, int head_dim, int v_head_dim, int64_t num_blocks, int64_t block_size,
                In block_table, In seqlens, int64_t appended, int64_t reserve, const std::string& sharing,
                const Options& options)
      : slopes_(options.alibi_slopes), leftpad_(options.leftpad_k), batch_(Array(seqlens).elements()) {
    expect_places(options);
    attention::AttentionProblem problem;
    problem.batch = batch_;
    problem.seqlen_q = 1;
    problem.heads = heads;
    problem.kv_heads = kv_heads;
    problem.head_dim = head_dim;
    problem.v_head_dim = v_head_dim;
    problem.dtype = dtype_of(options.dtype, "k_cache");
    set_features(problem, options);
    attention::CacheTables tables;
    tables.num_blocks = num_blocks;
    tables.block_size = block_size;
    const Array table(block_table);
    expect_dtype(table, DType::i32, "block_table");
    expect_shape(table, {batch_, -1}, "block_table");
    if (table.strides[1] != 1 && table.shape[1] > 1 && table.elements() != 0)
      raise_value_error("block_table must be contiguous in its last dimension");
    tables.block_table = static_cast<const int32_t*>(table.data);
    tables.max_blocks = table.shape[1];
    tables.table_stride = table.strides[0];
    tables.seqlens = int32_vector(seqlens, batch_, "cache_seqlens");
    tables.appended = appended;
    attention::CacheTreeOptions tree_options;
    tree_options.reserve = reserve;
    tree_options.sharing = sharing_of(sharing);
    problem_ = problem;
    run(options.place, [&](Context& context) -> Status {
      TESSERA_ASSIGN_OR_RETURN(plan_,
                               attention::CacheTreePlan::create(context, problem, tables, tree_options));
      return {};
    });
  }

  void attend(AnyIn q, const Cache& cache, AnyOut o, AnyOut lse, const Options& options) const {
    CacheCall call(q, cache, o, lse, options);
    const attention::AttentionProblem &now = call.problem, &then = problem_;
    const auto same = [](const char* name, int64_t value, int64_t planned) {
      if (value != planned) raise_value_error(format("{}={} must be the plan's, {}", name, value, planned));
    };
    same("batch", now.batch, then.batch);
    same("seqlen_q", now.seqlen_q, then.seqlen_q);
    same("heads", now.heads, then.heads);
    same("kv_heads", now.kv_heads, then.kv_heads);
    same("head_dim", now.head_dim, then.head_dim);
    same("v_head_dim", now.v_head_dim, then.v_head_dim);
    if (now.dtype != then.dtype)
      raise_type_error(format("q has dtype {}; it must be the plan's", options.dtype));
    run(options.place, [&](Context& context) {
      const Status status = plan_->attend(context, call.view, call.append, call.tensors);
      call.stats->store();
      return status;
    });
  }

  // What is wrong with the lengths, or nothing.
  std::string refusal(In seqlens) const {
    const int32_t* lengths = int32_vector(seqlens, batch_, "cache_seqlens");
    return plan_->covers({lengths, static_cast<size_t>(batch_)}).message();
  }
  std::string explain() const { return plan_->explain(); }
  std::vector<uint64_t> reads() const {
    const attention::CacheReads reads = plan_->reads();
    return {reads.tiles, reads.shared_tiles, reads.unshared};
  }

 private:
  AnyIn slopes_, leftpad_;  // the plan points to their memory
  int64_t batch_;
  attention::AttentionProblem problem_;
  std::optional<attention::CacheTreePlan> plan_;
};

}  // namespace

void bind_cache_tree(nb::module_& module) {
  const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
  nb::class_<CacheTreePlan>(module, "CacheTreePlan")
      .def(nb::init<int, int, int, int, int64_t, int64_t, In, In, int64_t, int64_t, const std::string&,
                    const Options&>(),
           nb::arg("heads"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("v_head_dim"),
           nb::arg("num_blocks"), nb::arg("block_size"), array("block_table"), array("seqlens"),
           nb::arg("appended"), nb::arg("reserve"), nb::arg("sharing"), nb::arg("options"))
      .def("attend", &CacheTreePlan::attend, array("q"), nb::arg("cache"), array("out"), array("lse").none(),
           nb::arg("options"))
      .def("refusal", &CacheTreePlan::refusal, array("seqlens"))
      .def("explain", &CacheTreePlan::explain)
      .def("reads", &CacheTreePlan::reads);
}

}  // namespace tessera::python
