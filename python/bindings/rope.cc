// Rotary embedding, forward and backward, and the joining of partial results.
#include "bindings/rope.h"

#include <nanobind/stl/vector.h>

#include <climits>
#include <vector>

#include "bindings/options.h"
#include "core/format.h"
#include "tessera/merge.h"

namespace tessera::python {

attention::Rotary rotary_of(const Array& cos, const Array& sin, const std::string& dtype, bool interleaved) {
  attention::Rotary rotary;
  rotary.dtype = dtype_of(dtype, "rotary_cos");
  expect_dtype(cos, rotary.dtype, "rotary_cos");
  if (!sin) raise_type_error("rotary_sin is None");
  expect_dtype(sin, rotary.dtype, "rotary_sin");
  expect_shape(cos, {-1, -1}, "rotary_cos");
  expect_shape(sin, {cos.shape[0], cos.shape[1]}, "rotary_sin");
  for (const Array* table : {&cos, &sin}) {
    if (table->shape[1] > 1 && table->strides[1] != 1) {
      raise_value_error("rotary_cos and rotary_sin must be contiguous in their last dimension");
    }
  }
  if (cos.shape[0] > 1 && cos.strides[0] != sin.strides[0]) {
    raise_value_error("rotary_cos and rotary_sin must have the same strides");
  }
  if (cos.shape[1] < 1 || cos.shape[1] > INT_MAX / 2)
    raise_value_error("rotary_cos has no dimensions to rotate");
  rotary.style = interleaved ? attention::RopeStyle::interleaved : attention::RopeStyle::half;
  rotary.rotary_dim = static_cast<int>(2 * cos.shape[1]);
  rotary.cos = cos.data;
  rotary.sin = sin.data;
  rotary.positions = cos.shape[0];
  rotary.row_stride = cos.shape[0] > 1 ? cos.strides[0] : cos.shape[1];
  return rotary;
}

namespace {

void rotary(AnyIn x, AnyOut out, AnyIn cos, AnyIn sin, const std::string& dtype,
            const std::string& rotary_dtype, bool interleaved, bool backward, int64_t offset, AnyIn offsets,
            AnyIn cu_seqlens, int device, uint64_t stream) {
  const Place place{device, stream, {}};
  const std::pair<Array, const char*> arrays[] = {{x, "x"},
                                                  {out, "out"},
                                                  {cos, "cos"},
                                                  {sin, "sin"},
                                                  {offsets, "seqlen_offsets"},
                                                  {cu_seqlens, "cu_seqlens"}};
  for (const auto& [array, name] : arrays) expect_place(array, place, name);
  const Array cu(cu_seqlens);
  const int rank = cu ? 3 : 4;
  attention::RopeProblem problem;
  problem.dtype = dtype_of(dtype, "x");
  const Sizes sizes = sizes_of(x, problem.dtype, rank, "x");
  sizes_of(out, problem.dtype, rank, "out");
  expect_sizes(out, sizes, "out");
  problem.batch = sizes.batch;
  problem.seqlen = sizes.rows;
  problem.heads = narrow(sizes.heads, "heads");
  problem.head_dim = narrow(sizes.dim, "head_dim");
  problem.rotary = rotary_of(cos, sin, rotary_dtype, interleaved);
  problem.offset = offset;
  if (cu) {
    if (cu.ndim != 1 || cu.shape[0] < 1) raise_value_error("cu_seqlens must have batch + 1 elements");
    problem.batch = cu.shape[0] - 1;
    problem.cu_seqlens = int32_vector(cu, problem.batch + 1, "cu_seqlens");
    if (device >= 0) {
      problem.total = sizes.rows;
    } else if (problem.cu_seqlens[problem.batch] > sizes.rows) {
      raise_value_error(format("cu_seqlens[{}]={} lies behind x's {} rows", problem.batch,
                               problem.cu_seqlens[problem.batch], sizes.rows));
    }
  }
  problem.offsets = int32_vector(offsets, problem.batch, "seqlen_offsets");
  const auto from = strided<const void*>(x);
  const auto to = strided<void*>(out);
  run(place, [&](Context& context) {
    return backward ? attention::rope_backward(context, problem, from, to)
                    : attention::rope_forward(context, problem, from, to);
  });
}

// Parts [batch, seqlen, heads, dim] with lse [batch, heads, seqlen] of any strides.
void merge_states(const std::vector<AnyIn>& outs, const std::vector<AnyIn>& lses, AnyOut out, AnyOut lse,
                  const std::string& dtype, const std::string& out_dtype, int device, uint64_t stream) {
  const Place place{device, stream, {}};
  for (const AnyIn& array : outs) expect_place(array, place, "outs");
  for (const AnyIn& array : lses) expect_place(array, place, "lses");
  expect_place(out, place, "out");
  expect_place(lse, place, "lse");
  if (outs.empty() || outs.size() != lses.size())
    raise_value_error("as many lses as outs are needed, at least 1");
  attention::MergeProblem problem;
  problem.dtype = dtype_of(dtype, "outs");
  problem.out_dtype = dtype_of(out_dtype, "out");
  const Sizes sizes = sizes_of(outs[0], problem.dtype, 4, "outs[0]");
  problem.batch = sizes.batch;
  problem.seqlen = sizes.rows;
  problem.heads = narrow(sizes.heads, "heads");
  problem.head_dim = narrow(sizes.dim, "head_dim");
  const auto lse_strides = [&](const Array& array, const char* name) {
    expect_dtype(array, DType::f32, name);
    expect_shape(array, {sizes.batch, sizes.heads, sizes.rows}, name);
    return attention::Strided<float*>{static_cast<float*>(array.data), array.strides[0], array.strides[2],
                                      array.strides[1]};
  };
  std::vector<attention::AttentionPart> parts;
  for (size_t i = 0; i < outs.size(); ++i) {
    const std::string name = format("outs[{}]", i), lse_name = format("lses[{}]", i);
    sizes_of(outs[i], problem.dtype, 4, name.c_str());
    expect_sizes(outs[i], sizes, name.c_str());
    const auto s = lse_strides(lses[i], lse_name.c_str());
    parts.push_back({strided<const void*>(outs[i]), {s.data, s.batch_stride, s.row_stride, s.head_stride}});
  }
  sizes_of(out, problem.out_dtype, 4, "out");
  expect_sizes(out, sizes, "out");
  const auto to = strided<void*>(out);
  const auto to_lse = lse_strides(lse, "lse");
  run(place, [&](Context& context) { return attention::merge_states(context, problem, parts, to, to_lse); });
}

}  // namespace

void bind_rope_and_merge(nb::module_& module) {
  const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
  module.def("rotary", &rotary, array("x"), array("out"), array("cos"), array("sin"), nb::arg("dtype"),
             nb::arg("rotary_dtype"), nb::arg("interleaved"), nb::arg("backward"), nb::arg("offset"),
             array("offsets").none(), array("cu_seqlens").none(), nb::arg("device"), nb::arg("stream"));
  module.def("merge_states", &merge_states, nb::arg("outs"), nb::arg("lses"), array("out"), array("lse"),
             nb::arg("dtype"), nb::arg("out_dtype"), nb::arg("device"), nb::arg("stream"));
}

}  // namespace tessera::python
