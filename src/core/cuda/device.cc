#include "core/cuda/device.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <map>
#include <mutex>

#include "core/cuda/arch_limit.h"
#include "core/format.h"

namespace tessera::cuda {
namespace {

cudaStream_t raw(const Stream& stream) {
  return static_cast<cudaStream_t>(stream.handle());
}

// Errors of a kernel after which the process's context on the device answers every call with them.
bool context_is_lost(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorIllegalInstruction:
    case cudaErrorHardwareStackError:
    case cudaErrorAssert:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
      return true;
    default:
      return false;
  }
}

// "; F of T bytes are free", or nothing where the device does not say.
std::string free_bytes() {
  size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) {
    cudaGetLastError();
    return {};
  }
  return format("; {} of {} bytes are free", free, total);
}

}  // namespace

Status to_status(int cuda_error, const std::string& what) {
  const auto error = static_cast<cudaError_t>(cuda_error);
  if (error == cudaSuccess) return {};
  cudaGetLastError();  // it is said here; the next launch would report it once more as its own
  const std::string message = format("{}: {} ({})", what, cudaGetErrorName(error), cudaGetErrorString(error));
  if (context_is_lost(error)) {
    return Status(StatusCode::internal,
                  message +
                      "; this process's CUDA context is lost, and its memory on the device: start a new "
                      "process");
  }
  switch (error) {
    case cudaErrorMemoryAllocation:
      return resource_exhausted(message + free_bytes());
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInitializationError:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorDevicesUnavailable:
    case cudaErrorStubLibrary:
      return Status(StatusCode::unavailable, message);
    default:
      return Status(StatusCode::internal, message);
  }
}

Status launched(const char* kernel, const std::string& problem) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return {};
  // A launch itself cannot fault: the error is of work that was under way.
  const char* const earlier =
      context_is_lost(error) ? " was not launched, because an earlier one failed" : "";
  return to_status(error, format("kernel {} for {}{}", kernel, problem, earlier));
}

Result<int> device_count() {
  int count = 0;
  TESSERA_RETURN_IF_ERROR(to_status(cudaGetDeviceCount(&count), "no CUDA device"));
  return count;
}

Result<DeviceProperties> device_properties(int ordinal) {
  TESSERA_ASSIGN_OR_RETURN(const int count, device_count());
  if (ordinal < 0 || ordinal >= count) {
    return invalid_argument(format("device={} must be from 0 to {}", ordinal, count - 1), "device");
  }
  cudaDeviceProp got;
  TESSERA_RETURN_IF_ERROR(to_status(cudaGetDeviceProperties(&got, ordinal), "device properties"));
  DeviceProperties properties;
  properties.ordinal = ordinal;
  properties.name = got.name;
  properties.major = got.major;
  properties.minor = got.minor;
  properties.multiprocessors = got.multiProcessorCount;
  properties.shared_bytes = static_cast<int64_t>(got.sharedMemPerBlockOptin);
  properties.l2_bytes = got.l2CacheSize;
  properties.memory_bytes = static_cast<int64_t>(got.totalGlobalMem);
  TESSERA_RETURN_IF_ERROR(to_status(cudaDriverGetVersion(&properties.driver), "driver version"));
  return limited_to(std::move(properties), std::getenv("TESSERA_CUDA_ARCH"));
}

Status set_device(int ordinal) {
  return to_status(cudaSetDevice(ordinal), format("device {}", ordinal));
}

DeviceGuard::DeviceGuard(int ordinal) {
  int current = 0;
  status_ = to_status(cudaGetDevice(&current), "the current device");
  if (!status_.ok() || current == ordinal) return;
  status_ = set_device(ordinal);
  if (status_.ok()) before_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (before_ >= 0) cudaSetDevice(before_);
}

Status check_resident(const char* field, const void* pointer, int ordinal) {
  cudaPointerAttributes at{};
  const cudaError_t error = cudaPointerGetAttributes(&at, pointer);
  if (error == cudaErrorInvalidValue) {
    cudaGetLastError();  // or the next launch would report it
    at.type = cudaMemoryTypeUnregistered;
  } else {
    TESSERA_RETURN_IF_ERROR(to_status(error, format("where {} lies", field)));
  }
  if (at.type == cudaMemoryTypeManaged) return {};
  if (at.type != cudaMemoryTypeDevice) {
    return invalid_argument(format("{} is host memory; it must be on CUDA device {}", field, ordinal), field);
  }
  if (at.device == ordinal) return {};
  return invalid_argument(
      format("{} is on CUDA device {}; the context's is {}, and all tensors must be there", field, at.device,
             ordinal),
      field);
}

Status check_host_memory(const char* field, const void* pointer) {
  if (pointer == nullptr) return {};
  cudaPointerAttributes at{};
  const cudaError_t error = cudaPointerGetAttributes(&at, pointer);
  if (error == cudaErrorInvalidValue) {
    cudaGetLastError();  // not CUDA's, so the host's
    return {};
  }
  TESSERA_RETURN_IF_ERROR(to_status(error, format("where {} lies", field)));
  if (at.type != cudaMemoryTypeDevice) return {};
  return invalid_argument(format("{} is on CUDA device {}; it must be host memory", field, at.device), field);
}

Result<std::pair<int64_t, int64_t>> memory_info() {
  size_t free = 0, total = 0;
  TESSERA_RETURN_IF_ERROR(to_status(cudaMemGetInfo(&free, &total), "device memory"));
  return std::pair<int64_t, int64_t>{static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

Result<DeviceBuffer> DeviceBuffer::create(size_t bytes, const char* what) {
  DeviceBuffer buffer;
  if (bytes == 0) return buffer;
  TESSERA_RETURN_IF_ERROR(
      to_status(cudaMalloc(&buffer.data_, bytes), format("{} needs {} bytes of device memory", what, bytes)));
  buffer.size_ = bytes;
  return buffer;
}

void DeviceBuffer::reset() {
  if (data_ != nullptr) cudaFree(data_);
  data_ = nullptr;
  size_ = 0;
}

Result<Stream> Stream::create() {
  cudaStream_t handle = nullptr;
  TESSERA_RETURN_IF_ERROR(to_status(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking), "a stream"));
  return Stream(handle, true);
}

Stream::~Stream() {
  if (owned_) cudaStreamDestroy(static_cast<cudaStream_t>(handle_));
}

Status Stream::synchronize() const {
  return to_status(cudaStreamSynchronize(raw(*this)), "waiting for a stream");
}

Result<bool> Stream::capturing() const {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  TESSERA_RETURN_IF_ERROR(to_status(cudaStreamIsCapturing(raw(*this), &status), "a stream's capture"));
  return status != cudaStreamCaptureStatusNone;
}

Result<Event> Event::create() {
  cudaEvent_t handle = nullptr;
  TESSERA_RETURN_IF_ERROR(to_status(cudaEventCreate(&handle), "an event"));
  return Event(handle);
}

Event::~Event() {
  if (handle_ != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(handle_));
}

Status Event::record(const Stream& stream) const {
  return to_status(cudaEventRecord(static_cast<cudaEvent_t>(handle_), raw(stream)), "an event");
}

Result<float> Event::since(const Event& start) const {
  TESSERA_RETURN_IF_ERROR(
      to_status(cudaEventSynchronize(static_cast<cudaEvent_t>(handle_)), "waiting for an event"));
  float milliseconds = 0;
  TESSERA_RETURN_IF_ERROR(
      to_status(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(start.handle_),
                                     static_cast<cudaEvent_t>(handle_)),
                "time between events"));
  return milliseconds;
}

Result<Graph> Graph::capture(const Stream& stream, const std::function<Status()>& work) {
  TESSERA_RETURN_IF_ERROR(
      to_status(cudaStreamBeginCapture(raw(stream), cudaStreamCaptureModeThreadLocal), "capturing a graph"));
  const Status worked = work();
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(raw(stream), &graph);
  if (!worked.ok() || ended != cudaSuccess) {
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
    TESSERA_RETURN_IF_ERROR(worked);
    return to_status(ended, "capturing a graph");
  }
  cudaGraphExec_t exec = nullptr;
  const cudaError_t made = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  TESSERA_RETURN_IF_ERROR(to_status(made, "instantiating a graph"));
  return Graph(exec);
}

Graph::~Graph() {
  if (handle_ != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(handle_));
}

Status Graph::launch(const Stream& stream) const {
  return to_status(cudaGraphLaunch(static_cast<cudaGraphExec_t>(handle_), raw(stream)), "launching a graph");
}

Status copy(void* destination, const void* source, size_t bytes, const Stream& stream) {
  return to_status(cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDefault, raw(stream)),
                   format("copying {} bytes", bytes));
}

Status fill_bytes(void* destination, int value, size_t bytes, const Stream& stream) {
  return to_status(cudaMemsetAsync(destination, value, bytes, raw(stream)),
                   format("filling {} bytes", bytes));
}

namespace {

// Zeros on each device for counters, given out once and never again: 128 bytes for each captured call that
// counts keep two graphs that run at once apart, and need no clearing in the graph.
class Zeros {
 public:
  // `bytes` of zeros on the current device. Allocates, when it must, in spite of a capture under way.
  Result<void*> take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    int device = 0;
    TESSERA_RETURN_IF_ERROR(to_status(cudaGetDevice(&device), "the current device"));
    Slab& slab = slabs_[device];
    const size_t granules = (bytes + kGranule - 1) / kGranule * kGranule;
    if (slab.left < granules) {
      const size_t size = std::max(kSlab, granules);
      TESSERA_ASSIGN_OR_RETURN(slab.next, allocate(size));
      slab.left = size;
    }
    void* const taken = slab.next;
    slab.next += granules;
    slab.left -= granules;
    return taken;
  }

 private:
  static constexpr size_t kGranule = 128, kSlab = size_t{1} << 20;
  struct Slab {
    char* next = nullptr;
    size_t left = 0;
  };

  static Result<char*> allocate(size_t size) {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;  // cudaMalloc is no part of a graph
    TESSERA_RETURN_IF_ERROR(to_status(cudaThreadExchangeStreamCaptureMode(&mode), "a capture's mode"));
    const Result<char*> made = [&]() -> Result<char*> {
      TESSERA_ASSIGN_OR_RETURN(const Stream stream, Stream::create());
      void* memory = nullptr;
      TESSERA_RETURN_IF_ERROR(
          to_status(cudaMalloc(&memory, size), format("counters need {} bytes of device memory", size)));
      TESSERA_RETURN_IF_ERROR(fill_bytes(memory, 0, size, stream));
      TESSERA_RETURN_IF_ERROR(stream.synchronize());
      return static_cast<char*>(memory);
    }();
    cudaThreadExchangeStreamCaptureMode(&mode);
    return made;
  }

  std::mutex mutex_;
  std::map<int, Slab> slabs_;
};

Zeros& zeros() {
  static Zeros* const instance = new Zeros;  // graphs may outlive every owner
  return *instance;
}

}  // namespace

Result<void*> DeviceWorkspace::take(int slot, size_t bytes, const Stream&) {
  auto& [data, size] = taken_[slot];
  if (size >= bytes) return data;
  if (slot == 0) {
    TESSERA_ASSIGN_OR_RETURN(data, zeros().take(bytes));
    size = bytes;
    return data;
  }
  void* const grown = source_(bytes);
  if (grown == nullptr) {
    return resource_exhausted(
        format("workspace needs {} bytes of device memory, which the caller's allocator did not give{}",
               bytes, free_bytes()));
  }
  data = grown;
  size = bytes;
  return data;
}

Result<void*> DeviceWorkspace::get(int slot, size_t bytes, const Stream& stream) {
  if (source_) return take(slot, bytes, stream);
  DeviceBuffer& buffer = slots_[slot];
  if (buffer.size() >= bytes) return buffer.data();
  TESSERA_ASSIGN_OR_RETURN(const bool capturing, stream.capturing());
  if (capturing) {
    return Status(
        StatusCode::unavailable,
        format("the workspace must grow to {} bytes, which a stream that is being captured cannot do: run "
               "the call once before capturing it",
               bytes));
  }
  // With room to grow, unless that is what does not fit.
  Result<DeviceBuffer> made = DeviceBuffer::create(bytes + bytes / 4, "workspace");
  if (made.status().code() == StatusCode::resource_exhausted) made = DeviceBuffer::create(bytes, "workspace");
  TESSERA_ASSIGN_OR_RETURN(DeviceBuffer grown, std::move(made));
  TESSERA_RETURN_IF_ERROR(fill_bytes(grown.data(), 0, grown.size(), stream));
  if (buffer.size() != 0) retired_.push_back(std::move(buffer));
  buffer = std::move(grown);
  return buffer.data();
}

size_t DeviceWorkspace::owned_bytes() const {
  size_t sum = 0;
  for (const DeviceBuffer& buffer : slots_) sum += buffer.size();
  for (const DeviceBuffer& buffer : retired_) sum += buffer.size();
  return sum;
}

size_t DeviceWorkspace::bytes() const {
  size_t sum = owned_bytes();
  for (const auto& [data, size] : taken_) sum += size;
  return sum;
}

Result<std::shared_ptr<DeviceBuffer>> DevicePool::take(const std::shared_ptr<DevicePool>& pool, size_t bytes,
                                                       const char* what) {
  DeviceBuffer buffer;
  {
    const std::lock_guard lock(pool->mutex_);
    auto best = pool->free_.end();
    for (auto it = pool->free_.begin(); it != pool->free_.end(); ++it) {
      if (it->size() >= bytes && (best == pool->free_.end() || it->size() < best->size())) best = it;
    }
    if (best != pool->free_.end()) {
      buffer = std::move(*best);
      pool->free_.erase(best);
    }
  }
  if (buffer.data() == nullptr) {
    // Powers of two, so that the next ones, of about the same size, fit.
    const size_t rounded = std::bit_ceil(std::max<size_t>(bytes, 4096));
    TESSERA_ASSIGN_OR_RETURN(buffer, DeviceBuffer::create(rounded, what));
  }
  return std::shared_ptr<DeviceBuffer>(new DeviceBuffer(std::move(buffer)), [pool](DeviceBuffer* back) {
    const std::lock_guard lock(pool->mutex_);
    pool->free_.push_back(std::move(*back));
    delete back;
  });
}

Result<Launch> Launch::create(int ordinal) {
  TESSERA_ASSIGN_OR_RETURN(DeviceProperties properties, device_properties(ordinal));
  TESSERA_RETURN_IF_ERROR(set_device(ordinal));
  TESSERA_ASSIGN_OR_RETURN(Stream stream, Stream::create());
  return Launch{std::move(stream), std::move(properties), {}};
}

Result<Launch> Launch::create(int ordinal, void* stream) {
  TESSERA_ASSIGN_OR_RETURN(DeviceProperties properties, device_properties(ordinal));
  return Launch{Stream::of(stream), std::move(properties), {}};
}

}  // namespace tessera::cuda
