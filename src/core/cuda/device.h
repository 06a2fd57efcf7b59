// CUDA devices without CUDA's headers: properties, memory, streams, events and graphs as owners, errors as
// Status.
//
// The driver is found at run time (cudart looks for it), so a program that links this starts on a machine
// without a GPU; there, everything here returns `unavailable` with the reason. All functions work on the
// calling thread's current device unless they take one. Handles are movable and not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "tessera/status.h"

namespace tessera::cuda {

struct DeviceProperties {
  int ordinal = 0;
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  int64_t shared_bytes = 0;  // the most that a block may ask for
  int64_t l2_bytes = 0;
  int64_t memory_bytes = 0;
  int driver = 0;  // 1000 * major + 10 * minor of the CUDA version that the driver speaks
  int sm() const { return 10 * major + minor; }
};

// Devices that the process sees; unavailable, with CUDA's reason, when there is no driver or device.
Result<int> device_count();
Result<DeviceProperties> device_properties(int ordinal);  // as arch_limit.h limits them
Status set_device(int ordinal);
// Makes a device the calling thread's current one while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int ordinal);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  const Status& status() const { return status_; }

 private:
  int before_ = -1;  // -1: nothing to give back
  Status status_;
};
// ok when `pointer` is memory of device `ordinal` (or managed memory); invalid_argument naming `field` for
// the host's and another device's.
Status check_resident(const char* field, const void* pointer, int ordinal);
// ok for null and for memory that the host may read; invalid_argument naming `field` for a device's.
Status check_host_memory(const char* field, const void* pointer);
// Free and total bytes of the current device.
Result<std::pair<int64_t, int64_t>> memory_info();

// ok for 0 (cudaSuccess); otherwise what failed and CUDA's name and words for it, in one line. Out of memory
// is resource_exhausted and says what is free, an absent driver or device unavailable, the rest internal.
// After a kernel's fault the context answers every later call with it: the message says that too. The calling
// thread's last error is cleared, for it is said here.
Status to_status(int cuda_error, const std::string& what);
// The error of the launch just made, if any: call it after each `<<<>>>`. `kernel` and `problem` (shape and
// dtype) are for the message; a fault of earlier work is told apart from a launch that is refused.
Status launched(const char* kernel, const std::string& problem);

// Device memory of cudaMalloc, 256-byte aligned, contents unspecified.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  // resource_exhausted names `what`, the bytes needed and the bytes free.
  static Result<DeviceBuffer> create(size_t bytes, const char* what);
  ~DeviceBuffer() { reset(); }
  DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    if (this != &other) {
      reset();
      swap(other);
    }
    return *this;
  }
  void* data() const { return data_; }
  size_t size() const { return size_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void reset();
  void swap(DeviceBuffer& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  void* data_ = nullptr;
  size_t size_ = 0;
};

// An owned stream, or a view of the caller's.
class Stream {
 public:
  static Result<Stream> create();
  // The caller's cudaStream_t; null is the default stream. Not destroyed.
  static Stream of(void* handle) { return Stream(handle, false); }
  ~Stream();
  Stream(Stream&& other) noexcept : handle_(other.handle_), owned_(std::exchange(other.owned_, false)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(owned_, other.owned_);
    return *this;
  }
  void* handle() const { return handle_; }  // cudaStream_t
  Status synchronize() const;
  // True while a graph is being captured from it: nothing may be allocated then.
  Result<bool> capturing() const;

 private:
  Stream(void* handle, bool owned) : handle_(handle), owned_(owned) {}
  void* handle_ = nullptr;
  bool owned_ = false;
};

class Event {
 public:
  static Result<Event> create();
  ~Event();
  Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  Status record(const Stream& stream) const;
  // Milliseconds from `start` to this, both recorded; waits for this.
  Result<float> since(const Event& start) const;

 private:
  explicit Event(void* handle) : handle_(handle) {}
  void* handle_ = nullptr;
};

// A captured and instantiated graph.
class Graph {
 public:
  // Captures what `work` enqueues on `stream` (not the default stream).
  static Result<Graph> capture(const Stream& stream, const std::function<Status()>& work);
  ~Graph();
  Graph(Graph&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  Status launch(const Stream& stream) const;

 private:
  explicit Graph(void* handle) : handle_(handle) {}
  void* handle_ = nullptr;  // cudaGraphExec_t
};

Status copy(void* destination, const void* source, size_t bytes,
            const Stream& stream);  // either side, by address
Status fill_bytes(void* destination, int value, size_t bytes, const Stream& stream);

// Grow-only scratch on the device, by slot. A slot that grows keeps its old memory until the workspace goes,
// because a captured graph may hold its address; so after the first call of a size nothing is allocated. New
// memory is zeroed (on `stream`): kernels keep counters there that they themselves reset to 0.
class DeviceWorkspace {
 public:
  static constexpr int kSlots = 8;
  // Device memory of so many bytes, aligned to 256, or null; it lives as long as the workspace is used.
  using Source = std::function<void*(size_t bytes)>;
  DeviceWorkspace() = default;
  // From `source`, during a capture too, and not zeroed; slot 0, for counters, is zeros of the library's own.
  explicit DeviceWorkspace(Source source) : source_(std::move(source)) {}
  // At least `bytes` in the slot. An error while a graph is being captured and the slot is too small: call
  // once first.
  Result<void*> get(int slot, size_t bytes, const Stream& stream);
  size_t bytes() const;
  size_t owned_bytes() const;  // of those, not a source's

 private:
  Result<void*> take(int slot, size_t bytes, const Stream& stream);

  DeviceBuffer slots_[kSlots];
  std::vector<DeviceBuffer> retired_;
  Source source_;
  std::pair<void*, size_t> taken_[kSlots] = {};  // from the source
};

// Device memory of what comes and goes with a step. What is given back is kept for the next, because freeing
// device memory waits for the device and breaks a graph that any thread is capturing. Thread-safe.
class DevicePool {
 public:
  // At least `bytes`, 256-byte aligned, contents unspecified; goes back when the last copy of it goes. The
  // pool lives as long. Errors as DeviceBuffer::create().
  static Result<std::shared_ptr<DeviceBuffer>> take(const std::shared_ptr<DevicePool>& pool, size_t bytes,
                                                    const char* what);

 private:
  std::mutex mutex_;
  std::vector<DeviceBuffer> free_;
};

// What every launch function gets first.
struct Launch {
  Stream stream;
  DeviceProperties device;
  DeviceWorkspace workspace;
  std::shared_ptr<DevicePool> pool = std::make_shared<DevicePool>();
  // On the device, on a stream of its own (owned) or the caller's.
  static Result<Launch> create(int ordinal);
  static Result<Launch> create(int ordinal, void* stream);
};

}  // namespace tessera::cuda
