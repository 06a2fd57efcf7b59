// forward, backward and what their tests need.
#include <nanobind/stl/vector.h>

#include "attention/dropout.h"
#include "bindings/options.h"
#include "core/format.h"
#include "tessera/alibi.h"
#include "tessera/cuda.h"

namespace tessera::python {
namespace {

using attention::AttentionProblem;
using attention::MaskKind;

attention::MaskTensor mask_tensor(const Options& options, const AttentionProblem& p) {
  const Array mask(options.mask);
  attention::MaskTensor out;
  if (!mask) return out;
  if (options.mask_dtype == "bool") {
    out.kind = MaskKind::boolean;
    if (mask.type.bits != 8) raise_type_error("mask must have elements of one byte");
  } else {
    out.kind = MaskKind::additive;
    out.dtype = dtype_of(options.mask_dtype, "mask");
    expect_dtype(mask, out.dtype, "mask");
  }
  if (mask.ndim > 4) raise_value_error(format("mask has {} dimensions; at most 4 are allowed", mask.ndim));
  out.data = mask.data;
  const int64_t lengths[4] = {p.batch, p.heads, p.seqlen_q, p.seqlen_k};
  int64_t* strides[4] = {&out.batch_stride, &out.head_stride, &out.row_stride, &out.key_stride};
  const char* names[4] = {"batch", "heads", "seqlen_q", "seqlen_k"};
  for (int i = 0; i < mask.ndim; ++i) {
    const int axis = 4 - mask.ndim + i;
    if (mask.shape[i] == 1) continue;  // broadcasts: stride 0
    if (mask.shape[i] != lengths[axis]) {
      raise_value_error(format("mask has {} in dimension {}; it must be {}={} or 1", mask.shape[i], i,
                               names[axis], lengths[axis]));
    }
    *strides[axis] = mask.strides[i];
  }
  return out;
}

AttentionProblem problem_of(const Options& options, const Sizes& q, const Sizes& k, const Sizes& v) {
  AttentionProblem p;
  p.dtype = dtype_of(options.dtype, "q");
  if (k.rows != v.rows || k.heads != v.heads || k.batch != v.batch) {
    raise_value_error("k and v must agree in every dimension but the last");
  }
  if (q.dim != k.dim) {
    raise_value_error(format("k has head_dim {}; it must be q's head_dim, {}", k.dim, q.dim));
  }
  p.heads = narrow(q.heads, "heads");
  p.kv_heads = narrow(k.heads, "kv_heads");
  p.head_dim = narrow(q.dim, "head_dim");
  p.v_head_dim = narrow(v.dim, "v_head_dim");
  if (Array(options.cu_seqlens_q)) {
    set_cu_seqlens_q(p, options, q.rows);
    set_cu_seqlens_k(p, options, k.rows);
  } else {
    if (q.batch != k.batch) {
      raise_value_error(format("k has batch {}; it must be q's batch, {}", k.batch, q.batch));
    }
    p.batch = q.batch;
    p.seqlen_q = q.rows;
    p.seqlen_k = k.rows;
  }
  p.mask.tensor = mask_tensor(options, p);
  set_features(p, options);
  return p;
}

void forward(AnyIn q, AnyIn k, AnyIn v, AnyOut o, AnyOut lse, const Options& options) {
  expect_places(options);
  for (const auto& [array, name] :
       {std::pair{Array(q), "q"}, {Array(k), "k"}, {Array(v), "v"}, {Array(o), "out"}, {Array(lse), "lse"}}) {
    expect_place(array, options.place, name);
  }
  const DType dtype = dtype_of(options.dtype, "q");
  const int rank = Array(options.cu_seqlens_q) ? 3 : 4;
  const Sizes q_sizes = sizes_of(q, dtype, rank, "q"), k_sizes = sizes_of(k, dtype, rank, "k");
  const Sizes v_sizes = sizes_of(v, dtype, rank, "v");
  const AttentionProblem problem = problem_of(options, q_sizes, k_sizes, v_sizes);
  sizes_of(o, dtype, rank, "out");
  expect_sizes(o, {q_sizes.batch, q_sizes.rows, q_sizes.heads, v_sizes.dim}, "out");
  Lse stats(lse, problem, q_sizes);

  attention::ForwardTensors tensors;
  tensors.q = strided<const void*>(q);
  tensors.k = strided<const void*>(k);
  tensors.v = strided<const void*>(v);
  tensors.o = strided<void*>(o);
  tensors.lse = stats.data();
  run(options.place, [&](Context& context) {
    zero_tail(o, problem.cu_seqlens_q, problem.batch);
    const Status status = attention::forward(context, problem, tensors);
    stats.store();
    return status;
  });
}

void backward(AnyIn dout, AnyIn q, AnyIn k, AnyIn v, AnyIn o, AnyIn lse, AnyOut dq, AnyOut dk, AnyOut dv,
              const Options& options) {
  expect_places(options);
  for (const auto& [array, name] : {std::pair{Array(dout), "dout"},
                                    {Array(q), "q"},
                                    {Array(k), "k"},
                                    {Array(v), "v"},
                                    {Array(o), "out"},
                                    {Array(lse), "lse"},
                                    {Array(dq), "dq"},
                                    {Array(dk), "dk"},
                                    {Array(dv), "dv"}}) {
    expect_place(array, options.place, name);
  }
  const DType dtype = dtype_of(options.dtype, "q");
  const int rank = Array(options.cu_seqlens_q) ? 3 : 4;
  const Sizes q_sizes = sizes_of(q, dtype, rank, "q"), k_sizes = sizes_of(k, dtype, rank, "k");
  const Sizes v_sizes = sizes_of(v, dtype, rank, "v");
  const AttentionProblem problem = problem_of(options, q_sizes, k_sizes, v_sizes);
  const Sizes o_sizes{q_sizes.batch, q_sizes.rows, q_sizes.heads, v_sizes.dim};
  const auto expect = [&](const Array& array, const Sizes& sizes, const char* name) {
    sizes_of(array, dtype, rank, name);
    expect_sizes(array, sizes, name);
  };
  expect(dout, o_sizes, "dout");
  expect(o, o_sizes, "out");
  expect(dq, q_sizes, "dq");
  expect(dk, k_sizes, "dk");
  expect(dv, v_sizes, "dv");

  attention::BackwardTensors tensors;
  tensors.q = strided<const void*>(q);
  tensors.k = strided<const void*>(k);
  tensors.v = strided<const void*>(v);
  tensors.o = strided<const void*>(o);
  tensors.dout = strided<const void*>(dout);
  Lse stats(lse, problem, q_sizes);
  stats.load();
  tensors.lse = stats.data();
  if (tensors.lse == nullptr) raise_type_error("lse is None");
  tensors.dq = strided<void*>(dq);
  tensors.dk = strided<void*>(dk);
  tensors.dv = strided<void*>(dv);
  run(options.place, [&](Context& context) {
    zero_tail(dq, problem.cu_seqlens_q, problem.batch);
    zero_tail(dk, problem.cu_seqlens_k, problem.batch);
    zero_tail(dv, problem.cu_seqlens_k, problem.batch);
    return attention::backward(context, problem, tensors);
  });
}

// keep[batch, heads, seqlen_q, seqlen_k], uint8: 1 where dropout keeps the probability.
void dropout_mask(Out keep, float p, uint64_t seed, uint64_t offset) {
  const Array out(keep);
  if (out.type.bits != 8 || out.ndim != 4) raise_type_error("keep must be uint8 of 4 dimensions");
  const attention::DropoutKey key = attention::dropout_key({.p = p, .seed = seed, .offset = offset});
  for (int64_t b = 0; b < out.shape[0]; ++b) {
    for (int64_t h = 0; h < out.shape[1]; ++h) {
      for (int64_t r = 0; r < out.shape[2]; ++r) {
        for (int64_t c = 0; c < out.shape[3]; ++c) {
          const auto words = attention::dropout_bytes(key, b, h, r, c / 16);
          const uint32_t byte = words[c % 16 / 4] >> (8 * (c % 4)) & 255u;
          const int64_t at =
              b * out.strides[0] + h * out.strides[1] + r * out.strides[2] + c * out.strides[3];
          static_cast<uint8_t*>(out.data)[at] = byte <= key.threshold;
        }
      }
    }
  }
}

}  // namespace

void bind_attention(nb::module_& module) {
  nb::class_<Options>(module, "Options", "What a call computes, but for its tensors.")
      .def(nb::init<>())
      .def_rw("dtype", &Options::dtype)
      .def_rw("scale", &Options::scale)
      .def_rw("causal", &Options::causal)
      .def_rw("window_left", &Options::window_left)
      .def_rw("window_right", &Options::window_right)
      .def_rw("softcap", &Options::softcap)
      .def_rw("mask", &Options::mask)
      .def_rw("mask_dtype", &Options::mask_dtype)
      .def_rw("alibi_slopes", &Options::alibi_slopes)
      .def_rw("cu_seqlens_q", &Options::cu_seqlens_q)
      .def_rw("cu_seqlens_k", &Options::cu_seqlens_k)
      .def_rw("max_seqlen_q", &Options::max_seqlen_q)
      .def_rw("max_seqlen_k", &Options::max_seqlen_k)
      .def_rw("seqused_k", &Options::seqused_k)
      .def_rw("leftpad_k", &Options::leftpad_k)
      .def_rw("dropout_p", &Options::dropout_p)
      .def_rw("seed", &Options::seed)
      .def_rw("offset", &Options::offset)
      .def_prop_rw(
          "device", [](const Options& o) { return o.place.device; },
          [](Options& o, int device) { o.place.device = device; })
      .def_prop_rw(
          "stream", [](const Options& o) { return o.place.stream; },
          [](Options& o, uint64_t stream) { o.place.stream = stream; })
      .def_prop_rw(
          "allocate", [](const Options& o) { return o.place.allocate; },
          [](Options& o, nb::object allocate) { o.place.allocate = std::move(allocate); }, nb::arg().none());
  module.def(
      "cuda_devices",
      [] {
        const Result<int> count = cuda_device_count();
        return count.ok() ? std::to_string(*count) : count.status().message();
      },
      "How many CUDA devices there are, or why none.");
  const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
  module.def("forward", &forward, array("q"), array("k"), array("v"), array("out"), array("lse").none(),
             nb::arg("options"));
  module.def("backward", &backward, array("dout"), array("q"), array("k"), array("v"), array("out"),
             array("lse"), array("dq"), array("dk"), array("dv"), nb::arg("options"));
  module.def(
      "alibi_slopes",
      [](int heads) {
        auto slopes = attention::alibi_slopes(heads);
        raise_if_error(slopes.status());
        return *slopes;
      },
      nb::arg("heads"));
  module.def("dropout_mask", &dropout_mask, array("keep"), nb::arg("p"), nb::arg("seed"), nb::arg("offset"));
}

}  // namespace tessera::python
