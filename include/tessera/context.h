// CpuContext: the threads and the scratch memory that the library's functions run on.
#pragma once

#include <cstdint>
#include <memory>

#include "tessera/status.h"

namespace tessera {

struct Context;  // opaque: what the functions take

struct CpuOptions {
  int threads = 0;   // the caller's included; 0: one for each CPU that the process may run on
  bool pin = false;  // pin the workers (not the caller) inside the allowed mask
  int spin_us = 50;  // how long a worker waits for the next call before it sleeps; 0 to 1,000,000
};

// Persistent threads and grow-only scratch. An idle one uses no CPU. One call at a time: two threads that
// compute at once need a context each. Results never depend on the number of threads. Movable; owns what it
// made.
class CpuContext {
 public:
  // invalid_argument names the option out of range.
  static Result<CpuContext> create(const CpuOptions& options = {});
  CpuContext(CpuContext&&) noexcept;
  CpuContext& operator=(CpuContext&&) noexcept;
  ~CpuContext();

  operator Context&() const;  // NOLINT: a CpuContext is passed where a Context& is asked for
  int threads() const;
  // Scratch held now, over all threads; it only grows, so it is also the most that any call so far needed.
  int64_t workspace_bytes() const;
  // Gives the scratch back.
  void release_workspace();

 private:
  struct Impl;
  explicit CpuContext(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tessera
