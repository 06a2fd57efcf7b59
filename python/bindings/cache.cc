// Attention over the caller's cache: append, rotate, attend (tessera/paged.h).
#include "bindings/cache.h"

#include "bindings/rope.h"
#include "core/format.h"

namespace tessera::python {

CacheCall::CacheCall(const AnyIn& q, const Cache& cache, const AnyOut& o, const AnyOut& lse,
                     const Options& options) {
  expect_places(options);
  const std::pair<Array, const char*> arrays[] = {{q, "q"},
                                                  {cache.k_cache, "k_cache"},
                                                  {cache.v_cache, "v_cache"},
                                                  {cache.k_read, "k_cache"},
                                                  {cache.v_read, "v_cache"},
                                                  {cache.k, "k"},
                                                  {cache.v, "v"},
                                                  {cache.cos, "rotary_cos"},
                                                  {cache.sin, "rotary_sin"},
                                                  {cache.seqlens, "cache_seqlens"},
                                                  {cache.batch_idx, "cache_batch_idx"},
                                                  {cache.block_table, "block_table"},
                                                  {o, "out"},
                                                  {lse, "lse"}};
  for (const auto& [array, name] : arrays) expect_place(array, options.place, name);
  const DType dtype = dtype_of(options.dtype, "q");
  const bool varlen = static_cast<bool>(Array(options.cu_seqlens_q));
  const int rank = varlen ? 3 : 4;
  const Sizes q_sizes = sizes_of(q, dtype, rank, "q");
  const bool appends = static_cast<bool>(Array(cache.k));
  const Array k_cache = appends ? Array(cache.k_cache) : Array(cache.k_read);
  const Array v_cache = appends ? Array(cache.v_cache) : Array(cache.v_read);
  const Sizes k_sizes = sizes_of(k_cache, dtype, 4, "k_cache");
  const Sizes v_sizes = sizes_of(v_cache, dtype, 4, "v_cache");
  expect_sizes(v_cache, {k_sizes.batch, k_sizes.rows, k_sizes.heads, v_sizes.dim}, "v_cache");
  if (q_sizes.dim != k_sizes.dim) {
    raise_value_error(
        format("k_cache has head_dim {}; it must be q's head_dim, {}", k_sizes.dim, q_sizes.dim));
  }
  problem.dtype = dtype;
  problem.heads = narrow(q_sizes.heads, "heads");
  problem.kv_heads = narrow(k_sizes.heads, "kv_heads");
  problem.head_dim = narrow(q_sizes.dim, "head_dim");
  problem.v_head_dim = narrow(v_sizes.dim, "v_head_dim");
  problem.batch = q_sizes.batch;
  problem.seqlen_q = q_sizes.rows;
  if (varlen) set_cu_seqlens_q(problem, options, q_sizes.rows);
  set_features(problem, options);
  sizes_of(o, dtype, rank, "out");
  expect_sizes(o, {q_sizes.batch, q_sizes.rows, q_sizes.heads, v_sizes.dim}, "out");

  view.k = strided<void*>(k_cache);
  view.v = strided<void*>(v_cache);
  view.num_blocks = k_sizes.batch;
  view.block_size = k_sizes.rows;
  view.seqlens = int32_vector(cache.seqlens, problem.batch, "cache_seqlens");
  view.cache_batch_idx = int32_vector(cache.batch_idx, problem.batch, "cache_batch_idx");
  if (const Array table(cache.block_table); table) {
    expect_dtype(table, DType::i32, "block_table");
    expect_shape(table, {problem.batch, -1}, "block_table");
    if (table.strides[1] != 1 && table.shape[1] > 1 && table.elements() != 0)
      raise_value_error("block_table must be contiguous in its last dimension");
    view.block_table = static_cast<const int32_t*>(table.data);
    view.max_blocks = table.shape[1];
    view.table_stride = table.strides[0];
  }

  if (const Array k(cache.k), v(cache.v); appends) {
    const Sizes new_k = sizes_of(k, dtype, 4, "k");
    sizes_of(v, dtype, 4, "v");
    expect_sizes(k, {problem.batch, new_k.rows, k_sizes.heads, k_sizes.dim}, "k");
    expect_sizes(v, {problem.batch, new_k.rows, k_sizes.heads, v_sizes.dim}, "v");
    append.seqlen = new_k.rows;
    append.k = strided<const void*>(k);
    append.v = strided<const void*>(v);
    if (Array(cache.cos)) {
      rotary = rotary_of(cache.cos, cache.sin, cache.rotary_dtype, cache.interleaved);
      append.rotary = &rotary;
    }
  }

  tensors.q = strided<const void*>(q);
  tensors.o = strided<void*>(o);
  stats.emplace(lse, problem, q_sizes);
  tensors.lse = stats->data();
}

namespace {

void attend_cache(AnyIn q, const Cache& cache, AnyOut o, AnyOut lse, const Options& options) {
  CacheCall call(q, cache, o, lse, options);
  run(options.place, [&](Context& context) {
    zero_tail(o, call.problem.cu_seqlens_q, call.problem.batch);
    const Status status =
        attention::attend_cache(context, call.problem, call.view, call.append, call.tensors);
    call.stats->store();
    return status;
  });
}

}  // namespace

void bind_cache(nb::module_& module) {
  nb::class_<Cache>(module, "Cache", "The caller's cache and what a call appends to it.")
      .def(nb::init<>())
      .def_rw("k_cache", &Cache::k_cache)
      .def_rw("v_cache", &Cache::v_cache)
      .def_rw("k_read", &Cache::k_read)
      .def_rw("v_read", &Cache::v_read)
      .def_rw("k", &Cache::k)
      .def_rw("v", &Cache::v)
      .def_rw("cos", &Cache::cos)
      .def_rw("sin", &Cache::sin)
      .def_rw("rotary_dtype", &Cache::rotary_dtype)
      .def_rw("interleaved", &Cache::interleaved)
      .def_rw("seqlens", &Cache::seqlens)
      .def_rw("batch_idx", &Cache::batch_idx)
      .def_rw("block_table", &Cache::block_table);
  const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
  module.def("attend_cache", &attend_cache, array("q"), nb::arg("cache"), array("out"), array("lse").none(),
             nb::arg("options"));
}

}  // namespace tessera::python
