#include "bindings/arrays.h"

#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

#include "core/format.h"
#include "tessera/cuda.h"

namespace tessera::python {
namespace {

// The threads that every call shares. Never destroyed: at interpreter exit a thread may still be computing.
struct Shared {
  std::mutex mutex;
  int threads = 0;
  std::unique_ptr<CpuContext> context;
  std::map<std::pair<int, uint64_t>, CudaContext> cuda;  // by device and stream

  Status ensure() {  // REQUIRES: mutex held. Makes the context on first use.
    if (context) return {};
    TESSERA_ASSIGN_OR_RETURN(CpuContext made, CpuContext::create({.threads = threads}));
    context = std::make_unique<CpuContext>(std::move(made));
    return {};
  }
};
Shared* shared() {
  static Shared* instance = new Shared;
  return instance;
}

template <typename Source>
void fill(Array& to, const Source& from) {
  to.valid = from.is_valid();
  if (!to.valid) return;
  to.data = const_cast<void*>(static_cast<const void*>(from.data()));
  to.ndim = static_cast<int>(from.ndim());
  to.shape = from.shape_ptr();
  to.strides = from.stride_ptr();
  to.type = from.dtype();
  to.device_type = from.device_type();
  to.device = from.device_id();
}

std::string text_of(const int64_t* values, int64_t count) {
  std::string text = "(";
  for (int64_t i = 0; i < count; ++i) text += format("{}{}", i == 0 ? "" : ", ", values[i]);
  return text + (count == 1 ? ",)" : ")");
}

bool contiguous(const Array& array) {
  if (array.elements() == 0) return true;
  int64_t expected = 1;
  for (int i = array.ndim - 1; i >= 0; --i) {
    if (array.shape[i] != 1 && array.strides[i] != expected) return false;
    expected *= array.shape[i];
  }
  return true;
}

}  // namespace

Array::Array(const In& array) {
  fill(*this, array);
}
Array::Array(const Out& array) {
  fill(*this, array);
}
Array::Array(const AnyIn& array) {
  fill(*this, array);
}
Array::Array(const AnyOut& array) {
  fill(*this, array);
}
int64_t Array::elements() const {
  int64_t product = 1;
  for (int i = 0; i < ndim; ++i) product *= shape[i];
  return product;
}

void raise_value_error(const std::string& text) {
  throw nb::value_error(text.c_str());
}
void raise_type_error(const std::string& text) {
  throw nb::type_error(text.c_str());
}

void raise_if_error(const Status& status) {
  if (status.ok()) return;
  PyObject* type = PyExc_RuntimeError;
  if (status.code() == StatusCode::invalid_argument) type = PyExc_ValueError;
  if (status.code() == StatusCode::unsupported) type = PyExc_NotImplementedError;
  if (status.code() == StatusCode::resource_exhausted) type = PyExc_MemoryError;
  PyErr_SetString(type, status.message().c_str());
  throw nb::python_error();
}

DType dtype_of(const std::string& text, const char* name) {
  if (text == "float32") return DType::f32;
  if (text == "float16") return DType::f16;
  if (text == "bfloat16") return DType::bf16;
  raise_type_error(format("{} has dtype {}; float32, float16 and bfloat16 are supported", name, text));
}

void expect_dtype(const Array& array, DType dtype, const char* name) {
  using Code = nb::dlpack::dtype_code;
  const auto is = [&](Code code, int bits) {
    return array.type == nb::dlpack::dtype{static_cast<uint8_t>(code), static_cast<uint8_t>(bits), 1};
  };
  const bool good = dtype == DType::f32    ? is(Code::Float, 32)
                    : dtype == DType::f16  ? is(Code::Float, 16)
                    : dtype == DType::bf16 ? is(Code::Bfloat, 16) || is(Code::UInt, 16)
                                           : dtype == DType::i32 && is(Code::Int, 32);
  if (!good) raise_type_error(format("{} must have elements of {}", name, tessera::name(dtype)));
}

void expect_shape(const Array& array, std::initializer_list<int64_t> shape, const char* name) {
  bool good = array.ndim == static_cast<int>(shape.size());
  for (int i = 0; good && i < array.ndim; ++i) {
    const int64_t expected = shape.begin()[i];
    good = expected == -1 || array.shape[i] == expected;
  }
  if (!good) {
    raise_value_error(format("{} has shape {}; it must be {}", name, text_of(array.shape, array.ndim),
                             text_of(shape.begin(), static_cast<int64_t>(shape.size()))));
  }
}

Sizes sizes_of(const Array& array, DType dtype, int rank, const char* name) {
  if (!array) raise_type_error(format("{} is None", name));
  expect_dtype(array, dtype, name);
  if (array.ndim != rank) {
    raise_value_error(format("{} has {} dimensions; it must have {}", name, array.ndim, rank));
  }
  if (array.strides[rank - 1] != 1 && array.shape[rank - 1] > 1 && array.elements() != 0) {
    raise_value_error(
        format("{} has stride {} in its last dimension; it must be 1", name, array.strides[rank - 1]));
  }
  const int64_t* s = array.shape + (rank - 3);
  return {rank == 4 ? s[-1] : 1, s[0], s[1], s[2]};
}

const int32_t* int32_vector(const Array& array, int64_t length, const char* name) {
  if (!array) return nullptr;
  expect_dtype(array, DType::i32, name);
  expect_shape(array, {length}, name);
  if (!contiguous(array)) raise_value_error(format("{} must be contiguous", name));
  return static_cast<const int32_t*>(array.data);
}

float* float_tensor(const Array& array, std::initializer_list<int64_t> shape, const char* name) {
  if (!array) return nullptr;
  expect_dtype(array, DType::f32, name);
  expect_shape(array, shape, name);
  if (!contiguous(array)) raise_value_error(format("{} must be contiguous", name));
  return static_cast<float*>(array.data);
}

void run(const std::function<Status(Context&)>& compute) {
  Status status;
  {
    nb::gil_scoped_release release;
    const std::lock_guard lock(shared()->mutex);
    status = shared()->ensure();
    if (status.ok()) status = compute(*shared()->context);
  }
  raise_if_error(status);
}

void expect_place(const Array& array, const Place& place, const char* name) {
  if (!array || array.elements() == 0) return;
  const bool cpu = array.device_type == nb::device::cpu::value;
  const bool good =
      place.device < 0 ? cpu : array.device_type == nb::device::cuda::value && array.device == place.device;
  if (good) return;
  const auto spell = [](bool on_cpu, int device) {
    return on_cpu ? std::string("cpu") : format("cuda:{}", device);
  };
  raise_value_error(format("{} is on {}; the call is on {}", name, spell(cpu, array.device),
                           spell(place.device < 0, place.device)));
}

void run(const Place& place, const std::function<Status(Context&)>& compute) {
  if (place.device < 0) return run(compute);
  void* const stream = reinterpret_cast<void*>(place.stream);
  CudaOptions options{.device = place.device, .stream = stream};
  Status status;
  if (place.allocate.is_valid() && !place.allocate.is_none()) {
    options.allocate = [&place](size_t bytes) -> void* {
      const nb::gil_scoped_acquire acquire;
      return reinterpret_cast<void*>(nb::cast<uint64_t>(place.allocate(bytes)));
    };
    nb::gil_scoped_release release;
    const Result<CudaContext> context = CudaContext::create(options);
    status = context.ok() ? compute(*context) : context.status();
  } else {
    nb::gil_scoped_release release;
    const std::lock_guard lock(shared()->mutex);
    auto found = shared()->cuda.find({place.device, place.stream});
    if (found == shared()->cuda.end()) {
      Result<CudaContext> made = CudaContext::create(options);
      status = made.status();
      if (made.ok()) {
        found = shared()->cuda.emplace(std::pair{place.device, place.stream}, std::move(*made)).first;
      }
    }
    if (status.ok()) status = compute(found->second);
  }
  raise_if_error(status);
}

int num_threads() {
  Status status;
  int threads = 0;
  {
    nb::gil_scoped_release release;
    const std::lock_guard lock(shared()->mutex);
    status = shared()->ensure();
    if (status.ok()) threads = shared()->context->threads();
  }
  raise_if_error(status);
  return threads;
}

void set_num_threads(int threads) {
  auto made = CpuContext::create({.threads = threads});
  raise_if_error(made.status());
  nb::gil_scoped_release release;
  const std::lock_guard lock(shared()->mutex);
  shared()->threads = threads;
  shared()->context = std::make_unique<CpuContext>(std::move(*made));
}

void after_fork_in_child() {
  Shared* s = shared();
  (void)s->context.release();        // its threads did not survive the fork, so it cannot be joined
  new (&s->cuda) decltype(s->cuda);  // nor does a CUDA context
  new (&s->mutex) std::mutex;
}

int64_t workspace_bytes() {
  nb::gil_scoped_release release;
  const std::lock_guard lock(shared()->mutex);
  int64_t sum = shared()->context ? shared()->context->workspace_bytes() : 0;
  for (const auto& [place, context] : shared()->cuda) sum += context.workspace_bytes();
  return sum;
}

}  // namespace tessera::python
