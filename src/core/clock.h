// The seam for time. Nothing below the command line reads a clock in any other way.
#pragma once

#include <cstdint>

namespace tessera {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual int64_t now_ns() = 0;        // monotonic, thread-safe
  virtual int64_t unix_seconds() = 0;  // wall clock, for `created` fields
};
Clock& system_clock();

// A clock that stands still until it is moved; for tests.
class ManualClock final : public Clock {
 public:
  int64_t now_ns() override { return now_; }
  int64_t unix_seconds() override { return 1'700'000'000 + now_ / 1'000'000'000; }
  void advance_ns(int64_t delta) { now_ += delta; }

 private:
  int64_t now_ = 0;
};

}  // namespace tessera
