// Arrays that come from Python, seen as the library's strided tensors. Nothing is copied.
//
// tessera's Python code checks what callers pass and names their arguments. What is checked here again is
// what keeps every access inside the buffers, whatever Python code calls. All errors are Python exceptions.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>

#include "tessera/attention.h"
#include "tessera/context.h"

namespace tessera::python {

namespace nb = nanobind;
using In = nb::ndarray<nb::ro, nb::device::cpu>;
using Out = nb::ndarray<nb::device::cpu>;
// Of the functions that have kernels for GPUs: wherever the memory is, and expect_place() must have passed
// it.
using AnyIn = nb::ndarray<nb::ro>;
using AnyOut = nb::ndarray<>;

// What both kinds of array have in common. data is null for None.
struct Array {
  Array(const In& array);      // NOLINT: implicit on purpose
  Array(const Out& array);     // NOLINT
  Array(const AnyIn& array);   // NOLINT
  Array(const AnyOut& array);  // NOLINT
  explicit operator bool() const { return valid; }
  int64_t elements() const;

  bool valid;
  void* data = nullptr;
  int ndim = 0;
  const int64_t* shape = nullptr;
  const int64_t* strides = nullptr;  // in elements
  nb::dlpack::dtype type{};
  int device_type = 0, device = 0;  // DLPack's
};

// Where a call runs: on the process's CPU threads, or on a stream of a CUDA device.
struct Place {
  int device = -1;      // CUDA's ordinal; -1: the CPU
  uint64_t stream = 0;  // cudaStream_t
  // While a graph is captured: a function of bytes that returns the address of device memory, for scratch.
  nb::object allocate;
};
// ValueError naming `name` unless the array's memory is there (or it has none).
void expect_place(const Array& array, const Place& place, const char* name);

// The Status's line as ValueError, NotImplementedError (unsupported), MemoryError or RuntimeError.
void raise_if_error(const Status& status);
[[noreturn]] void raise_value_error(const std::string& text);
[[noreturn]] void raise_type_error(const std::string& text);

// "float32", "float16" or "bfloat16": TypeError otherwise.
DType dtype_of(const std::string& text, const char* name);
// TypeError unless the elements are of `dtype`; bfloat16 may come as the bits, uint16.
void expect_dtype(const Array& array, DType dtype, const char* name);

// ValueError naming `name` unless the shape is this; -1 stands for any length.
void expect_shape(const Array& array, std::initializer_list<int64_t> shape, const char* name);

// [batch, rows, heads, dim] or (rank 3) [rows, heads, dim], the last dimension contiguous.
struct Sizes {
  int64_t batch = 1, rows = 0, heads = 0, dim = 0;
};
Sizes sizes_of(const Array& array, DType dtype, int rank, const char* name);
// REQUIRES: sizes_of() took the array.
template <typename Pointer>
attention::Strided<Pointer> strided(const Array& array) {
  const int64_t* s = array.strides + (array.ndim - 3);
  return {static_cast<Pointer>(array.data), array.ndim == 4 ? s[-1] : 0, s[0], s[1]};
}

// A contiguous vector of `length` int32; null for None.
const int32_t* int32_vector(const Array& array, int64_t length, const char* name);
// A contiguous float32 tensor of this shape; null for None.
float* float_tensor(const Array& array, std::initializer_list<int64_t> shape, const char* name);

// REQUIRES: the GIL. Runs compute on the process's context without the GIL, one call at a time, and raises
// its error.
void run(const std::function<Status(Context&)>& compute);
// The same at a place: on a CUDA device the work is enqueued on the stream when this returns.
void run(const Place& place, const std::function<Status(Context&)>& compute);
int num_threads();
// ValueError unless 0 <= threads <= 1024; 0: one for each CPU that the process may run on.
void set_num_threads(int threads);
// For os.register_at_fork: the child has none of its parent's threads, so it must not wait for them.
void after_fork_in_child();
// Bytes of scratch that the context holds.
int64_t workspace_bytes();

void bind_attention(nb::module_& module);
void bind_cache(nb::module_& module);
void bind_cache_tree(nb::module_& module);
void bind_rope_and_merge(nb::module_& module);
void bind_tree(nb::module_& module);

}  // namespace tessera::python
