#include "core/clock.h"

#include <chrono>

namespace tessera {
namespace {
class SystemClock final : public Clock {
 public:
  int64_t now_ns() override {
    return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
  }
  int64_t unix_seconds() override {
    return std::chrono::system_clock::now().time_since_epoch() / std::chrono::seconds(1);
  }
};
}  // namespace

Clock& system_clock() {
  static SystemClock clock;
  return clock;
}

}  // namespace tessera
