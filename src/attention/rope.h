// Rotating one row: what rope_forward and the caches' append share.
#pragma once

#include "attention/cpu/row_kernels.h"
#include "tessera/rope.h"

namespace tessera::attention {

// What a Rotary must be for heads of head_dim elements; `field` prefixes the names in the message.
Status validate_rotary(const Rotary& rotary, int head_dim);

// What rope_forward asks of a problem, without looking into its arrays.
Status check_rope(const RopeProblem& problem);

// Widens the table's rows as asked for and turns heads by them. One of these per thread. REQUIRES:
// validate_rotary().ok(), head_dim <= kMostRopeDim.
inline constexpr int kMostRopeDim = 1024;
class RowRotator {
 public:
  RowRotator(const Rotary& rotary, bool backward);
  // The table's row of `position` for turn(). REQUIRES: 0 <= position < rotary.positions.
  void move_to(int64_t position);
  // x [rotary_dim or more], in place.
  void turn(float* x) const { rotate_(x, cos_, sin_, rotary_.rotary_dim / 2, sign_); }

 private:
  const Rotary& rotary_;
  const RowKernels& kernels_;
  void (*rotate_)(float*, const float*, const float*, int, float);
  const float sign_;
  int64_t position_ = -1;
  const float* cos_ = nullptr;
  const float* sin_ = nullptr;
  float widened_[kMostRopeDim];
};

}  // namespace tessera::attention
