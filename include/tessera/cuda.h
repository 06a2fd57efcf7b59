// CudaContext: an NVIDIA GPU and a stream of it, for the library's functions on device memory.
//
// Given a CudaContext, forward(), backward(), attend_cache(), CacheTreePlan, rope_forward(), rope_backward()
// and merge_states() take tensors in that device's memory, and so are the arrays of the problem and of the
// cache: cu_seqlens, seqused_k, leftpad_k, alibi_slopes, masks, ancestors, block tables, lengths, rotary
// tables.
// Rules 1 to 8 of tessera/attention.h hold. Functions without CUDA kernels return `unsupported`. What differs
// from the CPU:
//  1. A call enqueues its work on the stream and returns; results are there when the stream has come so far.
//  2. The host does not look into device memory. With cu_seqlens, total_q and total_k of the problem say how
//     many rows and keys there are. What lies in arrays (cu_seqlens, slopes, depths) is the caller's to get
//     right; lengths of a cache are cut at its capacity. Rows behind the last sequence are not written.
//  3. Attention's addresses and strides are multiples of 16 bytes: others are refused, nothing is copied.
//  4. f32 is multiplied as tf32 (10 bits of mantissa), with f32 sums.
//  5. The bits do not depend on the device's number of multiprocessors.
// Calls may be captured into a CUDA graph.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "tessera/context.h"
#include "tessera/status.h"

namespace tessera {

struct CudaOptions {
  int device = 0;               // CUDA's ordinal
  std::optional<void*> stream;  // the caller's cudaStream_t (null: the default stream); none: one of its own
  // Where scratch comes from: device memory of `bytes`, aligned to 256 bytes, or null when there is none. It
  // must live until the last call's work is done (for a captured call: as long as its graph). Empty:
  // cudaMalloc; the context keeps what it took until it goes, and a captured call needs a call of its size
  // before it, because nothing can be allocated during a capture.
  std::function<void*(size_t bytes)> allocate;
};

// One call at a time: threads that enqueue at once need a context each. Scratch belongs to the context, so
// everything that it enqueues must run in the order of its stream, captured graphs included. Movable.
class CudaContext {
 public:
  // Errors: invalid_argument (no such device), unavailable (no driver), unsupported (a build without CUDA, a
  // device below compute capability 8.0).
  static Result<CudaContext> create(const CudaOptions& options = {});
  CudaContext(CudaContext&&) noexcept;
  CudaContext& operator=(CudaContext&&) noexcept;
  ~CudaContext();

  operator Context&() const;  // NOLINT: a CudaContext is passed where a Context& is asked for
  int device() const;
  void* stream() const;  // cudaStream_t
  // Waits for everything enqueued on the stream; the first error of it, if any.
  Status synchronize() const;
  // Device memory held as scratch now, over all calls so far.
  int64_t workspace_bytes() const;

 private:
  struct Impl;
  explicit CudaContext(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// CUDA devices that the process may use. Errors as CudaContext::create().
Result<int> cuda_device_count();

}  // namespace tessera
