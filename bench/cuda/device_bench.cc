#include "bench/cuda/device_bench.h"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "core/format.h"

namespace tessera::bench {
namespace {

constexpr double kDenseClock = 1.83e9, kFlopsPerClock = 4096;

// The first library of the list that the loader finds; never unloaded.
void* find_library(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
  }
  return nullptr;
}
template <typename Function>
bool find_function(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  return function != nullptr;
}

Result<double> seconds_of(const cuda::Graph& graph, const cuda::Stream& stream, const cuda::Event& start,
                          const cuda::Event& end, const SmClock& clock, int* megahertz) {
  TESSERA_RETURN_IF_ERROR(start.record(stream));
  TESSERA_RETURN_IF_ERROR(graph.launch(stream));
  TESSERA_RETURN_IF_ERROR(end.record(stream));
  if (megahertz != nullptr) *megahertz = clock.megahertz();  // while it runs
  TESSERA_ASSIGN_OR_RETURN(const float milliseconds, end.since(start));
  return milliseconds * 1e-3;
}

Result<cuda::Graph> graph_of(const Way& way, int calls, const cuda::Stream& stream) {
  return cuda::Graph::capture(stream, [&]() -> Status {
    for (int i = 0; i < calls; ++i) TESSERA_RETURN_IF_ERROR(way.call(i));
    return {};
  });
}

}  // namespace

double dense_peak(const cuda::DeviceProperties& device) {
  return device.sm() == 90 ? device.multiprocessors * kDenseClock * kFlopsPerClock : 0;
}

struct Matmul::Impl {
  static constexpr int64_t kSide = 8192;
  void* handle = nullptr;
  int (*destroy)(void*) = nullptr;
  // cublasGemmEx, its enumerations as the integers that cublas_api.h gives them.
  int (*gemm)(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int,
              const void*, void*, int, int, int, int) = nullptr;
  cuda::DeviceBuffer a, b, c;
  ~Impl() {
    if (handle != nullptr) destroy(handle);
  }
};

Matmul::Matmul(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Matmul::Matmul(Matmul&&) noexcept = default;
Matmul::~Matmul() = default;

Result<Matmul> Matmul::create(const cuda::Stream& stream) {
  void* const library =
      find_library({"libcublas.so.13", "libcublas.so.12", "/usr/local/cuda/lib64/libcublas.so"});
  auto impl = std::make_unique<Impl>();
  int (*make)(void**) = nullptr;
  int (*set_stream)(void*, void*) = nullptr;
  if (library == nullptr || !find_function(library, "cublasCreate_v2", make) ||
      !find_function(library, "cublasDestroy_v2", impl->destroy) ||
      !find_function(library, "cublasSetStream_v2", set_stream) ||
      !find_function(library, "cublasGemmEx", impl->gemm)) {
    return Status(StatusCode::unavailable,
                  "no cuBLAS is found, so no matrix product is measured beside the work");
  }
  if (make(&impl->handle) != 0 || set_stream(impl->handle, stream.handle()) != 0)
    return Status(StatusCode::unavailable, "cuBLAS could not be started");
  const size_t bytes = Impl::kSide * Impl::kSide * 2;
  for (cuda::DeviceBuffer* matrix : {&impl->a, &impl->b, &impl->c}) {
    TESSERA_ASSIGN_OR_RETURN(*matrix, cuda::DeviceBuffer::create(bytes, "a matrix product"));
    TESSERA_RETURN_IF_ERROR(fill_normal(matrix->data(), Impl::kSide * Impl::kSide, DType::bf16, 11, stream));
  }
  return Matmul(std::move(impl));
}

Status Matmul::run() const {
  constexpr int kTransposed = 1, kPlain = 0, kBf16 = 14, kComputeF32 = 68, kDefault = -1;
  const float one = 1, zero = 0;
  const int side = Impl::kSide;
  const int failed =
      impl_->gemm(impl_->handle, kTransposed, kPlain, side, side, side, &one, impl_->a.data(), kBf16, side,
                  impl_->b.data(), kBf16, side, &zero, impl_->c.data(), kBf16, side, kComputeF32, kDefault);
  return failed == 0 ? Status() : Status(StatusCode::internal, format("cublasGemmEx: status {}", failed));
}

SmClock::SmClock(int device) {
  void* const library = find_library({"libnvidia-ml.so.1"});
  int (*start)() = nullptr;
  int (*by_index)(unsigned, void**) = nullptr;
  if (library == nullptr || !find_function(library, "nvmlInit_v2", start) || start() != 0) return;
  if (!find_function(library, "nvmlDeviceGetHandleByIndex_v2", by_index) ||
      by_index(static_cast<unsigned>(device), &device_) != 0) {
    device_ = nullptr;
    return;
  }
  find_function(library, "nvmlDeviceGetClockInfo", read_);
}

int SmClock::megahertz() const {
  constexpr int kSm = 1;  // NVML_CLOCK_SM
  unsigned value = 0;
  return device_ != nullptr && read_ != nullptr && read_(device_, kSm, &value) == 0 ? static_cast<int>(value)
                                                                                    : 0;
}

std::string driver_version() {
  void* const library = find_library({"libnvidia-ml.so.1"});
  int (*start)() = nullptr;
  int (*version)(char*, unsigned) = nullptr;
  char text[96] = "";
  if (library == nullptr || !find_function(library, "nvmlInit_v2", start) || start() != 0 ||
      !find_function(library, "nvmlSystemGetDriverVersion", version) || version(text, sizeof text) != 0)
    return "";
  return text;
}

Result<std::vector<WayTimes>> take_turns(const std::vector<Way>& ways, const TurnsOptions& options,
                                         const cuda::Stream& stream, const SmClock& clock) {
  TESSERA_ASSIGN_OR_RETURN(const cuda::Event start, cuda::Event::create());
  TESSERA_ASSIGN_OR_RETURN(const cuda::Event end, cuda::Event::create());
  std::vector<cuda::Graph> graphs;
  std::vector<int> calls;
  std::vector<WayTimes> times;
  for (const Way& way : ways) {
    for (int i = 0; i < options.sets; ++i) TESSERA_RETURN_IF_ERROR(way.call(i));
    TESSERA_ASSIGN_OR_RETURN(cuda::Graph few, graph_of(way, options.sets, stream));
    TESSERA_RETURN_IF_ERROR(few.launch(stream));
    TESSERA_ASSIGN_OR_RETURN(const double once, seconds_of(few, stream, start, end, clock, nullptr));
    calls.push_back(options.sets * std::max(1, static_cast<int>(std::ceil(options.sample_seconds / once))));
    TESSERA_ASSIGN_OR_RETURN(cuda::Graph graph, graph_of(way, calls.back(), stream));
    TESSERA_RETURN_IF_ERROR(graph.launch(stream));
    graphs.push_back(std::move(graph));
    times.push_back({way.name, {}, {}});
  }
  for (int round = 0; round < options.rounds; ++round) {
    for (size_t turn = 0; turn < ways.size(); ++turn) {
      const size_t i = (turn + static_cast<size_t>(round)) % ways.size();
      int megahertz = 0;
      TESSERA_ASSIGN_OR_RETURN(const double seconds,
                               seconds_of(graphs[i], stream, start, end, clock, &megahertz));
      times[i].seconds.push_back(seconds / calls[i]);
      times[i].megahertz.push_back(megahertz);
    }
  }
  return times;
}

Status keep_busy(double seconds, const cuda::Stream& stream, const std::function<Status()>& work) {
  using Clock = std::chrono::steady_clock;
  const auto until = Clock::now() + std::chrono::duration<double>(seconds);
  while (Clock::now() < until) {
    for (int i = 0; i < 20; ++i) TESSERA_RETURN_IF_ERROR(work());
    TESSERA_RETURN_IF_ERROR(stream.synchronize());
  }
  return {};
}

}  // namespace tessera::bench
