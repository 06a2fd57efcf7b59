// Arithmetic on sizes that come from files and requests: every overflow is seen.
#pragma once

#include <cstdint>
#include <optional>

namespace tessera {

// A non-negative 64-bit size that remembers overflow. Once bad, it stays bad.
class CheckedSize {
 public:
  constexpr CheckedSize(uint64_t value) : value_(value) {}  // NOLINT: implicit on purpose
  CheckedSize operator+(CheckedSize other) const {
    CheckedSize sum = *this;
    sum.bad_ |= other.bad_ | __builtin_add_overflow(value_, other.value_, &sum.value_);
    return sum;
  }
  CheckedSize operator*(CheckedSize other) const {
    CheckedSize product = *this;
    product.bad_ |= other.bad_ | __builtin_mul_overflow(value_, other.value_, &product.value_);
    return product;
  }
  // Rounds up to a multiple. REQUIRES: alignment is a power of two.
  CheckedSize align_up(uint64_t alignment) const {
    CheckedSize padded = *this + CheckedSize(alignment - 1);
    padded.value_ &= ~(alignment - 1);
    return padded;
  }
  bool ok() const { return !bad_; }
  std::optional<uint64_t> get() const { return bad_ ? std::nullopt : std::optional(value_); }

 private:
  uint64_t value_;
  bool bad_ = false;
};

}  // namespace tessera
